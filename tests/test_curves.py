"""Learned curves in a file: written whole, read back exactly, told to workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Boot, Config, cares, load, redacted, watched_files
from proxy.curves import FrozenCurve, FrozenCurves, read_curves, told, write_curves
from proxy.link import BackendSpec, Table
from proxy.relay.call import Call
from proxy.relay.route import RouteTable
from proxy.tables import build_table
from proxy.words import promise
from scoring.deadlines import DeadlineCurve
from scoring.prefill import MAX_PROMPT_TOKENS, Curve, PrefillLearner
from tests.helpers.curves import FROZEN_AT, flat, learned

MS = 1_000_000
CURVED = Curve(
    ((10, 5 * MS), (1000, 9 * MS)),
    (4_959_600.0, 4040.4, 1e-09),
    (10, 1000),
    250,
    True,
    0.3,
    True,
    ((10, 250),),
)


def read(file: Path) -> Config:
    return load(Boot(file=str(file), flags={}), {})


def config(
    folder: Path, ttft: str = "{learned: curves.yaml, slack: 300ms, fallback: 2s}", more: str = ""
) -> Path:
    """A configuration file with one SLO that promises by learned curves."""
    file = folder / "legato.yaml"
    file.write_text(f"backends: {{vllm: {{url: http://vllm:1}}}}\nslos:\n- name: a\n  ttft: {ttft}\n{more}")
    return file


# ---------------------------------------------------------------- from the file to the worker


def test_curves_travel_from_the_file_to_the_table(tmp_path: Path) -> None:
    learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS), ("vllm", "", 50 * MS), ("gone", "m", 7 * MS))
    (slo,) = build_table(read(config(tmp_path)), 1).slos
    assert [(curve.backend, curve.model, curve.points[0]) for curve in slo.curves] == [
        ("vllm", "m", (1, 100 * MS)),
        ("vllm", "", (1, 50 * MS)),
        ("gone", "m", (1, 7 * MS)),
    ]
    assert (slo.ttft_points, slo.slack_ns, slo.live, slo.pages) == (((0, 2000 * MS),), 300 * MS, False, True)


def test_the_file_is_found_beside_the_configuration_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "else").mkdir()
    learned(tmp_path / "etc" / "curves.yaml", ("vllm", "m", 100 * MS))
    config(tmp_path / "etc")
    monkeypatch.chdir(tmp_path / "else")
    for name in (tmp_path / "etc" / "legato.yaml", Path("../etc/legato.yaml")):
        assert len(build_table(read(name), 1).slos[0].curves) == 1
    absolute = learned(tmp_path / "other.yaml", ("vllm", "m", MS), ("vllm", "n", MS))
    text = f"{{learned: {absolute}, slack: 1s, fallback: 2s}}"
    assert len(build_table(read(config(tmp_path / "etc", text)), 1).slos[0].curves) == 2


def test_a_file_named_live_is_named_by_its_path(tmp_path: Path) -> None:
    learned(tmp_path / "live", ("vllm", "m", 100 * MS))
    for text, count in (("live", 0), ("./live", 1)):
        held = read(config(tmp_path, f"{{learned: {text}, slack: 1s, fallback: 2s}}"))
        assert len(build_table(held, 1).slos[0].curves) == count
        assert held.slos[0].pages is bool(count)


def test_a_configuration_read_again_has_the_curves_of_that_moment(tmp_path: Path) -> None:
    learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    old = read(config(tmp_path))
    learned(tmp_path / "curves.yaml", ("vllm", "m", 200 * MS))
    new = read(config(tmp_path))
    assert old != new
    assert build_table(old, 1).slos[0].curves[0].points[0] == (1, 100 * MS)
    assert build_table(new, 1).slos[0].curves[0].points[0] == (1, 200 * MS)


def test_the_file_is_watched_where_all_is(tmp_path: Path) -> None:
    curves = learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    for switch, files in (("off", []), ("on", [curves])):
        file = config(tmp_path, more=f"watch: {switch}\n")
        boot = Boot(file=str(file), flags={})
        assert watched_files(boot, load(boot, {})) == (str(file), *files)
    live = config(tmp_path, "{learned: live, slack: 1s, fallback: 2s}", "watch: on\n")
    assert watched_files(Boot(file=str(live), flags={}), read(live)) == (str(live),)


def test_it_is_shown_as_it_was_written(tmp_path: Path) -> None:
    curves = learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    assert redacted(read(config(tmp_path)))["slos"][0]["ttft"] == {
        "learned": curves,
        "slack": "300ms",
        "fallback": "2s",
    }


def test_it_is_told_in_words(tmp_path: Path) -> None:
    curves = learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS), ("vllm", "n", 100 * MS))
    rest = "tbt 50ms, fluidity 90% for 99% of everything"
    assert promise(read(config(tmp_path)).slos[0]) == (
        f"a: ttft as learned in {curves} (2 curves, frozen at {FROZEN_AT}) + 300ms slack, "
        f"where nothing was: 2s, {rest}"
    )


def test_a_backend_of_which_nothing_was_learned_deserves_a_look(tmp_path: Path) -> None:
    learned(tmp_path / "curves.yaml", ("other", "m", 100 * MS))
    assert cares(read(config(tmp_path))) == [
        "SLO a: nothing was learned of backend vllm, its requests get the fallback"
    ]
    learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    assert cares(read(config(tmp_path))) == []
    assert cares(read(config(tmp_path, "{learned: live, slack: 1s, fallback: 2s}"))) == []


def test_two_modes_deserve_a_look(tmp_path: Path) -> None:
    curves = (FrozenCurve("vllm", "m", CURVED), FrozenCurve("gone", "m", CURVED))
    write_curves(str(tmp_path / "curves.yaml"), FrozenCurves(FROZEN_AT, curves))
    assert cares(read(config(tmp_path))) == [
        "SLO a: the curve of vllm 'm' is the slower of two modes: "
        "most likely cache hits that are not reported"
    ]


# ---------------------------------------------------------------- writing


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    file = str(tmp_path / "curves.yaml")
    frozen = FrozenCurves(
        FROZEN_AT,
        (
            FrozenCurve("vllm", "llama: 70b", CURVED, 0.021, 0.024),
            FrozenCurve("007", "", flat(MS)),
            FrozenCurve("null", "off", flat(2 * MS), 0.0, None),
        ),
    )
    write_curves(file, frozen)
    assert read_curves(file) == frozen
    assert os.listdir(tmp_path) == ["curves.yaml"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "curves.yaml"
    learned(file, ("vllm", "m", 100 * MS))
    before = file.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        learned(file, ("vllm", "m", 200 * MS))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["curves.yaml"]


# ---------------------------------------------------------------- what a worker is told

_ascending = st.lists(st.integers(1, 200_000), min_size=1, max_size=8, unique=True).map(sorted)


@st.composite
def pieces(draw: st.DrawFn) -> Curve:
    prompts = draw(_ascending)
    levels = sorted(draw(st.lists(st.integers(1, 10**11), min_size=len(prompts), max_size=len(prompts))))
    return Curve(tuple(zip(prompts, levels, strict=True)), observed=(prompts[0], prompts[-1]))


@st.composite
def quadratics(draw: st.DrawFn) -> Curve:
    prompts = draw(_ascending)
    parts = (draw(st.floats(1e6, 1e9)), draw(st.floats(0, 1e6)), draw(st.floats(0, 100)))
    points = tuple((x, round(parts[0] + parts[1] * x + parts[2] * x * x)) for x in prompts)
    return Curve(points, parts, (prompts[0], prompts[-1]))


@given(pieces() | quadratics(), st.integers(0, 400_000), st.integers(0, 400_000))
def test_what_a_worker_is_told_never_falls(curve: Curve, one: int, other: int) -> None:
    points = told("b", "m", curve).points
    assert all(type(number) is int for point in points for number in point)
    worker = DeadlineCurve(points)
    assert worker.at(min(one, other)) <= worker.at(max(one, other))


@given(pieces(), st.integers(0, 400_000))
def test_straight_pieces_are_told_exactly(curve: Curve, prompt: int) -> None:
    """Within what is lost by rounding: the curve to the nearest, the worker down, and the same beyond."""
    worker = DeadlineCurve(told("b", "m", curve).points)
    assert abs(worker.at(prompt) - curve.at(prompt)) <= 1


@given(quadratics(), st.integers(0, 400_000))
def test_a_quadratic_is_told_within_a_500th_and_never_stricter(curve: Curve, prompt: int) -> None:
    worker = DeadlineCurve(told("b", "m", curve).points)
    assert curve.at(prompt) - 2 <= worker.at(prompt) <= curve.at(prompt) * 1.002 + 2


def test_what_was_learned_is_promised_through_the_file(tmp_path: Path) -> None:
    learner = PrefillLearner()
    for index in range(1000):
        prompt = 64 + index * 8
        learner.add(index * 10**9, prompt, None, 20 * MS + 50_000 * prompt + 4 * prompt * prompt)
    curve = learner.curve(1000 * 10**9)
    assert curve is not None
    frozen = FrozenCurves(FROZEN_AT, (FrozenCurve("vllm", "m", curve),))
    write_curves(str(tmp_path / "curves.yaml"), frozen)
    (slo,) = build_table(read(config(tmp_path)), 1).slos
    routes = RouteTable(Table(1, (BackendSpec("vllm", "http://a"),), (), (slo,)))
    for prompt in (1, 64, 1000, 4321, 8000, 20_000):
        arm = routes.choose(Call("POST", "/", "m", tokens=prompt), [])
        assert arm is not None
        assert arm.ttft_ns - 300 * MS == pytest.approx(curve.at(prompt), rel=0.002)


def test_a_curve_beyond_all_clocks_stays_within_them() -> None:
    steep = Curve(((1, 1), (2, 2**62)), observed=(1, 2))
    assert told("b", "m", steep).points[-1] == (MAX_PROMPT_TOKENS, 2**63 - 1)
