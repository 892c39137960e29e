"""``alerts`` in the configuration: limits of the rules, what is refused with its mend, what is only told."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import ConfigErrors, cares
from proxy.control.alerts.rules import Rules
from proxy.settings.alerts import ALL_RULES, Alerts
from proxy.tables import build_table
from scoring.alarm_live import Drift, Flight, Stalled
from scoring.alarm_share import Errors, Spike
from scoring.burn import BurnRate
from tests.helpers.settings import read, writer


def rules(path: str) -> Rules:
    config = read(path)
    return Rules.of(config.alerts, build_table(config, 1).slos)


def test_without_settings_the_rules_are_those_that_the_thresholds_were_chosen_for(tmp_path: Path) -> None:
    found = rules(writer(tmp_path)(""))
    assert found.on == frozenset(ALL_RULES)
    assert (found.spike, found.errors, found.stalled, found.drift) == (Spike(), Errors(), Stalled(), Drift())
    (fast, slow) = found.burns["default"]
    assert (fast.window, fast.severity, fast.rule) == ("1h/5m", "page", BurnRate(0.99, kept_s=6 * 3_600))
    assert (slow.window, slow.rule.burn) == ("6h/30m", 6)


def test_every_limit_reaches_its_rule(tmp_path: Path) -> None:
    put = writer(tmp_path)
    found = rules(
        put(
            """\
            slos:
            - {name: chat, objective: 99.9%, match: {model: a}}
            - {name: batch, e2e: 120s, objective: 99.9%, match: {model: b}}
            - {name: shown, ttft: {learned: live, slack: 1s, fallback: 2s}}
            alerts:
              rules: [spike, errors, stalled, drift, burn_rate]
              burn_rates:
              - {burn: 100, long: 30m, short: 2m, severity: ticket}
              spike: {share: 30%, times: 4, requests: 7}
              errors: {share: 10%, times: 2, requests: 8}
              stalled: {share: 60%, over: 30s, streams: 9, silent: 50s}
              drift: {prefill: 2, tbt_p50: 3, tbt_p99: 4}
            """
        )
    )
    assert found.on == {"spike", "errors", "stalled", "drift", "burn_rate"}
    assert found.spike == Spike(share=0.3, times=4, hits=7)
    assert found.errors == Errors(share=0.1, times=2, hits=8)
    assert found.stalled == Stalled(share=0.6, over_s=30, streams=9, silent_s=50)
    assert found.drift == Drift(prefill=2, tbt_p50=3, tbt_p99=4)
    (burn,) = found.burns["chat"]
    assert (burn.window, burn.severity) == ("30m/2m", "ticket")
    assert burn.rule == BurnRate(0.999, 100, 1_800, 120, "ticket", 6 * 3_600)
    assert {slo: unwatched(slo, found) for slo in ("chat", "batch", "shown")} == {
        "chat": [],
        "batch": ["spike"],
        "shown": ["spike", "stalled", "burn_rate"],
    }
    assert found.burns.keys() == {"chat", "batch"}


def unwatched(slo: str, found: Rules) -> list[str]:
    return [rule for rule in ("spike", "stalled", "errors", "burn_rate") if not found.watches(rule, slo)]


@pytest.mark.parametrize(
    ("terms", "duration_only"),
    [
        ("e2e: 120s", True),
        ("e2e: 120s, fluidity: 0%", True),
        ("e2e: 120s, fluidity: 50%", False),
        ("e2e: 120s, tbt: 50ms", False),
        ("e2e: 120s, ttft: 500ms, fluidity: 0%", False),
        ("fluidity: 0%", False),
        ("objective: 99%", False),
    ],
)
def test_only_who_promises_the_duration_alone_says_nothing_of_tokens(
    tmp_path: Path, terms: str, duration_only: bool
) -> None:
    found = rules(writer(tmp_path)(f"slos: [{{name: it, {terms}}}]"))
    assert unwatched("it", found) == (["spike"] if duration_only else [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "alerts: {burn_rates: [{long: 3d, short: 6h, burn: 1}]}",
            ":2: alerts.burn_rates[0].long: 3d: only 6h are kept, so it can never be seen: shorten it, or "
            "alert on that window in Prometheus",
        ),
        (
            "alerts: {burn_rates: [{burn: 100}]}",
            ":2: alerts.burn_rates[0].burn: for SLO 'default': burn 100: with an objective of 0.99 no outage "
            "burns faster than 100, so it can never fire",
        ),
        (
            "slos: [{name: a, objective: 99.9%, match: {model: m}}, {name: b, objective: 90%}]\n"
            "alerts: {burn_rates: [{}]}",
            ":3: alerts.burn_rates[0].burn: for SLO 'b': burn 14.4",
        ),
        (
            "alerts: {burn_rates: [{short: 1h}]}",
            ":2: alerts.burn_rates[0].short: 1h: give less than long, 1h",
        ),
        ("alerts: {burn_rates: [{short: 15s}]}", "15s: requests are counted by 10s: give a multiple of that"),
        ("alerts: {burn_rates: [{severity: loud}]}", "'loud': write 'page' or 'ticket'"),
        (
            "alerts: {burn_rates: [{burn: 14.4}, {burn: 3, long: 60m, short: 300s, severity: ticket}]}",
            ":2: alerts.burn_rates[1]: 1h/5m: alerts.burn_rates[0] has these windows too, and an alert is "
            "known by its windows: give another long or short",
        ),
        (
            "alerts: {burn_rates: [{burn: inf}]}",
            "alerts.burn_rates[0].burn: 'inf': should be a finite number",
        ),
        (
            "alerts: {stalled: {over: 15s}}",
            ":2: alerts.stalled.over: 15s: what is in flight is looked at each 10s: give a multiple of that",
        ),
        ("alerts: {stalled: {over: 5s}}", ":2: alerts.stalled.over: 5s: what is in flight is looked at each"),
        ("alerts: {stalled: {over: 70s}}", "1m10s: what is in flight is looked back at for 60s"),
        ("alerts: {drift: {tbt_p99: inf}}", "alerts.drift.tbt_p99: 'inf': should be a finite number"),
        (
            "alerts: {stalled: {silent: 5m}}",
            "5m: what is in flight is looked back at for 60s: give at most that",
        ),
        ("alerts: {spike: {share: 0%}}", ":2: alerts.spike.share: 0.0: should be greater than 0"),
        ("alerts: {spike: {shares: 30%}}", "'shares' is no setting: did you mean share?"),
        ("alerts: {drift: {tbt_p50: 1}}", "alerts.drift.tbt_p50: '1': should be greater than 1"),
        ("alerts: {rules: [spyke]}", "'spyke': write 'burn_rate', 'spike'"),
        ("alerts: {repeat: 4}", "alerts.repeat"),
        ("alerts: {url: legato.example}", "a URL begins with http:// or https://"),
    ],
)
def test_mistakes_are_named_with_place_value_and_mend(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as raised:
        read(writer(tmp_path)(text + "\n"))
    assert said in str(raised.value)
    assert str(raised.value).startswith("1 problem"), "told once"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slos: [{name: a, objective: 80%}]", "SLO a: at an objective of 0.8 no usual burn rate can fire"),
        (
            "slos: [{name: a, ttft: {learned: live, slack: 1s, fallback: 2s}}]\n"
            "alerts: {notify: [{log: on}]}",
            "alerts: deadlines of a follow the server (learned: live): their misses page nobody",
        ),
        (
            "alerts: {rules: [spike], stalled: {over: 30s}}",
            "alerts.stalled: alerts.rules does not name stalled, so these limits do nothing",
        ),
        (
            "alerts: {rules: [spike], burn_rates: [{burn: 3}]}",
            "alerts.burn_rates: alerts.rules does not name burn_rate",
        ),
        ("alerts: {rules: [], notify: [{log: on}]}", "alerts.rules: none is named, so nobody is ever told"),
        ("alerts: {drift: {prefill: 2}}", "alerts.drift: no SLO has a frozen curve (ttft: {learned: FILE})"),
    ],
)
def test_what_is_allowed_and_deserves_a_look_is_told(text: str, said: str, tmp_path: Path) -> None:
    put = writer(tmp_path)
    assert any(sentence.startswith(said) for sentence in cares(read(put(text + "\n"))))
    assert not any(sentence.startswith("alerts") for sentence in cares(read(put(""))))


def test_what_is_accepted_of_stalled_can_fire(tmp_path: Path) -> None:
    """Looks come each 10 s, and seven of them are kept: ten streams that are overdue at every one."""
    put, accepted, slow = writer(tmp_path), [], set()
    for seconds in range(1, 75):
        try:
            rule = rules(put(f"alerts: {{stalled: {{over: {seconds}s, streams: 5}}}}\n")).stalled
        except ConfigErrors:
            continue
        accepted.append(seconds)
        looks = [Flight(at * 10.0, 10, 10, 3.0) for at in range(7)]  # some tokens: never silent
        slow |= {seconds} if not rule.evaluate(looks).fires else set()
    assert accepted == [10, 20, 30, 40, 50, 60]
    assert not slow
    for seconds in range(1, 61):
        rule = rules(put(f"alerts: {{stalled: {{silent: {seconds}s}}}}\n")).stalled
        assert rule.evaluate([Flight(at * 10.0, 2, 2, 0.0) for at in range(7)]).fires, seconds


def test_variables_reach_limits() -> None:
    env = {"LEGATO_ALERTS__SPIKE__SHARE": "40%", "LEGATO_ALERTS__REPEAT": "off"}
    config = read(None, env, upstream="http://vllm:8000")
    assert config.alerts.spike.share == 0.4
    assert config.alerts.repeat == 0


def test_limits_of_settings_begin_where_the_rules_do() -> None:
    settings = Alerts()
    assert (settings.spike.share, settings.spike.times, settings.spike.requests) == (0.25, 3.0, 5)
    assert (settings.errors.share, settings.errors.times, settings.errors.requests) == (0.05, 3.0, 5)
