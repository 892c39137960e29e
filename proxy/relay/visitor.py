"""Whose request it is, by address: the peer's, or what proxies that are trusted say.  Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from proxy.relay.headers import Fields

_MAPPED: Final = "::ffff:"
#: Characters of an address with its port; what is longer is none, and is not remembered.
_LONGEST: Final = 64
#: Addresses that are remembered, each with what it means: to read one takes microseconds.
_REMEMBERED: Final = 1024


def visitor(fields: Fields, peer: tuple[str, int] | None, trusts: Callable[[str], bool]) -> bytes | None:
    """The client's address; ``None`` for a peer that has none (a Unix socket).

    ``X-Forwarded-For`` is read from its end, as far as those who wrote it are trusted: what stands before the
    first who is not, anybody may have written.  What is no address ends it too.
    """
    if peer is None:
        return None
    known = _plain(peer[0])
    if trusts(known):
        for told in reversed(_forwarded(fields)):
            address = _address(told) if len(told) <= _LONGEST else None
            if address is None:
                break
            known = address
            if not trusts(known):
                break
    return known.encode()


def remembering(trusts: Callable[[tuple[str, int] | None], bool]) -> Callable[[str], bool]:
    """``trusts`` by address, with a bounded memory."""
    return lru_cache(_REMEMBERED)(lambda address: trusts((address, 0)))


def _forwarded(fields: Fields) -> list[str]:
    """Every hop of every ``X-Forwarded-For``, in order."""
    values = [value for name, value in fields if len(name) == 15 and name.lower() == b"x-forwarded-for"]
    return b",".join(values).decode("latin-1").split(",") if values else []


@lru_cache(_REMEMBERED)
def _address(told: str) -> str | None:
    """An address in its one form; some proxies write a port behind it."""
    text = told.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if address.version == 6 else None
    return _plain(str(address if mapped is None else mapped))


def _plain(address: str) -> str:
    """An IPv4 address that came by a socket for IPv6 is the same client's."""
    mapped = address[len(_MAPPED) :] if address.startswith(_MAPPED) else ""
    return mapped if "." in mapped else address.partition("%")[0]
