"""One POST, as all notifiers over HTTP make it.

A connection of its own for each attempt (alerts are rare, and a connection that went stale costs an
attempt), one deadline over all of it, no redirects, no cookies, no proxy from the environment, and at most
``READ_MOST`` bytes of an answer.  Below httpx's client, since that logs every URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from proxy.control.notify.base import Outcome
from proxy.units import format_duration

if TYPE_CHECKING:
    import httpx

READ_MOST: Final = 64 * 1024
_CLOSE_S: Final = 0.5
#: Answers after which another attempt may succeed, beside those from 500 on.
_AGAIN: Final = (408, 425, 429)


class Answer(Struct, frozen=True):
    """``body``: what was read of it; ``whole``: that is all of it: it neither broke off nor was longer than
    ``READ_MOST``; ``retry_after``: as it came."""

    status: int
    body: bytes
    whole: bool
    retry_after: str | None

    @property
    def ok(self) -> bool:
        """It was taken."""
        return 200 <= self.status < 300


class Post:
    """Posts to one URL.  Neither it nor what it raises shows the URL."""

    def __init__(self, url: str, timeout_ns: int, version: str, unix_ns: Callable[[], int]) -> None:
        import httpx  # only where somebody is told over HTTP

        self._url: httpx.URL | None = None
        with contextlib.suppress(httpx.InvalidURL, UnicodeError):  # a name that no DNS can have
            self._url = httpx.Request("POST", url).url
        self._timeout_ns = timeout_ns
        self._unix_ns = unix_ns
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"legato/{version}",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    async def __call__(self, body: bytes, headers: Mapping[str, str]) -> Outcome | Answer:
        """An answer, or where there was none, what came instead."""
        import httpx

        if self._url is None:
            return Outcome(taken=False, said="its host is no name")
        request = httpx.Request("POST", self._url, headers={**self._headers, **headers}, content=body)
        try:
            transport = self._transport(self._url.scheme == "https")
        except OSError as error:  # no more files may be opened: of a module, or of the authorities
            return Outcome(taken=False, said=_said(error), again=True)
        response: httpx.Response | None = None
        got, whole = bytearray(), False
        said = ""
        try:
            async with asyncio.timeout(self._timeout_ns / 1e9):
                response = await transport.handle_async_request(request)
                whole = await _read(response, got)
        except TimeoutError:
            said = f"no answer within {format_duration(self._timeout_ns)}"
        except (httpx.HTTPError, OSError) as error:
            said = _said(error)
        finally:
            with contextlib.suppress(TimeoutError, httpx.HTTPError, OSError):
                async with asyncio.timeout(_CLOSE_S):
                    await transport.aclose()
        if response is None:
            return Outcome(taken=False, said=said, again=True)
        # What was taken was taken, however its body ends.
        return Answer(response.status_code, bytes(got), whole, response.headers.get("Retry-After"))

    @staticmethod
    def _transport(tls: bool) -> httpx.AsyncHTTPTransport:
        import httpx

        return httpx.AsyncHTTPTransport(
            verify=tls_context() if tls else False, trust_env=False, limits=httpx.Limits(max_connections=1)
        )

    def outcome(self, answer: Outcome | Answer) -> Outcome:
        """What an answer's status means."""
        if isinstance(answer, Outcome):
            return answer
        said = f"answered {answer.status}"
        if answer.ok:
            return Outcome(taken=True, said=said)
        if 300 <= answer.status < 400:
            return Outcome(taken=False, said=f"{said}, a redirect, and none is followed")
        again = answer.status in _AGAIN or answer.status >= 500
        return Outcome(
            taken=False, said=said, again=again, wait_ns=patience_ns(answer.retry_after, self._unix_ns())
        )


_kept: list[ssl.SSLContext] = []


def tls_context() -> ssl.SSLContext:
    """The system's authorities (OpenSSL's own variable ``SSL_CERT_FILE`` names others).

    Kept once it has any: one that was made while no file could be opened would trust nobody for ever.
    """
    if _kept:
        return _kept[0]
    context = ssl.create_default_context()
    if context.cert_store_stats()["x509_ca"]:
        _kept.append(context)
    return context


def patience_ns(text: str | None, unix_ns: int) -> int | None:
    """``Retry-After``, seconds or a date -> nanoseconds from now; ``None`` if it is neither."""
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit() and len(text) < 12:
        return int(text) * 1_000_000_000
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(int(moment.timestamp() * 1e9) - unix_ns, 0)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


async def _read(response: httpx.Response, into: bytearray) -> bool:
    """At most ``READ_MOST`` bytes; whether that is all of it."""
    try:
        async for part in response.aiter_raw():
            room = READ_MOST - len(into)
            into += part[:room]
            if len(part) > room:
                return False
    finally:
        await response.aclose()
    return True


def _said(error: BaseException) -> str:
    """Our words for why there was no answer; the error's own text may hold the URL."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(seen, ConnectionRefusedError):
            return "it refuses connections"
        if isinstance(seen, ssl.SSLCertVerificationError):
            return "its certificate is not trusted"
        if isinstance(seen, ssl.SSLError):
            return "TLS failed"
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE):
            return "this process may open no more files"
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        elif seen is not None:
            seen = seen.__cause__ or seen.__context__
    name = type(error).__name__
    if name == "ConnectError":
        return "it cannot be reached"
    if name in ("RemoteProtocolError", "DecodingError"):
        return "it closed the connection, or what it answers is no HTTP"
    return f"the connection broke ({name})"
