"""Files of learned curves that are wrong: each mistake with its line, value and mend; anything at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import ConfigErrors, ConfigProblem
from proxy.curves import read_curves
from tests.helpers.curves import flat
from tests.test_curves import config, read

MS = 1_000_000
HEAD = "version: 1\nfrozen_at: x\ncurves:\n"
AGAIN = "write the file anew with `legato freeze`"


def good(**parts: Any) -> str:
    """The list with one curve in it, some of its parts replaced."""
    times = {"p50": 0.02, "p99": 0.03}
    plain = {"backend": "vllm", "model": "m", "tbt_s": times, "curve": flat(MS).to_plain()}
    return yaml.safe_dump([{**plain, **parts}], sort_keys=False)


#: The line of a second curve in the list.
SECOND = 4 + good().count("\n")
#: The file -> (line, setting, value, mend) of everything that is wrong.
MISTAKES: list[tuple[str, list[tuple[int, str, str, str]]]] = [
    ("", [(1, "", "", f"nothing: version, frozen_at and curves are needed: {AGAIN}")]),
    ("- a", [(1, "", "", f"a list: version, frozen_at and curves are needed: {AGAIN}")]),
    ("\n\nhello", [(3, "", "hello", f"'hello': version, frozen_at and curves are needed: {AGAIN}")]),
    ("curves: []", [(1, "version", "", f"nothing: this Legato reads version 1: {AGAIN}")]),
    ("\nversion: 2", [(2, "version", "2", f"2: this Legato reads version 1: {AGAIN}")]),
    ("version: true", [(1, "version", "True", f"True: this Legato reads version 1: {AGAIN}")]),
    ("version: '1'", [(1, "version", "1", f"'1': this Legato reads version 1: {AGAIN}")]),
    (
        "version: 1",
        [(1, "curves", "", f"no curve is in it: let requests go through Legato first, then {AGAIN}")],
    ),
    (
        HEAD + "  []",
        [(3, "curves", "", f"no curve is in it: let requests go through Legato first, then {AGAIN}")],
    ),
    (
        HEAD + "  x",
        [(3, "curves", "x", f"no curve is in it: let requests go through Legato first, then {AGAIN}")],
    ),
    (HEAD + "- x", [(4, "curves[0]", "x", f"'x': backend, model and curve are needed: {AGAIN}")]),
    (
        HEAD + good(backend=7),
        [(4, "curves[0].backend", "7", "7: a backend's name is needed, quoted if it is a number")],
    ),
    (
        HEAD + good(backend=""),
        [(4, "curves[0].backend", "", "'': a backend's name is needed, quoted if it is a number")],
    ),
    (
        HEAD + good(model=7.5),
        [(5, "curves[0].model", "7.5", "7.5: a model's name is needed, quoted if it is a number")],
    ),
    (
        HEAD + good(curve=None),
        [(9, "curves[0].curve", "", f"is no curve (nothing: a mapping is needed): {AGAIN}")],
    ),
    (
        HEAD + good(curve="x"),
        [(9, "curves[0].curve", "", f"is no curve ('x': a mapping is needed): {AGAIN}")],
    ),
    (
        HEAD + good(tbt_s=0.5),
        [(6, "curves[0].tbt_s", "0.5", "0.5: write {p50: SECONDS, p99: SECONDS}, or leave it out")],
    ),
    (
        HEAD + good(tbt_s={"p50": -1, "p99": "fast"}),
        [
            (7, "curves[0].tbt_s.p50", "-1", "-1: seconds from 0 up are needed, or leave it out"),
            (8, "curves[0].tbt_s.p99", "fast", "'fast': seconds from 0 up are needed, or leave it out"),
        ],
    ),
    (
        HEAD + good(tbt_s={"p50": float("inf"), "p99": True}),
        [
            (7, "curves[0].tbt_s.p50", "inf", "inf: seconds from 0 up are needed, or leave it out"),
            (8, "curves[0].tbt_s.p99", "True", "True: seconds from 0 up are needed, or leave it out"),
        ],
    ),
    (
        HEAD + good() + good(curve=None).replace("backend: vllm", "backend: [b]"),
        [
            (SECOND, "curves[1].backend", "", "a list: a backend's name is needed, quoted if it is a number"),
            (SECOND + 5, "curves[1].curve", "", f"is no curve (nothing: a mapping is needed): {AGAIN}"),
        ],
    ),
    (
        HEAD + good() + good(),
        [(SECOND, "curves[1]", "", "'vllm' and 'm' stand in curves[0] already: keep one of them")],
    ),
    ("a: [1", [(1, "", "", f"is no YAML (expected ',' or ']', but got '<stream end>'): {AGAIN}")]),
    (
        "\na: !env x",
        [(2, "", "", f"is no YAML (could not determine a constructor for the tag '!env'): {AGAIN}")],
    ),
    ("a: &x [*x]", [(1, "version", "", f"nothing: this Legato reads version 1: {AGAIN}")]),
    ("a: 2026-99-99", [(1, "", "", f"is no YAML (ValueError): {AGAIN}")]),
    ("[" * 5000, [(1, "", "", f"is no YAML (RecursionError): {AGAIN}")]),
    ("\udcff", [(1, "", "", f"is no UTF-8 text: {AGAIN}")]),
]


@pytest.mark.parametrize(("text", "wanted"), MISTAKES, ids=[text[:60] for text, _ in MISTAKES])
def test_each_mistake_in_the_file_has_line_value_and_mend(
    tmp_path: Path, text: str, wanted: list[tuple[int, str, str, str]]
) -> None:
    file = tmp_path / "curves.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigErrors) as caught:
        read(config(tmp_path))
    found = [(problem.place, problem.key, problem.value, problem.mend) for problem in caught.value.problems]
    assert found == [(f"{file}:{line}", *rest) for line, *rest in wanted]


def test_what_is_wrong_stands_beside_what_is_wrong_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "curves.yaml").write_text("version: 2")
    with pytest.raises(ConfigErrors) as caught:
        read(
            config(
                tmp_path, more="- {name: b, ttft: {learned: curves.yaml, slack: 1s, fallback: 2s}, tbt: 5}\n"
            )
        )
    assert {(Path(found.place).name, found.key) for found in caught.value.problems} >= {
        ("curves.yaml:1", "version"),
        ("legato.yaml:5", "slos[1].tbt"),
    }
    assert len([found for found in caught.value.problems if found.key == "version"]) == 1


def test_what_this_version_does_not_know_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "curves.yaml"
    moment = HEAD.replace("frozen_at: x", "frozen_at: 2026-11-20T03:14:07Z\nlater: {a: [b]}")
    file.write_text(moment + good(more=5, tbt_s=None, model=None))
    frozen = read_curves(str(file))
    assert frozen.frozen_at == "2026-11-20T03:14:07+00:00", "unquoted, YAML reads a moment"
    assert [(curve.model, curve.tbt_p50_s) for curve in frozen.curves] == [("", None)]


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["backend", "model", "curve", "tbt_s", "p50", "p99", "points"])
_curves = st.lists(st.dictionaries(_names, _anything, max_size=4) | _anything, max_size=3)


@given(st.fixed_dictionaries({"version": st.just(1) | _anything, "curves": _curves | _anything}))
@settings(max_examples=150, deadline=None)
def test_any_file_is_read_or_refused_with_reasons(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.curves.yaml"
    file.write_text(yaml.safe_dump(plain))
    problems: tuple[ConfigProblem, ...] = ()
    try:
        assert read_curves(str(file)).table()
        return
    except ConfigErrors as errors:
        problems = errors.problems
    assert problems
    assert all(problem.mend and problem.place.startswith(f"{file}:") for problem in problems)
