"""``legato score``: trace files in, tables or JSON out, bad lines named, constant memory."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from rich.console import Console
from typer.testing import CliRunner, Result

from proxy import offline
from proxy.commands import screen
from proxy.commands.score import register
from proxy.control.settle import settle
from proxy.exporters.accesslog import encode_line
from proxy.offline import (
    BadLine,
    LineError,
    Overrides,
    Scored,
    Summary,
    request_json,
    score_line,
    score_stream,
)
from scoring.deadlines import Deadlines
from scoring.trace import marks_of, score
from tests.control.facts import at, streamed
from tests.scoring.traces import Request, requests

MS = 1_000_000

app = typer.Typer()
register(app)


@app.command()
def other() -> None:
    """A second command, so that ``score`` is one by name, as in ``legato``."""


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["score", *arguments], input=stdin)


def line(**keys: Any) -> dict[str, Any]:
    """A line as the trace log writes it: three tokens, 100 ms and 50 ms promised."""
    usual: dict[str, Any] = {
        "schema": 1,
        "id": "a",
        "t0_unix_ns": 1_800_000_000_000_000_000,
        "backend": "default",
        "model": "m",
        "slo": "default",
        "prompt_tokens": 7,
        "ttft_deadline_ns": 100 * MS,
        "tbt_deadline_ns": 50 * MS,
        "target": 0.9,
        "tokens_source": "events",
        "events": [[80 * MS, 1], [130 * MS, 1], [170 * MS, 1]],
        "end_ns": 180 * MS,
        "outcome": "completed",
        "marks": [],
        "thinned": False,
    }
    if "choices" in keys:
        del usual["events"]
    return {key: value for key, value in {**usual, **keys}.items() if value is not ...}


@pytest.fixture
def trace(tmp_path: Path) -> Any:
    def write(*lines: dict[str, Any] | str | bytes, name: str = "trace.jsonl") -> str:
        path = tmp_path / name
        with path.open("wb") as file:
            for each in lines:
                raw = each if isinstance(each, bytes | str) else json.dumps(each)
                file.write((raw if isinstance(raw, bytes) else raw.encode()) + b"\n")
        return str(path)

    return write


def scored(path: str, *flags: str) -> dict[str, Any]:
    result = run(path, "--json", *flags)
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    return said


# ---------------------------------------------------------------- JSON


def test_one_request_in_full(trace: Any) -> None:
    said = scored(trace(line(events=[[80 * MS, 1], [130 * MS, 1], [300 * MS, 2]], end_ns=310 * MS)))
    assert said["requests"] == [
        {
            "id": "a",
            "fluidity": 0.5,
            "on_time_ratio": 0.75,
            "met": 3,
            "missed": 3,
            "ttft_s": 0.08,
            "tbt_s": {"p50": 0.05, "p90": 0.17, "p99": 0.17, "max": 0.17},
            "tpot_s": round(0.22 / 3, 9),
            "normalized_latency_s": 0.0775,
            "least_tbt_s": 0.1,
            "stalls": 1,
            "censored": False,
        }
    ]
    assert said["summary"] == {
        "requests": 1,
        "fluidity": {"p1": 0.5, "p50": 0.5},
        "deadline_miss_rate": 0.5,
        "share_under_target": 1.0,
        "fluid_token_rate": 10.0,
        "fluid_token_rate_reason": None,
        "quantiles": "exact",
        "bad_lines": 0,
    }


def test_published_examples(trace: Any) -> None:
    stalled = [[(30 * (i + 1) + (970 if i >= 12 else 0)) * MS, 1] for i in range(62)]
    hidden = [[(30 * (i + 1) + (970 if i >= 51 else 0)) * MS, 1] for i in range(102)]
    one, two = scored(
        trace(line(events=stalled, end_ns=stalled[-1][0]), line(events=hidden, end_ns=hidden[-1][0]))
    )["requests"]
    assert (round(one["on_time_ratio"], 3), round(one["fluidity"], 3)) == (0.984, 0.813)
    assert (two["on_time_ratio"], two["fluidity"], two["tbt_s"]["max"]) == (1.0, 1.0, 1.0)


def test_a_lines_own_deadlines_and_target_unless_others_are_given(trace: Any) -> None:
    path = trace(line(), line(tbt_deadline_ns=20 * MS, ttft_deadline_ns=80 * MS))
    own = scored(path)
    assert [each["missed"] for each in own["requests"]] == [0, 2 + 2]
    assert own["summary"]["share_under_target"] == 0.5
    both = scored(path, "--ttft", "80ms", "--tbt", "0.02")
    assert [each["missed"] for each in both["requests"]] == [4, 4]
    assert [each["missed"] for each in scored(path, "--tbt", "20ms")["requests"]] == [3, 4]
    assert scored(path, "--target", "10%")["summary"]["share_under_target"] == 0.0
    assert scored(path, "--target", "0.1")["requests"][1]["least_tbt_s"] < own["requests"][1]["least_tbt_s"]


def test_several_choices(trace: Any) -> None:
    said = scored(trace(line(choices=[[[80 * MS, 1], [300 * MS, 1]], [[90 * MS, 1]]], end_ns=300 * MS)))
    assert (said["requests"][0]["met"], said["requests"][0]["missed"]) == (2, 4)


@pytest.mark.parametrize(
    ("outcome", "censored", "missed"),
    [
        ("completed", False, 0),
        ("rejected", False, 0),
        ("overloaded", False, 0),
        ("client_cancelled", True, 3),
        ("upstream_error", True, 3),
        ("timeout", True, 3),
        ("proxy_error", True, 3),
    ],
)
def test_a_cut_counts_by_the_outcome(trace: Any, outcome: str, censored: bool, missed: int) -> None:
    # The next token was due at 250 ms, and then at 300 and 350.
    one = scored(trace(line(outcome=outcome, end_ns=390 * MS)))["requests"][0]
    assert (one["censored"], one["missed"]) == (censored, missed)
    contrary = scored(trace(line(outcome=outcome, end_ns=390 * MS, censored=not censored)))["requests"][0]
    assert (contrary["censored"], contrary["missed"]) == (not censored, 3 - missed)


def test_marked_stalls_leave_met_and_missed(trace: Any) -> None:
    events = [[80 * MS, 1], [300 * MS, 1], [500 * MS, 1]]
    path = trace(
        line(events=events, end_ns=500 * MS),
        line(events=events, end_ns=500 * MS, marks=[[80 * MS, "client_blocked", 4]]),
        line(events=events, end_ns=500 * MS, marks=[[80 * MS, "suspect", 4], [300 * MS, "suspect", 4, 0]]),
        line(events=events, end_ns=500 * MS, marks=[[300 * MS, "suspect", 4, 1]]),
    )
    said = scored(path)["requests"]
    assert [(one["met"], one["missed"], one["stalls"]) for one in said] == [
        (1, 8, 2),
        (1, 4, 1),
        (1, 0, 0),
        (1, 8, 2),
    ]
    assert [one["on_time_ratio"] for one in said] == [1 / 3, 1 / 2, 1.0, 1 / 3]


@settings(max_examples=50)
@given(requests())
def test_offline_equals_online(request: Request) -> None:
    """What was settled with intervals, written as a line with marks, scores the same."""
    deadlines = Deadlines(request.dp, request.dd)
    how: dict[str, Any] = {
        "end_ns": request.end,
        "censored": request.censored,
        "excluded": request.excluded,
    }
    settled = score(request.choices, deadlines, **how)
    written = line(
        choices=[each.events for each in request.sequences],
        finished=[each.finished for each in request.sequences],
        ttft_deadline_ns=request.dp,
        tbt_deadline_ns=request.dd,
        end_ns=request.end,
        outcome="timeout" if request.censored else "completed",
        marks=[mark.to_plain() for mark in marks_of(request.choices, deadlines, **how)],
    )
    assert score_line(json.dumps(written).encode(), Overrides()).score == settled


def test_a_minimal_line(trace: Any) -> None:
    path = trace('{"events":[[80000000,1]]}')
    one = scored(path, "--ttft", "100ms", "--tbt", "50ms")["requests"][0]
    assert (one["id"], one["fluidity"], one["least_tbt_s"]) == (f"{path}:1", 1.0, 1e-9)


def test_requests_without_a_deadline_are_in_no_rate(trace: Any) -> None:
    said = scored(
        trace(line(), line(events=[], end_ns=90 * MS), line(events=[], outcome="timeout", end_ns=99 * MS))
    )
    assert [one["fluidity"] for one in said["requests"]] == [1.0, None, None]
    assert said["summary"]["requests"] == 3
    assert said["summary"]["share_under_target"] == 0.0
    nothing = scored(trace(line(events=[]), name="empty.jsonl"))
    assert nothing["summary"]["fluidity"] == {"p1": None, "p50": None}
    assert nothing["summary"]["deadline_miss_rate"] is None
    assert nothing["summary"]["fluid_token_rate_reason"] == "no stream was scored"
    assert scored(trace(name="nothing.jsonl"))["requests"] == []


def test_the_fluid_token_rate_stands_while_one_percent_have_no_least_tbt(trace: Any) -> None:
    fine, late = line(), line(events=[[200 * MS, 1]], end_ns=200 * MS)
    rate = scored(trace(*[fine] * 99, late))["summary"]
    assert rate["fluid_token_rate"] == pytest.approx(1 / scored(trace(fine))["requests"][0]["least_tbt_s"])
    none = scored(trace(*[fine] * 98, late, late))["summary"]
    assert none["fluid_token_rate"] is None
    assert none["fluid_token_rate_reason"].startswith("TTFT: 2 of 100 streams")


def test_several_files_are_one_object(trace: Any) -> None:
    first, second = trace(line(id="a"), name="a.jsonl"), trace(line(id="b"), name="b.jsonl")
    result = run("--json", first, second)
    said = json.loads(result.stdout)
    assert [one["id"] for one in said["requests"]] == ["a", "b"]
    assert said["summary"]["requests"] == 2


def test_standard_input(trace: Any) -> None:
    result = run("--json", "-", stdin=json.dumps(line()).encode() + b"\n\n")
    assert json.loads(result.stdout)["summary"]["requests"] == 1


# ---------------------------------------------------------------- bad lines


BAD = [
    ("this is no JSON", "not JSON"),
    ('{"id":"a","events":[[1,', "was it cut off?"),
    (b"\xff\xfe", "not JSON"),
    ("[]", "each line must be a JSON object"),
    (json.dumps(line(events=[["1", 1]])), "events[0][0]: Expected `int`, got `str`"),
    (json.dumps(line(events=[[1.5, 1]])), "events[0][0]: Expected `int`, got `float`"),
    (json.dumps(line(events=[[-1, 1]])), "events[0][0]: Expected `int` >= 0"),
    (json.dumps(line(events=[[2**63, 1]])), "events[0][0]: Expected `int` <= "),
    (json.dumps(line(events=[[5, 1], [6, 1], [4, 1]])), "events[2]: arrives before the one ahead of it"),
    (json.dumps(line(choices=[[], [[5, 1], [4, 1]]])), "choices[1][1]: arrives before"),
    (json.dumps(line(events=...)), "neither `events` nor `choices`"),
    (json.dumps({**line(), "choices": []}), "both `events` and `choices`"),
    (json.dumps(line(ttft_deadline_ns=...)), "no ttft_deadline_ns: give --ttft"),
    (json.dumps(line(tbt_deadline_ns=...)), "no tbt_deadline_ns: give --tbt"),
    (json.dumps(line(tbt_deadline_ns=0)), "tbt_deadline_ns: Expected `int` >= 1"),
    (json.dumps(line(target=1.5)), "target: Expected `float` <= 1"),
    (json.dumps(line(end_ns=170 * MS - 1)), "end_ns: 169999999 is before the last event at 170000000"),
    (json.dumps(line(end_ns=..., outcome="timeout")), "no end_ns: a request that was cut"),
    (json.dumps(line(outcome="vanished")), "outcome: Invalid enum value 'vanished'"),
    (json.dumps(line(marks=[[1, "bored", 1]])), "marks[0][1]: Invalid enum value 'bored'"),
    (json.dumps(line(schema=2)), "schema 2: this version reads schema 1"),
    (json.dumps(line(finished=[True, False])), "finished: 2 items for 1 choices"),
    ('{"unknown":' + "[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("raw", "says"), BAD, ids=[says[:30] for _, says in BAD])
def test_a_bad_line_is_named_with_what_is_wrong_and_the_rest_is_scored(
    trace: Any, raw: Any, says: str
) -> None:
    path = trace(line(id="before"), raw, line(id="after"))
    result = run(path, "--json")
    assert result.exit_code == 1
    assert f"{path}:2: " in result.stderr
    assert says in result.stderr
    said = json.loads(result.stdout)
    assert [one["id"] for one in said["requests"]] == ["before", "after"]
    assert said["summary"]["bad_lines"] == 1


def test_a_line_beyond_the_bound_is_skipped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "MAX_LINE", 1000)
    long = json.dumps(line(id="x" * 2500)).encode()
    good = json.dumps(line()).encode()
    read: list[int] = []
    whole = good + b"\n" + long + b"\n" + good + b"\n" + long
    results = list(score_stream(io.BytesIO(whole), "t", None, read.append))
    assert [type(each) for each in results] == [Scored, BadLine, Scored, BadLine]
    assert "a line may have 1000" in str(results[1])
    assert str(results[3]).startswith("t:4: ")
    assert sum(read) == len(whole)


def test_score_line_raises_what_the_command_says() -> None:
    with pytest.raises(LineError, match="each line must be a JSON object"):
        score_line(b"[1]", Overrides())


def test_endless_bad_lines_are_counted_when_enough_were_named(trace: Any) -> None:
    result = run(trace(*["nonsense"] * 1003), "--json")
    assert len(result.stderr.splitlines()) == 1001
    assert "3 more lines could not be scored" in result.stderr
    assert json.loads(result.stdout)["summary"]["bad_lines"] == 1003


# ---------------------------------------------------------------- usage


def test_a_missing_file_is_a_usage_error_before_anything_is_scored(trace: Any, tmp_path: Path) -> None:
    result = run("--json", trace(line()), str(tmp_path / "absent.jsonl"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "No such file" in result.stderr
    assert run("--json", str(tmp_path)).exit_code == 2
    assert run().exit_code == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--ttft", "soon"), "is not a duration"),
        (("--tbt", "50parsecs"), "is not a unit of time"),
        (("--tbt", "0"), "too short"),
        (("--target", "90"), "write 90% if percent is meant"),
    ],
)
def test_bad_flags(trace: Any, flags: tuple[str, str], says: str) -> None:
    result = run(trace(line()), *flags)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())


# ---------------------------------------------------------------- tables


def test_a_table_for_each_file_with_the_worst_first(trace: Any) -> None:
    bad = line(id="bad-one", events=[[80 * MS, 1], [500 * MS, 1]], end_ns=500 * MS)
    first = trace(*(line(id=f"ok-{i}") for i in range(30)), bad, name="first.jsonl")
    second = trace(line(id="evil\x1b[31m[red]"), name="second.jsonl")
    result = run(first, second)
    assert result.exit_code == 0
    text = result.stdout
    assert f"{first}: 31 requests, the 20 worst by fluidity" in text
    assert f"{second}: 1 request; judged by each line's own ttft and tbt\n" in text
    assert text.index("bad-one") < text.index("ok-0 ")
    assert "ok-18" in text
    assert "ok-19" not in text
    assert "evil?[31m[red]" in text
    assert "\x1b" not in text
    assert "all files: 32 requests" in text
    assert text.count("fluid token rate") == 3


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_narrow_terminal_loses_no_id_and_no_figure(
    trace: Any, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    narrow = partial(Console, width=width, highlight=False, emoji=False, markup=False)
    monkeypatch.setattr(screen, "console", lambda piped, *, stderr=False: narrow(stderr=stderr))
    name = "01KD8Z9M5C7J8QW3TB9XEXAMPL"  # as Legato's ids are
    events = [[80 * MS, 1], [130 * MS, 1], [3_800 * MS, 1]]
    path = trace(line(id=name, events=events, end_ns=4_000 * MS, outcome="timeout"))
    text = run(path).stdout
    for shown in (name, "fluidity", "80 ms", "50 ms", "3.67 s", "cut"):
        assert shown in text
    assert all(len(told) <= width for told in text.splitlines() if path not in told)
    assert ("┃" in text) == (width >= 160)  # lines where there is room for them


def test_names_are_shown_as_they_are(trace: Any) -> None:
    """Neither what looks like an emoji nor what looks like markup is one."""
    path = trace(line(id="a[red]b:100:"), "nonsense", name="l:100:[bold].jsonl")
    told = run(path)
    assert f"{path}: 1 request" in told.stdout
    assert "a[red]b:100:" in told.stdout
    assert f"{path}:2: not JSON" in told.stderr


@pytest.mark.parametrize(
    ("flags", "judged", "care"),
    [
        ((), "each line's own ttft and tbt", ""),
        (("--tbt", "30ms"), "tbt 30 ms, each line's own ttft", ""),
        (("--ttft", "0.1", "--tbt", "0.03", "--target", "80%"), "ttft 100 ms, tbt 30 ms, target 0.8", ""),
        (("--tbt", "30"), "tbt 30 s, each line's own ttft", "--tbt 30 is 30 seconds; if not: --tbt 30ms"),
    ],
)
def test_the_title_says_by_what_it_was_judged(
    trace: Any, flags: tuple[str, ...], judged: str, care: str
) -> None:
    done = run(trace(line()), *flags)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].endswith(f"1 request; judged by {judged}")
    assert (care in done.stderr) if care else done.stderr == ""


RECORD = encode_line(settle(streamed(at(50), at(80)), "h").record)


@pytest.mark.parametrize(
    ("content", "mend"),
    [
        (
            RECORD + b"\n",
            "access log: it does not hold arrivals, --trace-log FILE writes",
        ),
        (gzip.compress(json.dumps(line()).encode()), "is compressed: zcat {name} | legato score -"),
        (b"\x28\xb5\x2f\xfd rest", "is compressed: zstdcat {name} | legato score -"),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_what_is_surely_no_trace_is_said_once(tmp_path: Path, content: bytes, mend: str, piped: bool) -> None:
    (tmp_path / "f").write_bytes(content * 20)
    command = [sys.executable, "-m", "proxy.cli", "score", "-" if piped else "f"]
    with (tmp_path / "f").open("rb") as file:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=file, capture_output=True, check=False, timeout=60, text=True
        )
    assert done.returncode == 2
    assert mend.format(name="FILE" if piped else "f") in " ".join(done.stderr.replace("│", " ").split())


def test_the_reader_may_leave_early(trace: Any) -> None:
    path = trace(*(line(id=f"request-{i}") for i in range(2000)))
    code = (
        "import typer; from proxy.commands.score import register; app = typer.Typer(); register(app); app()"
    )
    command = f'{sys.executable} -c "{code}" --json {path} | head -1'
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert done.stdout == b'{"requests":[\n'
    assert done.stderr == b""


def test_the_module_of_the_command_imports_nothing_heavy() -> None:
    code = "import sys, proxy.commands.score; sys.exit('numpy' in sys.modules or 'msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- many requests


def test_beyond_the_exact_bound_quantiles_stay_within_what_they_say() -> None:
    exact, bounded = Summary(), Summary(exact=50)
    for n in range(500):
        late = n * n % 313 * MS
        events = [[80 * MS, 1], [130 * MS + late, 5 + n % 7]]
        one = score_line(json.dumps(line(events=events, end_ns=10**9)).encode(), Overrides())
        exact.add(one)
        bounded.add(one)
    true, found = exact.to_json(), bounded.to_json()
    assert (true["quantiles"], found["quantiles"]) == ("exact", "within 0.8%")
    for q in ("p1", "p50"):
        assert 1 - found["fluidity"][q] == pytest.approx(1 - true["fluidity"][q], rel=0.008)
    assert found["fluid_token_rate"] == pytest.approx(true["fluid_token_rate"], rel=0.008)
    for same in ("requests", "deadline_miss_rate", "share_under_target"):
        assert found[same] == true[same]
    assert len(bounded._fluidities._list) == 0


def test_json_of_a_request_is_what_msgspec_would_read_back() -> None:
    one = score_line(json.dumps(line()).encode(), Overrides())
    assert json.loads(json.dumps(request_json(one))) == request_json(one)
