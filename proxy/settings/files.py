"""Checks of the files that settings name."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from proxy.settings.tree import Loc

Finding = tuple[Loc, str]
_PEM_MAX = 1024 * 1024  # bytes that are looked through


def pair(loc: Loc, cert: str | None, key: str | None, *, server: bool) -> Iterator[Finding]:
    """A certificate and its key: both, readable, and belonging together."""
    if cert is None and key is None:
        return
    if cert is None or key is None:
        has, needs = ("cert_file", "key_file") if key is None else ("key_file", "cert_file")
        yield (*loc, has), f"{has} without {needs}: give both"
        return
    missing = [*readable((*loc, "cert_file"), cert), *readable((*loc, "key_file"), key)]
    yield from missing
    if missing:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield (
                (*loc, "key_file"),
                f"{key!r} is not the key of the certificate {cert!r}: give the two that belong together",
            )
        elif lacking := list(_lacking(loc, cert, key)):
            yield from lacking
        else:
            why = f" ({error.reason})" if error.reason else ""
            yield (
                (*loc, "cert_file"),
                f"{cert!r} with {key!r} is no PEM pair{why}: the key without a passphrase",
            )


def _lacking(loc: Loc, cert: str, key: str) -> Iterator[Finding]:
    """Files that hold nothing of what they should, one given for the other most likely."""
    for name, path, what, mark in (
        ("cert_file", cert, "certificate", b"CERTIFICATE-----"),
        ("key_file", key, "private key", b"PRIVATE KEY-----"),
    ):
        with open(path, "rb") as file:
            if mark not in file.read(_PEM_MAX):
                yield (*loc, name), f"no {what} in {path!r}: give the PEM file that holds it"


def authority(loc: Loc, path: str) -> Iterator[Finding]:
    """A file of CAs in PEM."""
    missing = list(readable(loc, path))
    yield from missing
    if not missing:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError as error:
            yield loc, f"{path!r} holds no PEM certificates ({error.reason})"


def readable(loc: Loc, path: str) -> Iterator[Finding]:
    """A file that is there, may be read and is not empty."""
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                yield loc, f"{path!r} is empty"
    except OSError as error:
        yield loc, f"{path!r} cannot be read: {error.strerror}"
