"""Trace files -> scores: what ``legato score`` computes, line by line, in bounded memory.

A trace file holds one JSON object per line (``--trace-log`` writes it).  Each line is scored by the same
code and the same deadlines as the live stream was; stalls that were marked as not the server's leave met
and missed here too.  A line that cannot be scored is reported with what is wrong with it and the mend,
and the next one is read.

Needed of a line are ``events`` or ``choices``, and deadlines unless they are given; ``end_ns`` where the
request was cut.  Beyond the documented keys it may say ``censored`` (else the outcome tells),
``finished`` (per choice: its finish reason was seen, so that the cut owes nothing) and, as the fourth and
fifth item of a mark, its choice and the time that it covers (``scoring.lanes.Mark``).  Where it says
``duration_only``, nothing was promised of its tokens: it is in no figure unless deadlines are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from scoring.deadlines import Deadlines
from scoring.outcome import Outcome, is_censored
from scoring.quantiles import rank
from scoring.score import StreamScore, without_deadlines
from scoring.sketch import LogHistogram
from scoring.trace import Choice, Mark, score

MAX_LINE: Final = 64 * 1024 * 1024
DEFAULT_TARGET: Final = 0.9
_EXACT: Final = 100_000  # values kept one by one for exact quantiles; beyond it a sketch takes over

_Ns = Annotated[int, Meta(ge=0, le=2**62)]
_Tokens = Annotated[int, Meta(ge=0, le=2**31)]
_Events = list[tuple[_Ns, _Tokens]]


class _MarkItem(Struct, array_like=True):
    at_ns: _Ns
    reason: Literal["suspect", "client_blocked"]
    missed: int = 0
    choice: int | None = None
    covered_ns: _Ns | None = None


class _Line(Struct):
    """One line of a trace file, as far as a score needs it; other keys are skipped."""

    schema: int = 1
    id: str | None = None
    ttft_deadline_ns: _Ns | None = None
    tbt_deadline_ns: Annotated[int, Meta(ge=1, le=2**62)] | None = None
    target: Annotated[float, Meta(ge=0, le=1)] = DEFAULT_TARGET
    events: _Events | UnsetType = UNSET
    choices: list[_Events] | UnsetType = UNSET
    finished: list[bool] = []
    end_ns: _Ns | None = None
    outcome: Outcome = Outcome.COMPLETED
    censored: bool | None = None
    marks: list[_MarkItem] = []
    duration_only: bool = False


_decoder = msgspec.json.Decoder(_Line)


class LineError(ValueError):
    """A line that cannot be scored; the message says why, and the mend."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is asked for instead of what the lines say; ``None``: as the line says."""

    ttft_ns: int | None = None
    tbt_ns: int | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One request of a trace file."""

    id: str
    target: float
    score: StreamScore


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that could not be scored."""

    name: str
    number: int
    why: str

    def __str__(self) -> str:
        return f"{self.name}:{self.number}: {self.why}"


def score_stream(
    stream: BinaryIO,
    name: str,
    overrides: Overrides | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> Iterator[Scored | BadLine]:
    """Score every line; blank ones are skipped.  ``advance`` is told the bytes read so far, bit by bit."""
    wanted = overrides or Overrides()
    number = 0
    while raw := stream.readline(MAX_LINE):
        number += 1
        size = len(raw)
        cut = size == MAX_LINE and not raw.endswith(b"\n")
        while cut and (more := stream.readline(MAX_LINE)):
            size += len(more)
            cut = not more.endswith(b"\n")
        advance(size)
        if size > MAX_LINE:
            yield BadLine(name, number, f"{size} bytes: a line may have {MAX_LINE}; split the trace")
        elif raw.strip():
            try:
                yield score_line(raw, wanted, default_id=f"{name}:{number}")
            except LineError as error:
                yield BadLine(name, number, str(error))


def score_line(raw: bytes, overrides: Overrides, default_id: str = "") -> Scored:
    """Score one line; ``LineError`` where that cannot be done."""
    line = _decode(raw)
    choices = _choices(line)
    censored = is_censored(line.outcome) if line.censored is None else line.censored
    target = line.target if overrides.target is None else overrides.target
    scored = score(
        choices,
        _deadlines(line, overrides),
        end_ns=_end_ns(line, choices, censored),
        censored=censored,
        target=target,
        marks=[Mark(*msgspec.structs.astuple(mark)) for mark in line.marks],
    )
    if line.duration_only and overrides.ttft_ns is None and overrides.tbt_ns is None:
        scored = without_deadlines(scored)
    return Scored(default_id if line.id is None else line.id, target, scored)


def _decode(raw: bytes) -> _Line:
    try:
        line = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").lstrip(".")
        raise LineError(
            f"{place}: {what}" if place else f"{what}: each line must be a JSON object"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineError(f"not JSON ({error}): each line must be a JSON object; was it cut off?") from error
    except RecursionError as error:
        raise LineError(
            "nested too deeply: each line must be a JSON object as --trace-log writes it"
        ) from error
    if line.schema != 1:
        raise LineError(f"schema {line.schema}: this version reads schema 1; use the version that wrote it")
    return line


def _choices(line: _Line) -> list[Choice]:
    lists = _lists(line)
    finished = line.finished + [False] * (len(lists) - len(line.finished))
    if len(finished) > len(lists):
        raise LineError(f"finished: {len(finished)} items for {len(lists)} choices; give one for each")
    choices = [Choice.of(events, done) for events, done in zip(lists, finished, strict=True)]
    for index, choice in enumerate(choices):
        back = (choice.at_ns[1:] < choice.at_ns[:-1]).nonzero()[0]
        if len(back):
            place = "events" if line.events is not UNSET else f"choices[{index}]"
            raise LineError(f"{place}[{back[0] + 1}]: arrives before the one ahead of it; sort by at_ns")
    return choices


def _lists(line: _Line) -> list[_Events]:
    if line.events is not UNSET and line.choices is UNSET:
        return [line.events]
    if line.choices is not UNSET and line.events is UNSET:
        return line.choices
    said = "neither `events` nor `choices`" if line.events is UNSET else "both `events` and `choices`"
    raise LineError(f"{said}: give one of the two, [[at_ns, tokens], ...] or a list of such lists")


def _deadlines(line: _Line, overrides: Overrides) -> Deadlines:
    ttft_ns = line.ttft_deadline_ns if overrides.ttft_ns is None else overrides.ttft_ns
    tbt_ns = line.tbt_deadline_ns if overrides.tbt_ns is None else overrides.tbt_ns
    if ttft_ns is None:
        raise LineError("no ttft_deadline_ns: give --ttft, for example --ttft 500ms")
    if tbt_ns is None:
        raise LineError("no tbt_deadline_ns: give --tbt, for example --tbt 50ms")
    return Deadlines(ttft_ns, tbt_ns)


def _end_ns(line: _Line, choices: list[Choice], censored: bool) -> int:
    last_ns = max((int(choice.at_ns[-1]) for choice in choices if len(choice.at_ns)), default=0)
    if line.end_ns is None:
        if censored:
            raise LineError("no end_ns: a request that was cut needs the moment; write it in ns since t = 0")
        return last_ns
    if line.end_ns < last_ns:
        raise LineError(f"end_ns: {line.end_ns} is before the last event at {last_ns}; both count from t = 0")
    return line.end_ns


# ---------------------------------------------------------------- what is said of requests


def seconds(ns: float | None) -> float | None:
    """Nanoseconds as seconds, to the nanosecond."""
    return None if ns is None else round(ns / 1e9, 9)


def request_json(scored: Scored) -> dict[str, Any]:
    """One request as ``legato score --json`` prints it.  ``stalls``: those that count, the cut's included."""
    one = scored.score
    tbt = one.tbt
    return {
        "id": scored.id,
        "fluidity": one.fluidity,
        "on_time_ratio": one.on_time_ratio,
        "met": one.met,
        "missed": one.missed,
        "ttft_s": seconds(one.ttft_ns),
        "tbt_s": None
        if tbt is None
        else {
            "p50": seconds(tbt.p50_ns),
            "p90": seconds(tbt.p90_ns),
            "p99": seconds(tbt.p99_ns),
            "max": seconds(tbt.max_ns),
        },
        "tpot_s": seconds(one.tpot_ns),
        "normalized_latency_s": seconds(one.normalized_ns),
        "least_tbt_s": seconds(one.least_tbt_ns),
        "stalls": one.stall_count,
        "censored": one.censored,
    }


class _Values:
    """Amounts in bounded memory, by rank: exact up to a number of values, then from a sketch.

    ``mirrored``: ratios of which the sketch holds 1 - value, as its relative error is the finer one near 1.
    """

    __slots__ = ("_limit", "_list", "_mirrored", "_sketch")

    def __init__(self, limit: int, mirrored: bool = False) -> None:
        self._limit = limit
        self._mirrored = mirrored
        self._list: list[float] = []
        self._sketch: LogHistogram | None = None

    @property
    def exact(self) -> bool:
        return self._sketch is None

    def __len__(self) -> int:
        return len(self._list) if self._sketch is None else self._sketch.count

    def add(self, value: float) -> None:
        self._list.append(value)
        if self._sketch is None and len(self._list) > self._limit:
            self._sketch = LogHistogram()
        if self._sketch is not None:
            for each in self._list:
                self._sketch.add(1 - each if self._mirrored else each)
            self._list.clear()

    def ranked(self, place: int) -> float:
        """The value of that rank, from 1 (the least) to the number of values."""
        if self._sketch is None:
            return sorted(self._list)[place - 1]
        count = self._sketch.count
        if self._mirrored:
            return 1 - (self._sketch.quantile((count + 1 - place) / count) or 0)
        return self._sketch.quantile(place / count) or 0


class Summary:
    """What is said of all requests together.

    Quantiles are nearest-rank and exact up to 100,000 requests; beyond it within 0.8% (of the miss rate,
    1 - fluidity, and of the least TBT deadline), and ``quantiles`` says which.  Requests without a
    deadline that counts (``fluidity`` null) are in ``requests`` and in nothing else.
    """

    def __init__(self, exact: int = _EXACT) -> None:
        self.requests = 0
        self.bad_lines = 0
        self._met = self._missed = self._scored = self._under = self._without = 0
        self._fluidities = _Values(exact, mirrored=True)
        self._least_ns = _Values(exact)

    def add(self, scored: Scored) -> None:
        """Count one request."""
        one = scored.score
        self.requests += 1
        if one.fluidity is None:
            return
        self._scored += 1
        self._met += one.met
        self._missed += one.missed
        self._under += one.fluidity < scored.target
        self._fluidities.add(one.fluidity)
        if one.least_tbt_ns is None:
            self._without += 1
        else:
            self._least_ns.add(one.least_tbt_ns)

    def to_json(self) -> dict[str, Any]:
        """The summary as ``legato score --json`` prints it."""
        rate, reason = self._fluid_token_rate()
        exact = self._fluidities.exact and self._least_ns.exact
        return {
            "requests": self.requests,
            "fluidity": {"p1": self._fluidity(0.01), "p50": self._fluidity(0.5)},
            "deadline_miss_rate": self._missed / (self._met + self._missed) if self._scored else None,
            "share_under_target": self._under / self._scored if self._scored else None,
            "fluid_token_rate": rate,
            "fluid_token_rate_reason": reason,
            "quantiles": "exact" if exact else "within 0.8%",
            "bad_lines": self.bad_lines,
        }

    def _fluidity(self, q: float) -> float | None:
        if not self._scored:
            return None
        return self._fluidities.ranked(rank(q, self._scored))

    def _fluid_token_rate(self) -> tuple[float | None, str | None]:
        """1 / the 99th percentile of the least TBT deadline, those without one counting as infinite."""
        if not self._scored:
            return None, "no stream was scored"
        place = rank(0.99, self._scored)
        if place > len(self._least_ns):
            short = f"{self._without} of {self._scored} streams"
            return None, f"TTFT: {short} reach their target with no TBT deadline"
        return 1e9 / self._least_ns.ranked(place), None
