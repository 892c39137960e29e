"""The life of an alert by itself: verdicts in, messages out."""

from __future__ import annotations

import pytest

from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.life import HISTORY, Life, Said, incident_of, message_id
from proxy.control.alerts.words import link, over, runbook, summary
from scoring.alarm_rule import Evaluation, Hold
from scoring.alarm_share import COLD, Spike

S = 10**9
LABELS = (("backend", "canary"), ("model", "llama"))
KEY = 'drift{backend="canary",model="llama"}'


def says(fires: bool, hold: Hold | None = None, rule: str = "drift", value: float = 2.0) -> list[Verdict]:
    said = Evaluation(
        fires, not fires, value, 1.5, {"tbt_p50": value}, "tbt_p50 is 2.00 times the frozen one"
    )
    return [Verdict(rule, LABELS, "ticket", hold or Hold(180, 180), said)]


def test_it_waits_fires_and_ends_by_its_hold() -> None:
    life, states = Life(), []
    for at_s in range(0, 700, 10):
        life.step(says(at_s < 300), at_s * S)
        alert = life.alerts.get(KEY)
        states.append("ok" if alert is None else alert.phase.state)
    assert states == ["pending"] * 18 + ["firing"] * 30 + ["ok"] * 22
    (alert,) = life.history
    assert (alert.began_ns, alert.fired_ns, alert.resolved_ns) == (0, 180 * S, 480 * S)
    assert (alert.peak, alert.incident) == (2.0, incident_of(KEY, 180 * S))


@pytest.mark.parametrize("jump_s", [-3_600, 3_600])
def test_what_waits_begins_to_wait_anew_when_the_clock_jumps(jump_s: int) -> None:
    life = Life()
    life.step(says(True), 5_000 * S)
    life.rebase((5_000 + jump_s) * S)
    for at_s in range(0, 180, 10):
        life.step(says(True), (5_000 + jump_s + at_s) * S)
        assert not life.fires(KEY)
    life.step(says(True), (5_000 + jump_s + 180) * S)
    assert life.fires(KEY)


def test_calm_before_a_jump_is_no_calm_after_it() -> None:
    life = Life()
    for at_s in range(0, 200, 10):
        life.step(says(True), at_s * S)
    life.step(says(False), 200 * S)
    life.rebase(4_000 * S)
    life.step(says(False), 4_000 * S)
    assert life.fires(KEY)
    life.step(says(False), 4_180 * S)
    assert not life.alerts


def test_what_was_never_told_to_begin_is_not_told_to_be_over() -> None:
    life, now = Life(), Hold(0, 0)
    life.step(says(True, now), 0)
    life.step(says(False, now), 10 * S)
    assert life.due(10 * S, 0, Said()) == []
    life.step(says(True, now), 20 * S)
    (message,) = life.due(20 * S, 0, Said("here", "http://legato"))
    life.told(message, 20 * S)
    assert life.due(20 * S, 0, Said()) == []
    life.step(says(False, now), 30 * S)
    (ended,) = life.due(30 * S, 0, Said())
    assert (ended.state, ended.notices[0].incident) == ("resolved", message.notices[0].incident)
    assert ended.notices[0].summary == "drift of llama on canary is over after 10 s"
    life.told(ended, 30 * S)
    assert life.due(40 * S, 0, Said()) == []


def test_a_message_has_the_same_id_for_the_same_content_alone() -> None:
    life = Life()
    life.step(says(True, Hold(0, 0)), 0)
    first, again = (life.due(0, 0, Said())[0] for _ in range(2))
    assert first.id == again.id == message_id(first.notices)
    life.told(first, 0)
    (repeat,) = life.due(3_600 * S, 3_600 * S, Said())
    assert repeat.notices[0].number == 1
    assert repeat.id != first.id


GROUP = (("backend", "canary"), ("model", "llama"), ("slo", "chat"))
AWAY = GROUP[:1]
NOW = Hold(0, 0)


def judged(**fires: tuple[bool, tuple[tuple[str, str], ...]]) -> list[Verdict]:
    """By rule: whether it fires, and for whom."""
    return [
        Verdict(rule, labels, "page", NOW, Evaluation(holds, not holds, 1.0, 0.5, {}, ""))
        for rule, (holds, labels) in fires.items()
    ]


def told(life: Life, at_s: int) -> list[tuple[str, str]]:
    """What is told at this moment."""
    out: list[tuple[str, str]] = []
    for message in life.due(at_s * S, 0, Said()):
        life.told(message, at_s * S)
        out.append((message.rule, message.state))
    return out


def test_a_hang_explains_the_spike_of_its_group_while_it_lasts_and_for_90_s_after_it() -> None:
    life = Life()
    life.step(judged(stalled=(True, GROUP)), 0)
    assert told(life, 0) == [("stalled", "firing")]
    life.step(judged(stalled=(True, GROUP), spike=(True, GROUP)), 30 * S)
    assert told(life, 30) == []
    held = {alert.rule: alert.held_by for alert in life.firing()}
    assert held == {"stalled": None, "spike": 'stalled{backend="canary",model="llama",slo="chat"}'}
    (stalled,) = [alert for alert in life.firing() if alert.rule == "stalled"]
    assert "(1 more alert of its requests is held back)" in life.notice(stalled, 30 * S, Said()).summary
    life.step(judged(stalled=(False, GROUP), spike=(True, GROUP)), 60 * S)
    assert told(life, 60) == [("stalled", "resolved")]
    life.step(judged(spike=(True, GROUP)), 149 * S)
    assert told(life, 149) == []
    life.step(judged(spike=(True, GROUP)), 150 * S)
    assert told(life, 150) == [("spike", "firing")], "it goes on for reasons of its own"


def test_what_was_a_hangs_and_is_calm_by_then_is_never_told() -> None:
    life, slow = Life(), Hold(0, 600)
    life.step(judged(stalled=(True, GROUP), spike=(True, GROUP)), 0)
    assert told(life, 0) == [("stalled", "firing")]
    for at_s in range(10, 800, 10):
        spike = Verdict("spike", GROUP, "page", slow, Evaluation(False, True, 0.0, 0.5, {}, ""))
        life.step([*judged(stalled=(False, GROUP)), spike], at_s * S)
        assert life.fires(spike.key) == (at_s < 610)
        assert told(life, at_s) == ([("stalled", "resolved")] if at_s == 10 else [])


@pytest.mark.parametrize("name", ["backend", "model", "slo"])
def test_a_hang_explains_nothing_of_another_group(name: str) -> None:
    other = tuple((key, "other" if key == name else value) for key, value in GROUP)
    life = Life()
    life.step(judged(stalled=(True, GROUP), spike=(True, other), errors=(True, GROUP)), 0)
    assert sorted(told(life, 0)) == [("errors", "firing"), ("spike", "firing"), ("stalled", "firing")]


def test_a_backend_that_is_down_comes_before_a_hang_and_what_it_held_explains_no_more() -> None:
    life, slow = Life(), Hold(0, 600)
    down = {"backend_down": (True, AWAY)}
    life.step(judged(**down, stalled=(True, GROUP), spike=(True, GROUP)), 0)
    assert {alert.held_by for alert in life.firing()} == {None, 'backend_down{backend="canary"}'}
    assert told(life, 0) == [("backend_down", "firing")]
    # It is back; nobody waits any more, but that is not over yet, and was never told.
    calm = Verdict("stalled", GROUP, "page", slow, Evaluation(False, True, 0.0, 0.5, {}, ""))
    life.step([*judged(backend_down=(False, AWAY), spike=(True, GROUP)), calm], 10 * S)
    assert told(life, 10) == [("backend_down", "resolved")]
    life.step([*judged(spike=(True, GROUP)), calm], 100 * S)
    assert told(life, 100) == [("spike", "firing")]


def test_it_remembers_so_many_and_no_more() -> None:
    life, now = Life(), Hold(0, 0)
    for at in range(HISTORY + 50):
        life.step(says(True, now), 2 * at * S)
        life.step(says(False, now), (2 * at + 1) * S)
    assert len(life.history) == HISTORY
    life.step([], 10_000 * S)
    assert not life.over, "told or not: after a while nobody needs them"


@pytest.mark.parametrize(
    ("rule", "labels", "said", "want"),
    [
        (
            "spike",
            {"backend": "canary", "model": "llama-70b", "slo": "chat"},
            Evaluation(True, False, 0.42, 0.25, {"requests": 310, "hits": 130, "usual_share": 0.012}),
            "42% of 310 requests of llama-70b on canary (SLO chat) missed a deadline in the last minute "
            "(usual 1.2%), since 1970-01-01T00:00:07Z",
        ),
        (  # nothing is usual yet: what is assumed of a group was not observed
            "errors",
            {"backend": "canary", "model": "llama-70b", "slo": "chat"},
            Spike().evaluate([60] * 6, [30] * 6, COLD),
            "50% of 360 requests of llama-70b on canary (SLO chat) failed in the last minute "
            "(usual: not known yet, 10.0% is assumed), since 1970-01-01T00:00:07Z",
        ),
        (
            "stalled",
            {"backend": "canary", "model": "m", "slo": "chat"},
            Evaluation(True, False, 1.0, 0.5, {"streams": 9, "overdue": 8, "silent_s": 40}),
            "8 of 9 streams of m on canary (SLO chat) are overdue, none had a token for 40 s, "
            "since 1970-01-01T00:00:07Z",
        ),
        (
            "backend_down",
            {"backend": "canary"},
            Evaluation(True, False, 1.0, 1.0, {}, "no worker on gpu-7 could connect to it"),
            "backend canary is down: no worker on gpu-7 could connect to it, since 1970-01-01T00:00:07Z",
        ),
        (
            "proxy",
            {"host": "h1", "what": "lag"},
            Evaluation(True, False, 1.0, 1.0, {}, "late"),
            "Legato on h1 (lag): late, since 1970-01-01T00:00:07Z",
        ),
        (
            "burn_rate",
            {"slo": "chat", "window": "1h/5m"},
            Evaluation(True, False, 20.0, 14.4, {}, "bad requests burn"),
            "SLO chat (1h/5m): bad requests burn, since 1970-01-01T00:00:07Z",
        ),
    ],
)
def test_sentences_say_what_where_since_when_and_how_bad(
    rule: str, labels: dict[str, str], said: Evaluation, want: str
) -> None:
    assert summary(rule, labels, said, 7 * S) == want


def test_where_to_read_on() -> None:
    assert runbook("burn_rate") == "deploy/runbooks/burn-rate.md"
    assert link(None, KEY) is None
    assert link("http://legato:9464", 'a{b="c d"}') == "http://legato:9464/api/alerts#a%7Bb%3D%22c%20d%22%7D"
    assert (
        over("errors", {"backend": "b", "model": "m"}, 0, 130 * S)
        == "errors of m on b is over after 2 min 10 s"
    )
