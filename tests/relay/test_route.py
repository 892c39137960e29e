"""Which backend and which promises a call gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.link import (
    BackendSpec,
    LearnedCurve,
    Match,
    PromptModel,
    PromptModels,
    RouteSpec,
    SloSpec,
    Table,
)
from proxy.relay.call import Call
from proxy.relay.route import _LENGTHS, _MEMORY, PromptLengths, RouteTable
from scoring.deadlines import DeadlineCurve

MS = 1_000_000
BACKENDS = (BackendSpec("first", "http://a"), BackendSpec("second", "http://b"))
DEFAULT = SloSpec("default", Match(), ((0, 500 * MS),), 50 * MS)


def routes(*rules: tuple[Match, str], slos: tuple[SloSpec, ...] = (DEFAULT,), **more: Any) -> RouteTable:
    return RouteTable(Table(1, BACKENDS, tuple(RouteSpec(m, b) for m, b in rules), slos, **more))


def backend(table: RouteTable, path: str = "/v1/x", model: str | None = None, **headers: str) -> str | None:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    arm = table.choose(Call("POST", path, model), fields)
    return None if arm is None else arm.backend


def test_without_routes_everything_goes_to_the_first_backend() -> None:
    assert backend(routes()) == "first"


def test_the_first_match_wins_and_none_is_none() -> None:
    table = routes((Match(path="/v1/chat/*"), "second"), (Match(path="/v1/*"), "first"))
    assert backend(table, "/v1/chat/completions") == "second"
    assert backend(table, "/v1/completions") == "first"
    assert backend(table, "/v2") is None


def test_a_model_that_nobody_named_matches_no_glob_but_the_star() -> None:
    table = routes((Match(model="llama-*"), "second"), (Match(model="*"), "first"))
    assert backend(table, model="llama-70b") == "second"
    assert backend(table, model="LLAMA-70b") == "first"
    assert backend(table, model=None) == "first"


@pytest.mark.parametrize("value", ["batch", " batch ", "batch-7"])
def test_headers_are_matched_without_regard_to_the_case_of_their_names(value: str) -> None:
    table = routes((Match(header={"x-workload": "batch*"}), "second"), (Match(), "first"))
    assert backend(table, X_WorkLoad=value) == "second"
    assert backend(table, X_Workload="chat") == "first"
    assert backend(table) == "first"


def test_every_condition_must_hold() -> None:
    table = routes((Match("/v1/*", "m", {"x-a": "1", "x-b": "2"}), "second"), (Match(), "first"))
    assert backend(table, model="m", x_a="1", x_b="2") == "second"
    assert backend(table, model="m", x_a="1") == "first"
    assert backend(table, model="n", x_a="1", x_b="2") == "first"
    assert backend(table, "/v2", model="m", x_a="1", x_b="2") == "first"


def test_what_was_remembered_does_not_outlive_a_header() -> None:
    table = routes((Match(header={"x-a": "1"}), "second"), (Match(), "first"))
    for _ in range(3):
        assert backend(table, model="m", x_a="1") == "second"
        assert backend(table, model="m") == "first"


def test_clients_cannot_fill_the_memory() -> None:
    table = routes((Match(model="m-*"), "second"), (Match(), "first"))
    for number in range(_MEMORY + 500):
        assert backend(table, model=f"m-{number}") == "second"
    assert len(table._known) == _MEMORY


# ---------------------------------------------------------------- promises


def test_deadlines_follow_the_estimated_prompt() -> None:
    curve = SloSpec("curve", Match(model="m"), ((0, 500 * MS), (1000, 1500 * MS)), 40 * MS)
    table = routes(slos=(curve, DEFAULT), bytes_per_token=2.0)
    arm = table.choose(Call("POST", "/", "m", text_bytes=1000), [])
    assert arm is not None
    assert (arm.slo.name, arm.prompt_tokens, arm.ttft_ns, arm.tbt_ns) == ("curve", 500, 1000 * MS, 40 * MS)
    beyond = table.choose(Call("POST", "/", "m", text_bytes=10_000_000), [])
    assert beyond is not None
    assert beyond.ttft_ns == 1500 * MS
    other = table.choose(Call("POST", "/", "n"), [])
    assert other is not None
    assert (other.slo.name, other.ttft_ns) == ("default", 500 * MS)


CURVE = SloSpec("curve", Match(), ((0, 500 * MS), (1000, 1500 * MS)), 40 * MS)


def promised(table: RouteTable, **call: Any) -> tuple[int, int]:
    arm = table.choose(Call("POST", "/", **call), [])
    assert arm is not None
    return arm.prompt_tokens, arm.ttft_ns // MS


def test_what_was_learned_decides_for_its_model_and_no_other() -> None:
    lengths = PromptLengths()
    table = RouteTable(Table(1, BACKENDS, (), (CURVE,), bytes_per_token=4.0), lengths)
    assert promised(table, model="m", text_bytes=1000) == (250, 750)
    lengths.learn(PromptModels({"m": PromptModel(2.5, 100.0), "": PromptModel(2.0)}))
    assert promised(table, model="m", text_bytes=1000) == (500, 1000)
    assert promised(table, model="other", text_bytes=1000) == (250, 750)
    assert promised(table, text_bytes=1000) == (500, 1000), "those that name none are learned together"
    assert promised(table, model="m", text_bytes=0) == (0, 500), "no text, no template"


def test_token_ids_need_no_estimate() -> None:
    lengths = PromptLengths()
    table = RouteTable(Table(1, BACKENDS, (), (CURVE,), bytes_per_token=4.0), lengths)
    lengths.learn(PromptModels({"m": PromptModel(2.5, 100.0)}))
    assert promised(table, model="m", tokens=700) == (700, 1200)
    assert promised(table, model="m", tokens=700, text_bytes=250) == (900, 1400)


def test_a_promise_is_not_revised_and_what_was_learned_outlives_the_table() -> None:
    lengths = PromptLengths()
    old = RouteTable(Table(1, BACKENDS, (), (CURVE,)), lengths)
    before = old.choose(Call("POST", "/", "m", text_bytes=1000), [])
    lengths.learn(PromptModels({"m": PromptModel(2.0)}))
    assert before is not None
    assert (before.prompt_tokens, before.ttft_ns) == (250, 750 * MS)
    new = RouteTable(Table(2, BACKENDS, (), (CURVE,)), lengths)
    assert (
        promised(old, model="m", text_bytes=1000) == promised(new, model="m", text_bytes=1000) == (500, 1000)
    )
    lengths.learn(PromptModels({"n": PromptModel(1.0)}))
    assert promised(new, model="m", text_bytes=1000) == (500, 1000), "what is not told anew stays"


def test_learned_lengths_are_bounded_and_the_longest_untold_go() -> None:
    lengths = PromptLengths()
    for number in range(_LENGTHS + 50):
        lengths.learn(PromptModels({f"m{number}": PromptModel(2.0), "kept": PromptModel(1.0)}))
    assert len(lengths._models) == _LENGTHS
    table = RouteTable(Table(1, BACKENDS, (), (CURVE,)), lengths)
    assert promised(table, model="kept", text_bytes=1000)[0] == 1000
    assert promised(table, model="m0", text_bytes=1000)[0] == 250
    assert promised(table, model=f"m{_LENGTHS + 49}", text_bytes=1000)[0] == 500


# ---------------------------------------------------------------- by the prompt's length


def slo(name: str, least: int | None = None, most: int | None = None, **match: Any) -> SloSpec:
    length = None if least is None else (least, most)
    return SloSpec(name, Match(**match, prompt_tokens=length), ((0, 9 * MS),), MS)


def chosen(table: RouteTable, tokens: int, model: str = "m", **headers: str) -> str:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    arm = table.choose(Call("POST", "/", model, tokens=tokens), fields)
    assert arm is not None
    assert arm.prompt_tokens == tokens
    return arm.slo.name


BY_LENGTH = (
    slo("short", 0, 63),
    slo("batch", header={"x-workload": "batch"}),
    slo("of m", 64, 4000, model="m"),
    slo("long", 4001),
    slo("middle"),
    slo("never", 0, 9),
    DEFAULT,
)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(0, "short"), (63, "short"), (64, "of m"), (4000, "of m"), (4001, "long"), (10**9, "long")],
)
@pytest.mark.parametrize("slos", [BY_LENGTH, BY_LENGTH[:1] + BY_LENGTH[2:]], ids=["headers", "remembered"])
def test_an_slo_by_the_prompts_length(slos: tuple[SloSpec, ...], tokens: int, name: str) -> None:
    table = routes(slos=slos)
    for _ in range(2):
        for other in (5, 70, 5000):
            chosen(table, other)
        assert chosen(table, tokens) == name
        assert chosen(table, tokens, "n") == ("middle" if name == "of m" else name)


def test_length_and_header_go_together() -> None:
    table = routes(slos=BY_LENGTH)
    assert chosen(table, 5, x_workload="batch") == "short"
    assert chosen(table, 5000, x_workload="batch") == "batch"
    assert chosen(table, 5000, x_workload="chat") == "long"


def test_one_answer_is_remembered_for_prompts_of_all_lengths() -> None:
    table = routes(slos=(slo("short", 0, 63), DEFAULT))
    assert [chosen(table, tokens) for tokens in range(60, 68)] == ["short"] * 4 + ["default"] * 4
    ((_, offers, _),) = table._known.values()
    assert [spec.name for _, _, spec, _ in offers] == ["short", "default"]


def test_what_comes_behind_an_slo_for_every_length_costs_nothing() -> None:
    table = routes(slos=BY_LENGTH[:1] + BY_LENGTH[2:])
    chosen(table, 5, "n")
    ((_, offers, _),) = table._known.values()
    assert [spec.name for _, _, spec, _ in offers] == ["short", "long", "middle"]


def test_the_last_slo_takes_every_length_that_is_left() -> None:
    only = slo("only", 10, 20)
    assert [chosen(routes(slos=(only,)), tokens) for tokens in (5, 15, 25)] == ["only"] * 3


@given(
    st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 40)), max_size=4),
    st.integers(0, 50),
)
def test_the_first_range_that_holds_it_wins(ranges: list[tuple[int, int | None]], tokens: int) -> None:
    slos = tuple(slo(str(index), *ends) for index, ends in enumerate(ranges))
    holds = [
        str(index)
        for index, (least, most) in enumerate(ranges)
        if least <= tokens and (most is None or tokens <= most)
    ]
    assert chosen(routes(slos=(*slos, DEFAULT)), tokens) == [*holds, "default"][0]


def ttft(table: RouteTable, tokens: int, model: str | None = "m", path: str = "/") -> int:
    arm = table.choose(Call("POST", path, model, tokens=tokens), [])
    assert arm is not None
    return arm.ttft_ns


def test_a_quadratic_of_the_prompt() -> None:
    attention = SloSpec("q", Match(), ((0, 120 * MS),), MS, quadratic=(120 * MS, 80_000_000_000, 350_000))
    table = routes(slos=(attention,))
    assert ttft(table, 0) == 120 * MS
    assert ttft(table, 8192) == 120 * MS + 80_000 * 8192 + 23_488_102, "0.4 ns are rounded down"


LEARNED = SloSpec(
    "learned",
    Match(),
    ((0, 2000 * MS),),
    MS,
    curves=(
        LearnedCurve("first", "m", ((0, 100 * MS), (1000, 200 * MS))),
        LearnedCurve("second", "m", ((0, 50 * MS), (1000, 70 * MS))),
        LearnedCurve("first", "", ((0, 30 * MS),)),
    ),
    slack_ns=300 * MS,
)


def test_a_learned_curve_is_that_of_the_backend_and_model_and_leaves_slack() -> None:
    table = routes((Match(path="/second"), "second"), (Match(), "first"), slos=(LEARNED,))
    assert ttft(table, 500) == (150 + 300) * MS
    assert ttft(table, 500, path="/second") == (60 + 300) * MS
    assert ttft(table, 500, None) == (30 + 300) * MS, "those that name no model have a curve of their own"


def test_where_nothing_was_learned_the_fallback_is_promised_without_slack() -> None:
    table = routes((Match(path="/second"), "second"), (Match(), "first"), slos=(LEARNED,))
    assert ttft(table, 500, "other") == 2000 * MS
    assert ttft(table, 500, None, path="/second") == 2000 * MS
    live = SloSpec("live", Match(), ((0, MS), (10, 11 * MS)), MS, slack_ns=MS, live=True, pages=False)
    assert ttft(routes(slos=(live,)), 5) == 6 * MS


def test_curves_that_come_later_are_promised_by_the_next_table() -> None:
    live = replace(LEARNED, curves=(), live=True, pages=False)
    assert ttft(routes(slos=(live,)), 500) == 2000 * MS
    assert ttft(routes(slos=(replace(live, curves=LEARNED.curves),)), 500) == 450 * MS


def test_other_routes_or_weights_compile_no_promise_anew_and_other_promises_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker takes a table between two chunks: curves of many backends and models take milliseconds."""
    compiled: list[int] = []

    class Counted(DeadlineCurve):
        def __init__(self, points: Any) -> None:
            compiled.append(1)
            super().__init__(points)

    monkeypatch.setattr("proxy.relay.route.DeadlineCurve", Counted)
    table = Table(1, BACKENDS, (RouteSpec(Match(), "first"),), (LEARNED, DEFAULT))
    held = RouteTable(table)
    assert compiled
    compiled.clear()
    copied = msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=Table)
    other = RouteTable(replace(copied, routes=(RouteSpec(Match(), "second"),)), before=held)
    assert (backend(other), compiled) == ("second", [])
    later = replace(DEFAULT, ttft_points=((0, 700 * MS),))
    assert ttft(RouteTable(replace(copied, slos=(later,)), before=other), 5) == 700 * MS


def test_an_slo_by_header() -> None:
    batch = SloSpec("batch", Match(header={"x-workload": "batch"}), ((0, 9 * MS),), MS)
    table = routes(slos=(batch, DEFAULT))
    arm = table.choose(Call("POST", "/"), [(b"X-Workload", b"batch")])
    assert arm is not None
    assert arm.slo.name == "batch"


@pytest.mark.parametrize(
    ("path", "excluded"),
    [("/health", True), ("/healthz", False), ("/v1/models", True), ("/v1/models/a/b", True), ("/v1", False)],
)
def test_excluded_paths(path: str, excluded: bool) -> None:
    assert routes(exclude=("/health", "/v1/models*")).excluded(path) is excluded
