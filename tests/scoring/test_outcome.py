"""The tables "Outcome and result of a request", row by row."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.outcome import Outcome, SloResult, classify, is_censored, slo_result


def outcome(end: str = "complete", status: int | None = 200, **facts: Any) -> str:
    usual = {"streamed": True, "generic": False, "finished": True, "error_event": False, "tokens": 10}
    return classify(end=end, status=status, **{**usual, **facts}).value


ROWS: list[tuple[str, str, dict[str, Any]]] = [
    # completed: 2xx or 3xx, ended as its dialect ends
    ("completed", "a finish reason was seen", {}),
    ("completed", "the generic dialect: a clean end", {"generic": True, "finished": False}),
    ("completed", "not streamed: the body is complete", {"streamed": False, "finished": False, "tokens": 0}),
    ("completed", "a redirect", {"status": 307, "streamed": False, "finished": False, "tokens": 0}),
    ("completed", "not modified", {"status": 304, "streamed": False, "finished": False, "tokens": 0}),
    ("completed", "nobody measured it: a clean end", {"measured": False, "finished": False, "tokens": 0}),
    ("completed", "the client left after the finish reason", {"end": "client_left"}),
    # client_cancelled: the client left first
    ("client_cancelled", "before the finish reason", {"end": "client_left", "finished": False}),
    ("client_cancelled", "before the head", {"end": "client_left", "status": None, "finished": False}),
    (
        "client_cancelled",
        "in a body that is not streamed",
        {"end": "client_left", "streamed": False, "finished": False, "tokens": 0},
    ),
    # rejected: upstream 4xx except 408 and 429; our own 4xx
    ("rejected", "bad request", {"status": 400, "streamed": False, "finished": False}),
    ("rejected", "not found", {"status": 404, "streamed": False, "finished": False}),
    ("rejected", "499", {"status": 499, "streamed": False, "finished": False}),
    ("rejected", "our own", {"end": "refused", "status": 431, "streamed": False, "finished": False}),
    # overloaded: upstream 429, 503; our full pool
    ("overloaded", "too many requests", {"status": 429, "streamed": False, "finished": False}),
    ("overloaded", "unavailable", {"status": 503, "streamed": False, "finished": False}),
    ("overloaded", "our pool is full", {"end": "pool_full", "status": 503, "streamed": False}),
    ("upstream_error", "told in the stream", {"end": "client_left", "finished": False, "error_event": True}),
    ("overloaded", "told, then the client left", {"end": "client_left", "status": 429, "finished": False}),
    # upstream_error
    ("upstream_error", "500", {"status": 500, "streamed": False, "finished": False}),
    ("upstream_error", "501", {"status": 501, "streamed": False, "finished": False}),
    ("upstream_error", "502 of the upstream's own", {"status": 502, "streamed": False, "finished": False}),
    ("upstream_error", "connection refused", {"end": "connect_failed", "status": 502, "streamed": False}),
    ("upstream_error", "died before a head", {"end": "no_response", "status": 502, "streamed": False}),
    ("upstream_error", "nonsense instead of HTTP", {"end": "bad_response", "status": 502, "streamed": False}),
    ("upstream_error", "truncated body", {"end": "truncated", "finished": False}),
    ("upstream_error", "truncated after the finish reason", {"end": "truncated"}),
    ("upstream_error", "truncated, not streamed", {"end": "truncated", "streamed": False}),
    ("upstream_error", "error event under 200", {"error_event": True}),
    ("upstream_error", "error event in the generic dialect", {"error_event": True, "generic": True}),
    ("upstream_error", "ended without its dialect's end ([DONE] alone)", {"finished": False}),
    ("upstream_error", "without any token", {"tokens": 0}),
    # timeout: 408, 504; ours
    ("timeout", "408", {"status": 408, "streamed": False, "finished": False}),
    ("timeout", "504", {"status": 504, "streamed": False, "finished": False}),
    ("timeout", "ours, connecting", {"end": "timeout_connect", "status": 504, "streamed": False}),
    ("timeout", "ours, first byte", {"end": "timeout_first_byte", "status": 504, "streamed": False}),
    ("timeout", "ours, idle", {"end": "timeout_idle", "finished": False}),
    # proxy_error: our own failure
    ("proxy_error", "ours", {"end": "self", "status": 500, "streamed": False}),
    ("proxy_error", "ours, in mid-stream", {"end": "self"}),
    ("proxy_error", "an end without a status", {"status": None}),
]


@pytest.mark.parametrize(
    ("expected", "facts"), [(row[0], row[2]) for row in ROWS], ids=[row[1] for row in ROWS]
)
def test_outcome(expected: str, facts: dict[str, Any]) -> None:
    assert outcome(**facts) == expected


def test_every_outcome_has_a_row() -> None:
    assert {row[0] for row in ROWS} == set(Outcome)


def test_an_unknown_end_is_named() -> None:
    with pytest.raises(ValueError, match="end 'vanished' is none of: complete, client_left"):
        outcome("vanished")


def test_censored_is_what_was_cut_while_a_token_was_due() -> None:
    cut = {each for each in Outcome if is_censored(each)}
    assert cut == {"client_cancelled", "upstream_error", "timeout", "proxy_error"}
    assert not any(is_censored(each, finished=True) for each in Outcome)


GOOD, BAD, EXCLUDED = SloResult.GOOD, SloResult.BAD, SloResult.EXCLUDED

RESULTS: list[tuple[SloResult, tuple[str, ...], dict[str, Any]]] = [
    # good: completed, fluidity >= its target (streaming), duration <= e2e where the SLO sets one
    (GOOD, (), {}),
    (GOOD, (), {"fluidity": 0.9}),
    (GOOD, (), {"e2e_ns": 100, "duration_ns": 100}),
    (GOOD, (), {"streamed": False, "fluidity": None, "e2e_ns": 100, "duration_ns": 100}),
    # bad: completed otherwise
    (BAD, ("fluidity",), {"fluidity": 0.8999}),
    (BAD, ("e2e",), {"e2e_ns": 100, "duration_ns": 101}),
    (BAD, ("fluidity", "e2e"), {"fluidity": 0.0, "e2e_ns": 100, "duration_ns": 101}),
    (BAD, ("e2e",), {"streamed": False, "fluidity": None, "e2e_ns": 100, "duration_ns": 101}),
    (BAD, ("e2e",), {"fluidity": None, "e2e_ns": 100, "duration_ns": 101}),
    # bad: overloaded, upstream_error, timeout, proxy_error, whatever else is known
    *(
        (BAD, ("outcome",), {"outcome": failed, **more})
        for failed in (Outcome.OVERLOADED, Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.PROXY_ERROR)
        for more in ({}, {"streamed": False, "fluidity": None}, {"measured": False, "fluidity": None})
    ),
    # bad: client_cancelled while under the target or with a token overdue
    (BAD, ("fluidity",), {"outcome": Outcome.CLIENT_CANCELLED, "fluidity": 0.5}),
    (BAD, ("overdue",), {"outcome": Outcome.CLIENT_CANCELLED, "overdue_at_end": True}),
    (
        BAD,
        ("fluidity", "overdue"),
        {"outcome": Outcome.CLIENT_CANCELLED, "fluidity": 0.5, "overdue_at_end": True},
    ),
    (
        BAD,
        ("overdue",),
        {"outcome": Outcome.CLIENT_CANCELLED, "streamed": False, "fluidity": None, "overdue_at_end": True},
    ),
    (
        BAD,
        ("e2e",),
        {
            "outcome": Outcome.CLIENT_CANCELLED,
            "streamed": False,
            "fluidity": None,
            "e2e_ns": 100,
            "duration_ns": 101,
        },
    ),
    # excluded: other cancellations
    (EXCLUDED, ("cancelled",), {"outcome": Outcome.CLIENT_CANCELLED}),
    (EXCLUDED, ("cancelled",), {"outcome": Outcome.CLIENT_CANCELLED, "fluidity": None}),
    (EXCLUDED, ("cancelled",), {"outcome": Outcome.CLIENT_CANCELLED, "streamed": False, "fluidity": None}),
    # excluded: rejected
    (EXCLUDED, ("rejected",), {"outcome": Outcome.REJECTED}),
    (
        EXCLUDED,
        ("rejected",),
        {"outcome": Outcome.REJECTED, "streamed": False, "e2e_ns": 1, "duration_ns": 9},
    ),
    # excluded: a non-streaming request whose SLO sets no e2e
    (EXCLUDED, ("no_e2e",), {"streamed": False, "fluidity": None}),
    # excluded: unmeasured streams
    (EXCLUDED, ("unmeasured",), {"measured": False, "fluidity": None}),
    (EXCLUDED, ("unmeasured",), {"outcome": Outcome.CLIENT_CANCELLED, "measured": False, "fluidity": None}),
    # a stream none of whose deadlines count can be neither good nor bad
    (EXCLUDED, ("no_deadlines",), {"fluidity": None}),
]


@pytest.mark.parametrize(("result", "reasons", "facts"), RESULTS)
def test_slo_result(result: SloResult, reasons: tuple[str, ...], facts: dict[str, Any]) -> None:
    usual = {
        "outcome": Outcome.COMPLETED,
        "streamed": True,
        "fluidity": 1.0,
        "target": 0.9,
        "duration_ns": 50,
        "e2e_ns": None,
        "overdue_at_end": False,
        "measured": True,
    }
    assert slo_result(**{**usual, **facts}) == (result, reasons)
