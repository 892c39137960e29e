"""``legato alerts list`` and ``backtest``: what fires, what would have, and errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from proxy.commands import screen
from proxy.commands.alerts import register
from proxy.control.settle import Settled
from proxy.control.timeline import trace_line
from proxy.exporters.tracelog import encode
from tests.control.alerts.hosts import START, Host, World
from tests.control.alerts.test_stage import SPIKE, failing, healthy, late
from tests.control.facts import S
from tests.control.test_api_alerts import serving

app = typer.Typer()
register(app)


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["alerts", *arguments], input=stdin)


# ---------------------------------------------------------------- list


@contextmanager
def admin(world: World) -> Iterator[str]:
    with serving(world.hosts[0]) as client:
        yield str(client.base_url).rstrip("/")


def burning() -> World:
    world = World()
    world.run(300, healthy)
    world.run(60, late)
    return world


def test_what_fires_is_listed_with_its_worst_request_and_who_is_told() -> None:
    with admin(burning()) as url:
        found = run("list", "--admin", url)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("1 firing, 0 pending; this host's traffic, judged up to 2026-")
    assert "spike" in found.stdout
    assert "missed a deadline in the last minute" in found.stdout
    assert "host0-missed-" in found.stdout
    assert "nobody is told: alerts.notify of the configuration is empty" in found.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_has_room_for_what_it_is(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(screen, "console", lambda _: Console(width=width, highlight=False))
    with admin(burning()) as url:
        lines = run("list", "--admin", url).stdout.splitlines()
    assert lines[1].startswith("firing  rule spike  since ")
    assert " missed a deadline in " in " ".join(lines[2:4])
    assert any(line.startswith("  worst request: host0-missed-") for line in lines)


def test_json_is_the_answer_of_the_api() -> None:
    world = burning()
    with admin(world) as url:
        found = json.loads(run("list", "--json", "--all", "--admin", url).stdout)
        assert found == httpx.get(f"{url}/api/alerts?all=true").json()
    assert [alert["key"] for alert in found["firing"]] == [SPIKE]
    assert {said["rule"] for said in found["evaluations"]} >= {"spike", "errors", "stalled", "burn_rate"}


def test_no_legato_is_an_error_with_its_mend() -> None:
    found = run("list", "--admin", "http://127.0.0.1:1")
    assert found.exit_code == 1
    assert "is `legato serve` running there?" in found.stderr


# ---------------------------------------------------------------- backtest


def recorded(world: World) -> list[bytes]:
    """What the trace log holds of everything that ends from now on."""
    lines: list[bytes] = []

    def sink(batch: Sequence[Settled]) -> None:
        lines.extend(encode(line) for each in batch if (line := trace_line(each)) is not None)

    world.hosts[0].sinks.append(sink)
    return lines


def failed_streams(host: Host) -> None:
    """Half of the streams end with a server error."""
    host.ends(good=1)
    host.ends(failed=1, stream_asked=True, streamed=False, end="no_response", status=502)


@pytest.mark.parametrize(("each", "rule"), [(late, "spike"), (failed_streams, "errors")])
def test_what_fired_live_would_have_fired_by_the_trace_at_the_same_time(
    each: Any, rule: str, tmp_path: Path
) -> None:
    world = World()
    lines = recorded(world)
    world.run(700, healthy)
    world.run(120, each)
    world.run(400, healthy)
    (live,) = [alert for alert in world.hosts[0].alerts.life.history if alert.rule == rule]
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(b"\n".join(reversed(lines)) + b"\n")  # in any order
    found = run("backtest", "--json", str(trace))
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    (alert,) = [alert for alert in said["alerts"] if alert["rule"] == rule]
    assert (alert["key"], alert["since"]) == (live.key, iso(live.began_ns))
    assert (alert["fired"], alert["resolved"]) == (iso(live.fired_ns), iso(live.resolved_ns))
    assert len(alert["worst"]) == len(live.worst) == 5
    assert all(("missed" if rule == "spike" else "failed") in name for name in alert["worst"])
    assert said["requests"] == len(lines)
    assert said["totals"]["by_rule"][rule] == 1


def iso(ns: int | None) -> str:
    from proxy.control.record import iso_time

    assert ns is not None
    return iso_time(ns)


def hung(number: int, at_s: float, silent_s: float) -> dict[str, Any]:
    """A stream of 20 tokens a second that stops after five seconds, and is cut later."""
    events = [[round((0.1 + 0.05 * at) * S), 1] for at in range(100)]
    return {
        "schema": 1,
        "id": f"r{number}",
        "t0_unix_ns": START + round(at_s * S),
        "backend": "canary",
        "model": "llama",
        "slo": "chat",
        "ttft_deadline_ns": S,
        "tbt_deadline_ns": 60_000_000,
        "events": events,
        "end_ns": round((5.1 + silent_s) * S),
        "outcome": "client_cancelled",
        "censored": True,
    }


def written(path: Path, lines: Sequence[dict[str, Any] | str]) -> str:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return str(path)


def test_streams_in_flight_are_told_by_their_arrivals_so_that_a_hang_shows(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.jsonl", [hung(number, 3.0, 60) for number in range(8)])
    found = run("backtest", "--json", trace)
    alerts = {alert["rule"]: alert for alert in json.loads(found.stdout)["alerts"]}
    # Silent from 8 s on; what came early keeps them in time until 10 s: overdue at 20 and at 30 s.
    assert alerts["stalled"]["fired"] == iso(START + 30 * S)
    assert alerts["stalled"]["summary"].startswith("8 of 8 streams of llama on canary (SLO chat) are overdue")
    assert alerts["stalled"]["labels"] == {"backend": "canary", "model": "llama", "slo": "chat"}
    assert alerts["stalled"]["resolved"] is not None


def test_the_table_says_what_when_for_how_long_and_what_is_not_seen(tmp_path: Path) -> None:
    found = run("backtest", written(tmp_path / "t.jsonl", [hung(number, 3.0, 60) for number in range(8)]))
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("8 requests from 2026-11-20 ")
    assert "stalled" in found.stdout
    assert "would have fired" in found.stdout
    assert "not seen: requests that were not streamed" in found.stdout


@pytest.mark.parametrize(("last_s", "length"), [(20, "1 min 10 s"), (400, "6 min 50 s")])
@pytest.mark.parametrize("width", [80, 120, 160])
def test_how_long_is_told_in_words_and_the_sentence_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, last_s: float, length: str
) -> None:
    narrow = partial(Console, width=width, highlight=False, emoji=False, markup=False)
    monkeypatch.setattr(screen, "console", lambda piped, *, stderr=False: narrow(stderr=stderr))
    lines = [hung(number, 3.0, 60) for number in range(8)] + [hung(99, last_s, 3)]
    told = run("backtest", written(tmp_path / "t.jsonl", lines)).stdout
    assert f"3 of them as a page in {length}: " in told or f"2 of them as a page in {length}: " in told
    assert "1 min 40 s" in told
    assert "past the trace's end" in told  # what fired late in it is nowhere seen to be over
    assert "(SLO chat) are overdue, none had" in told  # not a word a line


@pytest.mark.parametrize(("objective", "fires"), [("99%", True), ("50%", False)])
def test_the_objective_decides_about_burnt_budgets(objective: str, fires: bool, tmp_path: Path) -> None:
    lines = [hung(number, 20.0 * number, 3) for number in range(600)]
    trace = written(tmp_path / "t.jsonl", lines)
    said = json.loads(run("backtest", "--json", "--objective", objective, trace).stdout)
    assert ("burn_rate" in said["totals"]["by_rule"]) == fires


def test_limits_and_objectives_of_a_configuration(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.jsonl", [hung(number, 3.0, 60) for number in range(8)])
    file = tmp_path / "legato.yaml"
    file.write_text(
        "backends: {vllm: {url: http://vllm:8000}}\n"
        "alerts: {stalled: {streams: 9, silent: 60s}, rules: [stalled]}\n"
    )
    said = json.loads(run("backtest", "--json", "--config", str(file), trace).stdout)
    assert said["alerts"] == []


def steady(count: int, length_s: int, late: int = 0) -> list[dict[str, Any]]:
    """Streams of four tokens a second, one begun each second; ``late``: so many tokens of each miss."""
    lines = []
    for number in range(count):
        waits = [0.1, *(0.4 if 4 <= at < 4 + late else 0.24 for at in range(1, 4 * length_s))]
        events = [[round(sum(waits[: at + 1]) * S), 1] for at in range(len(waits))]
        line = {**hung(number, 3.0 + number, 0), "events": events, "end_ns": events[-1][0]}
        deadlines = {"ttft_deadline_ns": S // 5, "tbt_deadline_ns": S // 4}
        lines.append({**line, **deadlines, "outcome": "completed", "censored": False})
    return lines


ONLY_8_S, LATE = steady(700, 8), steady(700, 8, late=3)
HUNG = [hung(number, 3.0, 60) for number in range(8)]
DURATION_HUNG = [{**line, "duration_only": True, "target": 0.0} for line in HUNG]
FEW_FAIL = [
    {**line, "duration_only": True, "target": 0.0} | ({} if number % 40 else {"outcome": "upstream_error"})
    for number, line in enumerate(LATE)
]
PAGES_NOBODY = "{name: chat, ttft: {learned: live, slack: 0s, fallback: 1s}, tbt: 60ms}"


@pytest.mark.parametrize(
    ("slo", "lines", "rules"),
    [
        (None, ONLY_8_S, {}),
        (None, HUNG, {"burn_rate": 1, "stalled": 1}),
        (None, LATE, {"spike": 1}),
        # Whose deadlines follow the server: `legato check` says that nobody is paged.
        (PAGES_NOBODY, HUNG, {}),
        (PAGES_NOBODY, LATE, {}),
        # 8 s are too many for 3 s.
        ("{name: chat, ttft: 1s, tbt: 250ms, e2e: 3s}", ONLY_8_S, {"burn_rate": 2}),
        ("{name: chat, ttft: 1s, tbt: 250ms, e2e: 30s}", ONLY_8_S, {}),
        # Of 32 deadlines 3 missed is good by 90%, and bad by 95%.
        ("{name: chat, ttft: 1s, tbt: 250ms, fluidity: 90%}", LATE, {"spike": 1}),
        ("{name: chat, ttft: 1s, tbt: 250ms, fluidity: 95%}", LATE, {"spike": 1, "burn_rate": 2}),
        # The duration is all that is promised: a missed deadline of tokens is none, a hang is one by then.
        ("{name: chat, e2e: 30s}", LATE, {}),
        ("{name: chat, e2e: 30s}", HUNG, {"burn_rate": 1, "stalled": 1}),
        # Who leaves before it is over is held against nobody, however long no token came.
        ("{name: chat, e2e: 5m}", HUNG, {}),
        (None, DURATION_HUNG, {}),
        ("{name: chat, ttft: 1s, tbt: 250ms}", DURATION_HUNG, {}),
        ("{name: chat, ttft: 1s, tbt: 250ms, e2e: 30s}", DURATION_HUNG, {"burn_rate": 1, "stalled": 1}),
        # One of forty failed and all others are good, of whom nobody says that they took too long.
        (None, FEW_FAIL, {}),
        ("{name: chat, ttft: 1s, tbt: 250ms}", FEW_FAIL, {}),
        ("{name: chat, e2e: 3s}", FEW_FAIL, {"burn_rate": 2, "stalled": 1}),
    ],
)
def test_what_slos_of_a_configuration_promise_decides(
    slo: str | None, lines: list[dict[str, Any]], rules: dict[str, int], tmp_path: Path
) -> None:
    trace = written(tmp_path / "t.jsonl", lines)
    file = tmp_path / "legato.yaml"
    file.write_text(f"backends: {{vllm: {{url: http://vllm:8000}}}}\nslos: [{slo}]\n")
    said = json.loads(run("backtest", "--json", *([] if slo is None else ["-c", str(file)]), trace).stdout)
    assert said["totals"]["by_rule"] == rules
    without = [sentence for sentence in said["not_seen"] if sentence.startswith("without --config")]
    assert len(without) == (slo is None)


def test_what_is_held_back_live_is_no_page(tmp_path: Path) -> None:
    """A group hangs for a minute: its spike is part of that."""
    fine = steady(880, 8)
    stuck = [hung(1_000 + number, 880 + 1.5 * number, 40) for number in range(40)]
    trace = written(tmp_path / "t.jsonl", [*fine, *stuck])
    said = json.loads(run("backtest", "--json", "--objective", "50%", trace).stdout)
    assert [(alert["rule"], alert["told"]) for alert in said["alerts"]] == [
        ("stalled", True),
        ("spike", False),
    ]
    assert (said["totals"]["alerts"], said["totals"]["pages"], said["totals"]["held_back"]) == (2, 1, 1)
    table = run("backtest", "--objective", "50%", trace).stdout
    assert "2 would have fired, 1 of them as a page, 1 held back by what explains it" in table


def test_slos_that_the_configuration_does_not_have_are_named(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text("backends: {vllm: {url: http://vllm:8000}}\n")
    trace = written(tmp_path / "t.jsonl", HUNG)
    said = json.loads(run("backtest", "--json", "-c", str(file), trace).stdout)
    assert any(each.startswith("the configuration has no SLO chat: ") for each in said["not_seen"])
    assert said["totals"]["by_rule"]["stalled"] == 1


def test_bad_lines_are_counted_and_named_and_the_others_judged(tmp_path: Path) -> None:
    lines: list[dict[str, Any] | str] = [*[hung(number, 3.0, 60) for number in range(8)], "{", ""]
    without = hung(9, 3.0, 1)
    del without["t0_unix_ns"]
    for_ever = {**hung(10, 3.0, 1), "end_ns": 4 * 10**18}  # each ten seconds of it would be looked at
    found = run("backtest", "--json", written(tmp_path / "t.jsonl", [*lines, without, for_ever]))
    assert found.exit_code == 1
    said = json.loads(found.stdout)
    assert (said["requests"], said["bad_lines"]) == (8, 3)
    assert "t.jsonl:9: not JSON" in found.stderr
    assert "request r9: Object missing required field `t0_unix_ns`" in found.stderr
    assert "request r10: Expected `int` <= 86400000000000 - at `$.end_ns`" in found.stderr


def test_standard_input_is_read_and_nothing_is_no_alert() -> None:
    found = run("backtest", "-", stdin=b"")
    assert found.exit_code == 0
    assert found.stdout.startswith("0 requests\n0 would have fired")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backtest", "/does/not/exist"), "give files that --trace-log wrote"),
        (("backtest", "--objective", "100%", "-"), "write 99.9%"),
        (("backtest", "--objective", "much", "-"), "'much'"),
        (("backtest", "--config", "/does/not/exist", "-"), "cannot be read"),
    ],
)
def test_wrong_usage_is_2_with_the_mend(arguments: Sequence[str], said: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.replace("│", " ").split())


def test_quiet_days_between_two_incidents_cost_nothing(tmp_path: Path) -> None:
    lines = [hung(number, 3.0, 60) for number in range(8)]
    lines += [hung(number, 40 * 86_400 + 3.0, 60) for number in range(8, 16)]
    said = json.loads(run("backtest", "--json", written(tmp_path / "t.jsonl", lines)).stdout)
    assert said["totals"]["by_rule"]["stalled"] == 2


def test_failing_is_seen_live_only_where_streams_fail(tmp_path: Path) -> None:
    """What is not streamed is in no trace: the command says so instead of looking healthy."""
    world = World()
    lines = recorded(world)
    world.run(300, healthy)
    world.run(100, failing)
    assert [told.message.rule for told in world.told] == ["errors"]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    said = json.loads(run("backtest", "--json", str(tmp_path / "t.jsonl")).stdout)
    assert said["alerts"] == []
    assert any("not streamed" in sentence for sentence in said["not_seen"])
