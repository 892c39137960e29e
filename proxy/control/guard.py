"""Who may read the admin API.

``/healthz``, ``/readyz`` and ``/metrics`` are open.  For the rest: with a token, everybody must send it;
without one, only clients on this host are served, and only under a name that means this host (else a web
page could reach the API through a name that it lets resolve to 127.0.0.1).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from typing import Final

from fastapi import Request

from proxy.control.queries import only_known
from proxy.control.schema import ApiError

_MEND_403: Final = (
    "set admin.token_file (or LEGATO_ADMIN__TOKEN) and send 'Authorization: Bearer TOKEN', "
    "or ask from this host by 127.0.0.1 or localhost"
)

_MEND_401: Final = (
    "send 'Authorization: Bearer TOKEN' with the token of admin.token_file, for changes that of "
    "admin.write_token_file"
)


class Guard:
    """A dependency of every route that is not open.  ``token`` is read at each request: a reload counts."""

    _for = "reading"

    def __init__(self, token: Callable[[], str | None]) -> None:
        self._token = token

    def __call__(self, request: Request) -> None:
        """Pass, or raise ``ApiError`` 401, 403 or (parameters that nobody knows) 422."""
        self._let_in(request)
        only_known(request)

    def _let_in(self, request: Request) -> None:
        token = self._token()
        if token is None:
            self._only_this_host(request)
            return
        header = request.headers.get("authorization", "")
        scheme, _, given = header.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if not (token and same and scheme.lower() == "bearer"):  # an empty token is nobody's
            raise ApiError(401, self._missing(header), _MEND_401, {"www-authenticate": "Bearer"})

    def _missing(self, header: str) -> str:
        """What is wrong with an Authorization header that lets nobody in; nothing of it is repeated."""
        scheme, _, given = header.partition(" ")
        if not given.strip():
            return "this API needs its token"
        if scheme.lower() != "bearer":
            return "the Authorization header is not of the scheme Bearer"
        return f"the token that was sent is not the one for {self._for}"

    def changes(self, write_token: Callable[[], str | None]) -> Changes:
        """The same for routes that change something, which may have a token of their own."""
        return Changes(self._token, write_token)

    @staticmethod
    def _only_this_host(request: Request) -> None:
        client = request.client
        if client is not None and client.host and not is_loopback(client.host):
            raise ApiError(403, f"no token is configured, and {client.host} is not this host", _MEND_403)
        host = host_of(request.headers.get("host", "localhost"))
        if not is_loopback(host):
            raise ApiError(
                403, "no token is configured, and the Host header does not name this host", _MEND_403
            )


class Changes(Guard):
    """A dependency of every route that changes something.

    With a token for changes, that one; else as for reading.  The body must be JSON by its type: a page in a
    browser on this host can send other types without being asked whether it may.
    """

    _for = "changes"

    def __init__(self, token: Callable[[], str | None], write_token: Callable[[], str | None]) -> None:
        super().__init__(lambda: write_token() or token())

    def __call__(self, request: Request) -> None:
        """Pass, or raise ``ApiError`` 401, 403, 415 or 422."""
        super().__call__(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "changes are asked for in JSON", "send 'Content-Type: application/json'")


def host_of(header: str) -> str:
    """The host of a Host header, without brackets and port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def is_loopback(host: str) -> bool:
    """Whether an address or name means this host."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
