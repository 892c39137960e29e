"""Errors that cross a seam of the proxy, each with the side that is to blame.

    ProxyError                 source
    ├── UpstreamError          UPSTREAM    no connection to the server behind, for whatever reason
    └── ConfigError            SELF        the configuration cannot be used

An error is translated once, where it enters, and is not wrapped again on its way.  What happens within a
callback of the wire is no exception: a sink hears of it as a word of ``Facts.end``.
"""

from enum import Enum


class Source(Enum):
    """Who is to blame."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    SELF = "self"


class ProxyError(Exception):
    """Base of the tree; ``source`` says whose fault it is."""

    source = Source.SELF


class UpstreamError(ProxyError):
    """The server behind failed; ``end`` is a word of ``Facts.end``, ``code`` one of the replies."""

    source = Source.UPSTREAM

    def __init__(self, end: str, code: str) -> None:
        super().__init__(code)
        self.end = end
        self.code = code


class ConfigError(ProxyError):
    """The configuration cannot be used."""
