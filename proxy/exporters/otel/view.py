"""One request as the rows of ``names.py`` see it, and under which versions of the conventions.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from proxy.control.settle import Settled
from proxy.exporters.otel.calls import (
    Call,
    answered,
    call_of,
    client_error,
    first_chunk_ns,
    path_of,
    route_of,
    server_error,
)
from proxy.link import Asked, Facts, Stream, Usage
from scoring.score import StreamScore

When = Literal["", "http/dup", "not gen_ai_latest_experimental"]
Kept = Literal["sampled", "bad"]

#: Characters of a text attribute; a longer one is cut.
TEXT_LIMIT: Final = 512
OTHER_METHOD: Final = "_OTHER"
#: RFC 9110, and PATCH of RFC 5789.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_INT64_MAX: Final = 2**63 - 1
_NOTHING_ASKED: Final = Asked()
_NO_USAGE: Final = Usage()


@dataclass(frozen=True, slots=True)
class Conventions:
    """Which versions of the conventions are spoken: see ``README.md``."""

    http_dup: bool = False
    genai_latest: bool = False
    methods: frozenset[str] = METHODS

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Conventions:
        """By ``OTEL_SEMCONV_STABILITY_OPT_IN`` and ``OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS``."""
        said = {word.strip() for word in environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")}
        methods = environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "").replace(",", " ").split()
        return cls(
            http_dup="http/dup" in said,
            genai_latest="gen_ai_latest_experimental" in said,
            methods=frozenset(methods) or METHODS,
        )

    def speaks(self, when: When) -> bool:
        """Whether attributes of this condition are written."""
        if when == "http/dup":
            return self.http_dup
        return when == "" or not self.genai_latest


class Server(NamedTuple):
    """A backend as configured: ``address`` a host, or a socket's path (then no port)."""

    scheme: str
    address: str
    port: int | None = None
    base: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One request as the rows see it."""

    settled: Settled
    kept: Kept
    facts: Facts
    stream: Stream | None
    score: StreamScore | None
    asked: Asked
    usage: Usage
    call: Call | None
    route: str | None
    method: str
    scheme: str
    server: Server | None
    peer: tuple[str, int | None] | None

    @property
    def error(self) -> str | None:
        """``error.type`` of the request as its client saw it."""
        return server_error(self.settled)

    @property
    def call_error(self) -> str | None:
        """``error.type`` of the call to the upstream."""
        return client_error(self.settled)

    @property
    def original_method(self) -> str | None:
        """A method that is not known, cut to a bound; ``None`` of what was no HTTP, too."""
        return self.facts.method[:32] or None if self.method == OTHER_METHOD else None

    @property
    def path(self) -> str | None:
        """The path without its query string; ``None`` of what was no HTTP."""
        return text(path_of(self.facts))

    @property
    def plain_method(self) -> str | None:
        """The method, where no model was called: then the CLIENT span is one of HTTP."""
        return self.method if self.call is None else None

    @property
    def plain_status(self) -> int | None:
        """The upstream's status, where no model was called."""
        return answered(self.facts) if self.call is None else None

    @property
    def plain_url(self) -> str | None:
        """The URL upstream without its query, where no model was called."""
        server = self.server
        if server is None or self.call is not None or server.address.startswith("/"):
            return None
        host = f"[{server.address}]" if ":" in server.address else server.address
        port = "" if server.port is None else f":{server.port}"
        return text(f"{server.scheme}://{host}{port}{server.base}{path_of(self.facts)}")

    @property
    def model(self) -> str | None:
        """The model as the client names it, where one was called."""
        return None if self.call is None else text(self.settled.model)

    @property
    def first_chunk_ns(self) -> int | None:
        """From the CLIENT span's start to the first event of a model's stream."""
        return None if self.call is None else first_chunk_ns(self.facts)

    @property
    def server_address(self) -> str | None:
        """The backend as configured, else who answered."""
        if self.server is not None:
            return self.server.address
        return None if self.peer is None else self.peer[0]

    @property
    def server_port(self) -> int | None:
        """The port of that."""
        if self.server is not None:
            return self.server.port
        return None if self.peer is None else self.peer[1]

    @property
    def finish_reasons(self) -> list[str] | None:
        """As the response says; nothing where it said nothing."""
        reason = None if self.stream is None else self.stream.finish_reason
        return [reason] if reason and reason != "unstated" else None

    @property
    def fluidity(self) -> float | None:
        """As in the record."""
        score = self.score
        return None if score is None or score.fluidity is None else round(score.fluidity, 6)

    def promised(self, deadline_ns: int) -> float | None:
        """A deadline of tokens in seconds, where the SLO promises any."""
        return None if self.settled.duration_only else round(deadline_ns * 1e-9, 6)

    @property
    def deadlines(self) -> int | None:
        """Every deadline that fell due."""
        score = self.score
        return None if score is None else score.met + score.missed + score.suspect + score.client_blocked


def view_of(
    settled: Settled,
    kept: Kept,
    conventions: Conventions,
    *,
    scheme: str = "http",
    server: Server | None = None,
) -> View:
    """What the rows read; ``scheme``: of our own listener, ``server``: the backend as configured."""
    facts = settled.facts
    stream = facts.stream
    return View(
        settled=settled,
        kept=kept,
        facts=facts,
        stream=stream,
        score=settled.score,
        asked=facts.asked or _NOTHING_ASKED,
        usage=_NO_USAGE if stream is None else stream.usage,
        call=call_of(facts),
        route=route_of(path_of(facts)).name,
        method=facts.method if facts.method in conventions.methods else OTHER_METHOD,
        scheme=scheme,
        server=server,
        peer=_peer(facts.upstream_addr),
    )


def _peer(address: str | None) -> tuple[str, int | None] | None:
    """``host:port``, ``[host]:port`` or a socket's path, in its parts."""
    if not address:
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or address.startswith("/"):
        return address, None
    return host.strip("[]"), int(port)


def text(value: str | None) -> str | None:
    """Cut to a bound; ``None`` for nothing."""
    return value[:TEXT_LIMIT] if value else None


def seconds(duration_ns: int | float | None) -> float | None:
    """Nanoseconds as seconds, rounded to the microsecond."""
    return None if duration_ns is None else round(duration_ns * 1e-9, 6)


def count(value: int | None) -> int | None:
    """What OTLP can carry (64 bits, signed); clients may ask for anything."""
    return value if value is not None and 0 <= value <= _INT64_MAX else None


def real(value: float | None) -> float | None:
    """A number as a float, also where a whole one was given."""
    return None if value is None else float(value)
