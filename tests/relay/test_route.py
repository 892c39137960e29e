"""Which backend and which promises a call gets."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.link import BackendSpec, Match, PromptModel, PromptModels, RouteSpec, SloSpec, Table
from proxy.relay.call import Call
from proxy.relay.route import _LENGTHS, _MEMORY, PromptLengths, RouteTable

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
