"""The record of one request: the access log's line, the admin API's object, and what hangs on it.

Names and order of the fields are a promise (schema 1): they are the JSON, in this order.  Times ending in
``_s`` are seconds (floats, rounded to microseconds), ``*_ns`` integer nanoseconds.  A record never holds a
prompt, an answer, a query string or a header that was not named in the configuration.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

SCHEMA: Final = 1


class TbtSeconds(Struct, frozen=True):
    """Time between tokens: quantiles of one request's gaps."""

    p50: float
    p90: float
    p99: float
    max: float


class WorstStall(Struct, frozen=True):
    """The latest of the late tokens.  ``at_s``: when the gap began, since t = 0."""

    at_s: float
    late_s: float
    missed: int


class RawScore(Struct, frozen=True):
    """The score before stalls that were not the server's were taken out."""

    fluidity: float | None
    met: int
    missed: int


class ProxyShare(Struct, frozen=True):
    """What Legato itself, and the client, did to this request."""

    received_to_sent_s: float | None
    pool_wait_s: float
    connect_s: float
    forward_p99_s: float
    client_blocked_s: float
    loop_lag_max_s: float
    attempts: int


class Record(Struct, frozen=True, kw_only=True):
    """One finished request."""

    schema: int = SCHEMA
    time: Annotated[str, Meta(description="When the request's head arrived, ISO 8601, UTC.")]
    id: str
    request_id: str | None
    response_id: str | None
    trace_id: str | None
    instance: str
    tags: dict[str, str]
    method: str
    path: Annotated[str, Meta(description="Never with the query string.")]
    status: int | None
    stream: bool
    dialect: str | None
    model: str | None
    backend: str | None
    upstream_addr: str | None
    experiment: Annotated[
        str | None,
        Meta(description="The running experiment whose split assigned it; forced requests are in none."),
    ]
    assigned: Annotated[
        str | None,
        Meta(description="The backend that it was to go to, where it went to another one (failover)."),
    ] = None
    slo: str
    slo_result: str
    slo_reasons: list[str]
    outcome: str
    finish_reason: str | None
    error: str | None
    censored: bool
    suspect: bool
    prompt_tokens: int
    cached_tokens: int | None
    prompt_tokens_source: Annotated[str, Meta(description="usage | estimated")]
    output_tokens: int | None
    tokens_observed: int | None
    tokens_reported: int | None
    tokens_source: str | None
    events: int | None
    tokens_per_event: Annotated[float | None, Meta(description="As scored: what was apportioned included.")]
    thinned: bool
    unmeasured: str | None
    ttft_target_s: Annotated[
        float | None,
        Meta(description="null where the SLO promises the duration only (`e2e`): no deadline was owed."),
    ]
    tbt_target_s: Annotated[float | None, Meta(description="Likewise.")]
    ttft_s: Annotated[float | None, Meta(description="The first token of any kind, since t = 0.")]
    connected_s: Annotated[
        float | None,
        Meta(description="When the connection was ready (a kept one: taken), since t = 0: negative or 0."),
    ]
    first_byte_s: Annotated[
        float | None, Meta(description="The response's first byte; a 1xx before the response is one too.")
    ]
    head_s: Annotated[
        float | None,
        Meta(description="The response's head was complete.  Servers send it before, or after, prefill."),
    ]
    first_event_s: Annotated[
        float | None, Meta(description="The first event of any kind: a role, progress or usage is one too.")
    ]
    first_reasoning_s: Annotated[float | None, Meta(description="The first reasoning token.")]
    first_answer_s: Annotated[float | None, Meta(description="The first token of answer text.")]
    first_tool_s: Annotated[float | None, Meta(description="The first token of a tool call's arguments.")]
    tbt_s: TbtSeconds | None
    tpot_s: float | None
    normalized_latency_s: float | None
    duration_s: float
    fluidity: float | None
    on_time_ratio: float | None
    met: int | None
    missed: int | None
    late_s: float | None
    least_tbt_s: float | None
    stalls: int | None
    raw: RawScore | None
    worst_stall: WorstStall | None
    proxy: ProxyShare


class TimelineEvent(Struct, frozen=True):
    """One event that carried output.

    ``deadline_s`` is that of its first token under the rule that was applied; ``slack_s`` what was left of
    it (negative: late by that much), ``missed`` the deadlines that passed meanwhile.  ``None`` and 0 where
    the SLO promises the duration only.
    """

    at_s: float
    tokens: int
    choice: int
    deadline_s: float | None
    slack_s: float | None
    missed: int


class TimelineStall(Struct, frozen=True):
    """A late token.  ``reason`` is set where the stall was not the server's and was taken out."""

    at_s: float
    late_s: float
    missed: int
    choice: int
    reason: str | None


class Timeline(Struct, frozen=True):
    """The arrivals of one stream against their deadlines, since t = 0."""

    ttft_target_s: float | None
    tbt_target_s: float | None
    end_s: float
    censored: bool
    events: list[TimelineEvent]
    stalls: list[TimelineStall]
    thinned: bool


class TraceLine(Struct, frozen=True, kw_only=True):
    """One line of the trace file, from which a score can be computed again."""

    schema: int = SCHEMA
    id: str
    t0_unix_ns: int
    backend: str | None
    model: str | None
    slo: str
    prompt_tokens: int
    ttft_deadline_ns: int
    tbt_deadline_ns: int
    target: float
    tokens_source: str
    events: list[tuple[int, int]] | msgspec.UnsetType = msgspec.UNSET
    choices: list[list[tuple[int, int]]] | msgspec.UnsetType = msgspec.UNSET
    end_ns: int
    outcome: str
    marks: list[tuple[int | str | None, ...]]  # scoring.lanes.Mark
    thinned: bool
    censored: bool
    #: Per choice, where the end was a cut: its finish reason had gone by, nothing more was owed.
    finished: list[bool] | msgspec.UnsetType = msgspec.UNSET
    #: The SLO promises nothing of tokens: the deadlines are the defaults, and count where they are asked for.
    duration_only: bool | msgspec.UnsetType = msgspec.UNSET


def seconds(duration_ns: int | float) -> float:
    """Nanoseconds as seconds, rounded to the microsecond."""
    return round(duration_ns * 1e-9, 6)


def maybe_seconds(duration_ns: int | float | None) -> float | None:
    """As ``seconds``; ``None`` stays ``None``."""
    return None if duration_ns is None else round(duration_ns * 1e-9, 6)


@lru_cache(maxsize=64)
def _iso_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def iso_time(unix_ns: int) -> str:
    """Wall-clock nanoseconds as ISO 8601 in UTC with milliseconds and a Z."""
    unix_ms = unix_ns // 1_000_000
    return f"{_iso_second(unix_ms // 1000)}.{unix_ms % 1000:03d}Z"
