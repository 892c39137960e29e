"""Random small requests on an integer clock, with ties, boundaries and everything that can be odd."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from scoring.lanes import Choice, Excluded
from tests.scoring.oracle import Sequence_, Span


@dataclass
class Request:
    """What both the code under test and the oracle are given."""

    sequences: list[Sequence_]
    dp: int
    dd: int
    end: int
    censored: bool
    spans: list[Span]

    @property
    def cut(self) -> int | None:
        return self.end if self.censored else None

    @property
    def choices(self) -> list[Choice]:
        return [Choice.of(each.events, each.finished) for each in self.sequences]

    @property
    def excluded(self) -> list[Excluded]:
        return [Excluded(low, high, why) for low, high, why in self.spans]  # type: ignore[arg-type]


@st.composite
def sequences(draw: st.DrawFn) -> Sequence_:
    gaps = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=14))
    at, events = 0, []
    for gap, tokens in gaps:
        at += gap
        events.append((at, tokens))
    return Sequence_(events, draw(st.booleans()))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    low = draw(st.integers(0, 120))
    return low, low + draw(st.integers(0, 40)), draw(st.sampled_from(["client_blocked", "suspect"]))


@st.composite
def requests(draw: st.DrawFn, with_spans: bool = True) -> Request:
    several = draw(st.lists(sequences(), min_size=1, max_size=3))
    last = max((at for each in several for at, _ in each.events), default=0)
    return Request(
        several,
        dp=draw(st.integers(0, 40)),
        dd=draw(st.integers(1, 20)),
        end=last + draw(st.integers(0, 40)),
        censored=draw(st.booleans()),
        spans=draw(st.lists(spans(), max_size=3)) if with_spans else [],
    )
