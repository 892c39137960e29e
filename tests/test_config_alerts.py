"""``alerts`` in the configuration: limits of the rules, what is refused with its mend, what is only told."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import ConfigErrors, cares
from proxy.control.alerts.rules import Rules
from proxy.settings.alerts import ALL_RULES, Alerts
from proxy.tables import build_table
from scoring.alarm_live import Drift, Stalled
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
    assert found.silent == {"shown"}
    assert "shown" not in found.burns


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
    ],
)
def test_what_is_allowed_and_deserves_a_look_is_told(text: str, said: str, tmp_path: Path) -> None:
    put = writer(tmp_path)
    assert any(sentence.startswith(said) for sentence in cares(read(put(text + "\n"))))
    assert not any(sentence.startswith("alerts") for sentence in cares(read(put(""))))


def test_variables_reach_limits() -> None:
    env = {"LEGATO_ALERTS__SPIKE__SHARE": "40%", "LEGATO_ALERTS__REPEAT": "off"}
    config = read(None, env, upstream="http://vllm:8000")
    assert config.alerts.spike.share == 0.4
    assert config.alerts.repeat == 0


def test_limits_of_settings_begin_where_the_rules_do() -> None:
    settings = Alerts()
    assert (settings.spike.share, settings.spike.times, settings.spike.requests) == (0.25, 3.0, 5)
    assert (settings.errors.share, settings.errors.times, settings.errors.requests) == (0.05, 3.0, 5)
