"""How a request ended, in one word, and what that means for its objective.

Pure tables.  The rules are those of the reference ("Outcome and result of a request"); where it leaves a
choice, the README of this folder says what was chosen and why.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    CLIENT_CANCELLED = "client_cancelled"
    REJECTED = "rejected"
    OVERLOADED = "overloaded"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    PROXY_ERROR = "proxy_error"


class SloResult(StrEnum):
    """What a request counts as in its objective; excluded ones count in neither part nor whole."""

    GOOD = "good"
    BAD = "bad"
    EXCLUDED = "excluded"


#: Ends that the wire alone decides.
_BY_END = {
    "truncated": Outcome.UPSTREAM_ERROR,
    "connect_failed": Outcome.UPSTREAM_ERROR,
    "no_response": Outcome.UPSTREAM_ERROR,
    "bad_response": Outcome.UPSTREAM_ERROR,
    "timeout_connect": Outcome.TIMEOUT,
    "timeout_first_byte": Outcome.TIMEOUT,
    "timeout_idle": Outcome.TIMEOUT,
    "pool_full": Outcome.OVERLOADED,
    "refused": Outcome.REJECTED,
    "self": Outcome.PROXY_ERROR,
}
_BY_STATUS = {
    408: Outcome.TIMEOUT,
    429: Outcome.OVERLOADED,
    503: Outcome.OVERLOADED,
    504: Outcome.TIMEOUT,
}
_FAILED = frozenset({Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.PROXY_ERROR})
_CUT = frozenset({Outcome.CLIENT_CANCELLED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.PROXY_ERROR})


def classify(
    *,
    end: str,
    status: int | None,
    streamed: bool,
    generic: bool,
    finished: bool,
    error_event: bool,
    tokens: int,
    measured: bool = True,
) -> Outcome:
    """The outcome of a request.

    ``end``: how it ended on the wire, one of ``complete``, ``client_left`` and the ends in ``_BY_END``
    (``ValueError`` for any other); ``status``: what the client was told, ``None`` if nothing;
    ``streamed``: the response was an event stream, ``generic``: of no known dialect; ``finished``: its
    dialect's own end was seen; ``measured`` false: nobody saw, so that a clean end has to do.
    """
    if end in _BY_END:
        return _BY_END[end]
    if end not in ("complete", "client_left"):
        known = ", ".join(("complete", "client_left", *_BY_END))
        raise ValueError(f"end {end!r} is none of: {known}")
    if status is not None and status >= 400:
        return _of_error(status)
    if end == "client_left" and not finished and not error_event:
        return Outcome.CLIENT_CANCELLED  # who leaves after an error event was told of an error
    if status is None or status < 200:
        return Outcome.PROXY_ERROR if status is None else Outcome.UPSTREAM_ERROR
    if error_event:
        return Outcome.UPSTREAM_ERROR
    if streamed and measured and not generic and (not finished or tokens == 0):
        return Outcome.UPSTREAM_ERROR
    return Outcome.COMPLETED


def _of_error(status: int) -> Outcome:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return Outcome.REJECTED if status < 500 else Outcome.UPSTREAM_ERROR


def is_censored(outcome: str, finished: bool = False) -> bool:
    """Whether a stream with this outcome was cut while a token was due.

    ``finished``: the finish reason of every choice had gone by, so that none was.
    """
    return not finished and outcome in _CUT


def slo_result(
    *,
    outcome: Outcome,
    streamed: bool,
    fluidity: float | None,
    target: float,
    duration_ns: int,
    e2e_ns: int | None,
    overdue_at_end: bool,
    measured: bool,
) -> tuple[SloResult, tuple[str, ...]]:
    """What the request counts as, and why: the reasons are empty exactly for good ones.

    ``target`` 0 promises nothing of tokens: then ``e2e_ns`` alone is the measure, of streams too.

    Reasons of *bad*: ``outcome``, ``fluidity``, ``e2e``, ``overdue``; of *excluded*: ``rejected``,
    ``cancelled``, ``no_e2e``, ``unmeasured``, ``no_deadlines``.
    """
    if outcome in _FAILED:
        return SloResult.BAD, ("outcome",)
    if outcome is Outcome.REJECTED:
        return SloResult.EXCLUDED, ("rejected",)
    if streamed and not measured:
        return SloResult.EXCLUDED, ("unmeasured",)
    short = []
    if streamed and fluidity is not None and fluidity < target:
        short.append("fluidity")
    if e2e_ns is not None and duration_ns > e2e_ns:
        short.append("e2e")
    if outcome is Outcome.CLIENT_CANCELLED:
        if overdue_at_end:
            short.append("overdue")
        return (SloResult.BAD, tuple(short)) if short else (SloResult.EXCLUDED, ("cancelled",))
    if short:
        return SloResult.BAD, tuple(short)
    if streamed and fluidity is None and (target or e2e_ns is None):
        return SloResult.EXCLUDED, ("no_deadlines",)
    if not streamed and e2e_ns is None:
        return SloResult.EXCLUDED, ("no_e2e",)
    return SloResult.GOOD, ()
