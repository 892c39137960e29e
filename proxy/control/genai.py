"""What the GenAI conventions measure of calls of a model, in their buckets: fed only where it is exported.

A sink: one pass over a stream's arrivals in bulk, never one record a chunk.  Per set of attributes
(operation, provider, model, server) integer buckets, cumulative since the control process began; models are
named as the ledger's cap allows, and beyond ``SET_LIMIT`` sets everything is one more, ``other``.  The two
that count each call once name a kept trace in each bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from proxy.control.buckets import Buckets
from proxy.control.exemplars import shown_by
from proxy.control.labels import GroupCap
from proxy.control.settle import NONE, Settled
from proxy.control.snapshot import Hist
from proxy.control.tokens import Int64s
from proxy.exporters.catalog import GROUP_LIMIT, OTHER
from proxy.exporters.otel.calls import Call, call_of, called, client_error, first_chunk_ns, issued_ns
from proxy.exporters.rows import clean
from proxy.link import BackendSpec
from scoring.trace import Choice

#: The conventions' boundaries: 0.01 s doubling to 81.92 s, and 1 token times 4 to 67,108,864.
SECONDS: Final = tuple(2**step / 100 for step in range(14))
TOKENS: Final = tuple(float(4**step) for step in range(14))
#: At most so many sets of attributes, the one for the rest included.
SET_LIMIT: Final = GROUP_LIMIT
#: At most so many kinds of error each; the conventions' word for the others.
ERROR_LIMIT: Final = 16
OTHER_ERROR: Final = "_OTHER"


class CallSet(NamedTuple):
    """The attributes that all four histograms have; ``address`` a host as configured, or a socket's path."""

    operation: str
    provider: str
    model: str | None = None
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class CallStats:
    """What was counted of one set: seconds, but for the two of tokens.  ``durations`` by kind of error."""

    attributes: CallSet
    durations: dict[str | None, Hist]
    first_chunk: Hist
    output_chunk: Hist
    input_tokens: Hist
    output_tokens: Hist


class _Book:
    __slots__ = ("durations", "first_chunk", "input_tokens", "output_chunk", "output_tokens")

    def __init__(self) -> None:
        self.durations: dict[str | None, Buckets] = {}
        self.first_chunk = Buckets(SECONDS)
        self.output_chunk = Buckets(SECONDS)
        self.input_tokens = Buckets(TOKENS)
        self.output_tokens = Buckets(TOKENS)

    def took(self, seconds: float, error: str | None) -> Buckets:
        if error is not None and error not in self.durations and len(self.durations) >= ERROR_LIMIT:
            error = OTHER_ERROR
        buckets = self.durations.get(error)
        if buckets is None:
            buckets = self.durations[error] = Buckets(SECONDS)
        buckets.add(seconds)
        return buckets

    def freeze(self, attributes: CallSet) -> CallStats:
        return CallStats(
            attributes,
            {error: buckets.freeze() for error, buckets in self.durations.items()},
            self.first_chunk.freeze(),
            self.output_chunk.freeze(),
            self.input_tokens.freeze(),
            self.output_tokens.freeze(),
        )


class GenAi:
    """See the module.  ``cap``: the ledger's, which has booked a batch before it comes here; ``backends``:
    those in force; ``exemplars``: whether traces are named, to be called after who keeps them."""

    def __init__(
        self,
        cap: GroupCap,
        backends: Callable[[], Sequence[BackendSpec]],
        limit: int = SET_LIMIT,
        *,
        exemplars: bool = True,
    ) -> None:
        self._cap = cap
        self._backends = backends
        self._limit = limit
        self._exemplars = exemplars
        self._read: Sequence[BackendSpec] | None = None  # what ``_servers`` was made of
        self._servers: dict[str, tuple[str, int | None]] = {}
        self._books: dict[CallSet, _Book] = {}

    def __call__(self, batch: Sequence[Settled], /) -> None:
        """Count those of a batch that called a model."""
        for settled in batch:
            call = call_of(settled.facts)
            if call is not None and called(settled.facts):
                self._count(settled, self._book(self._set_of(settled, call)))

    def freeze(self) -> tuple[CallStats, ...]:
        """All that was counted, in the order in which the sets came."""
        return tuple(book.freeze(attributes) for attributes, book in self._books.items())

    def _count(self, settled: Settled, book: _Book) -> None:
        facts, usage = settled.facts, settled.usage
        error = client_error(settled)
        seconds = max(facts.end_ns - issued_ns(facts), 0) / 1e9
        shown = shown_by(settled) if self._exemplars else None
        durations = book.took(seconds, None if error is None else clean(error))
        if shown is not None:
            durations.exemplify(seconds, *shown)
        if usage.prompt is not None:
            book.input_tokens.add(usage.prompt)
        if usage.output is not None:
            book.output_tokens.add(usage.output)
        first_ns = first_chunk_ns(facts)
        if first_ns is not None:
            book.first_chunk.add(first_ns / 1e9)
            if shown is not None:
                book.first_chunk.exemplify(first_ns / 1e9, *shown)
        if settled.counted is not None:
            between_ns = chunk_gaps(settled.counted.choices)
            if len(between_ns):
                book.output_chunk.add_many_ns(between_ns)

    def _set_of(self, settled: Settled, call: Call) -> CallSet:
        model = self._cap.admit(settled.group, new=False).model
        address, port = self._server(settled.facts.backend)
        return CallSet(call.operation, call.provider, None if model == NONE else model, address, port)

    def _server(self, backend: str | None) -> tuple[str | None, int | None]:
        backends = self._backends()
        if backends is not self._read:
            self._read = backends
            self._servers = {spec.name: server_of(spec) for spec in backends}
        return self._servers.get(backend or "", (None, None))

    def _book(self, key: CallSet) -> _Book:
        book = self._books.get(key)
        if book is None:
            if len(self._books) >= self._limit - 1:
                key = CallSet(OTHER, OTHER, OTHER)
            book = self._books.setdefault(key, _Book())
        return book


def server_of(spec: BackendSpec) -> tuple[str, int | None]:
    """A backend's address and port as configured, never as resolved; of a socket its path alone."""
    if spec.uds is not None:
        return spec.uds, None
    url = urlsplit(spec.url)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def chunk_gaps(choices: Sequence[Choice]) -> Int64s:
    """Nanoseconds from each event with output to the next, whichever choice they belong to.

    Of a thinned stream those between the arrivals that were kept.
    """
    arrivals = [choice.at_ns for choice in choices if len(choice.at_ns)]
    if not arrivals:
        return np.empty(0, dtype=np.int64)
    at_ns: Int64s = arrivals[0] if len(arrivals) == 1 else np.sort(np.concatenate(arrivals))
    return at_ns[1:] - at_ns[:-1]
