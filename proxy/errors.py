"""Errors that cross a seam of the proxy, each with the side that is to blame.

    ProxyError                 source
    ├── ClientError            CLIENT      the request cannot be served as it was sent
    ├── UpstreamError          UPSTREAM    the server behind failed
    │   ├── ConnectFailed                  refused, unreachable, name unknown, TLS refused
    │   ├── NoResponse                     closed before a response head
    │   ├── BadResponse                    what it sent is not HTTP
    │   ├── Truncated                      died inside the body
    │   └── UpstreamTimeout                connect, first byte or idle
    └── SelfError              SELF        our own limit or failure
        ├── PoolFull                       every allowed connection is taken
        └── ConfigError                    the configuration cannot be used

An error is translated once, where it enters, and is not wrapped again on its way.
"""

from enum import Enum


class Source(Enum):
    """Who is to blame."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    SELF = "self"


CLIENT, UPSTREAM, SELF = Source.CLIENT, Source.UPSTREAM, Source.SELF


class ProxyError(Exception):
    """Base of the tree; ``source`` says whose fault it is."""

    source = SELF


class ClientError(ProxyError):
    """The request cannot be served as it was sent; ``status`` is what the client is told."""

    source = CLIENT

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UpstreamError(ProxyError):
    """The server behind failed; ``end`` is a word of ``Facts.end``, ``code`` one of the replies."""

    source = UPSTREAM

    def __init__(self, end: str, code: str) -> None:
        super().__init__(code)
        self.end = end
        self.code = code


class ConnectFailed(UpstreamError):
    """No connection: refused, unreachable, unknown name, TLS refused."""


class NoResponse(UpstreamError):
    """The connection ended before a response head."""


class BadResponse(UpstreamError):
    """What the server sent is not HTTP."""


class Truncated(UpstreamError):
    """The server died inside the body."""


class UpstreamTimeout(UpstreamError):
    """``phase``: connect, first_byte or idle."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"timeout_{phase}", f"{phase}_timeout")


class SelfError(ProxyError):
    """Our own limit or failure."""

    source = SELF


class PoolFull(SelfError):
    """Every connection that the settings allow is taken."""


class ConfigError(SelfError):
    """The configuration cannot be used."""
