"""The file's weights, what is put in their place, and what is lowered: which table is in force."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from proxy.control.experiments.arms import AUTHOR_MAX, REASON_MAX, WEIGHT_MAX
from proxy.control.experiments.weights import (
    EPOCHS_MAX,
    Named,
    Override,
    SplitView,
    WeightsError,
    arms_of,
    epoch_of,
)
from proxy.link import LearnedCurve, Match, RouteSpec, Table
from tests.control.experiments.tables import MS, T0, Host, split, table

AB = {"a": 90, "b": 10}
FILE = table({"ab": AB, "cd": {"c": 1, "d": 1}})
NAMED = {"ab": Named("spring", "a", "b")}


def put(host: Host, arms: dict[str, int], name: str = "ab") -> None:
    host.weights.override(name, arms, author="ann", reason="a try")


def test_the_file_is_in_force_at_the_start() -> None:
    host = Host(FILE)
    assert host.published == [FILE]
    assert host.weights.splits() == [
        SplitView("ab", AB, AB),
        SplitView("cd", {"c": 1, "d": 1}, {"c": 1, "d": 1}),
    ]


def test_an_override_takes_the_place_of_the_files_weights_until_it_is_cleared() -> None:
    host = Host(FILE)
    put(host, {"b": 60, "a": 40})
    expected = replace(
        FILE,
        version=2,
        routes=(
            replace(FILE.routes[0], backend="b", split=split("ab", {"a": 40, "b": 60})),
            *FILE.routes[1:],
        ),
    )
    assert host.published == [FILE, expected]
    view = host.weights.splits()[0]
    assert view == SplitView("ab", {"a": 40, "b": 60}, AB, Override({"a": 40, "b": 60}, "ann", "a try", T0))

    host.weights.clear("ab", author="ben", reason="enough")
    assert host.table == replace(FILE, version=3)
    host.weights.clear("ab", author="ben", reason="enough")
    assert host.table.version == 3, "there was nothing to clear"


@pytest.mark.parametrize(
    ("name", "arms", "author", "reason", "what", "mend"),
    [
        ("abc", AB, "ann", "why", "'abc' is no split", "did you mean 'ab'?"),
        ("zzz", AB, "ann", "why", "'zzz' is no split", "there are ab, cd"),
        (
            "ab",
            {"a": 1, "bb": 1},
            "ann",
            "why",
            "split ab: 'bb' is none of its backends",
            "did you mean 'b'?",
        ),
        ("ab", {**AB, "zzz": 1}, "ann", "why", "split ab: 'zzz' is none of its", "its backends are a, b"),
        ("ab", {"a": 1}, "ann", "why", "split ab: no weight for b", "for example {a: 90, b: 10}"),
        ("ab", {}, "ann", "why", "split ab: no weight for a, b", "for example {a: 90, b: 10}"),
        ("ab", {"a": 0, "b": 0}, "ann", "why", "split ab: no backend has a weight above 0", "{a: 90, b: 10}"),
        ("ab", {"a": -1, "b": 2}, "ann", "why", "split ab: a has the weight -1", "from 0 to 1000000"),
        ("ab", {"a": 0.5, "b": 0.5}, "ann", "why", "split ab: a has the weight 0.5", "a whole number"),
        ("ab", {"a": True, "b": 1}, "ann", "why", "split ab: a has the weight True", "a whole number"),
        ("ab", {"a": WEIGHT_MAX + 1, "b": 1}, "ann", "why", "a has the weight 1000001", "to 1000000"),
        ("ab", AB, "  ", "why", "the author is missing", "give the author"),
        ("ab", AB, "ann", "", "the reason is missing", "give the reason"),
        ("ab", AB, "n" * (AUTHOR_MAX + 1), "why", "the author has 101 characters", "at most 100"),
        ("ab", AB, "ann", "y" * (REASON_MAX + 1), "the reason has 301 characters", "at most 300"),
        ("ab", AB, "ann", "one\ntwo", "the reason holds characters", "one plain line"),
        ("ab", AB, "an\x1b[2Jn", "why", "the author holds characters", "one plain line"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_mend(
    name: str, arms: dict[str, int], author: str, reason: str, what: str, mend: str
) -> None:
    host = Host(FILE)
    with pytest.raises(WeightsError) as refused:
        host.weights.override(name, arms, author=author, reason=reason)
    assert what in refused.value.what
    assert mend in refused.value.mend
    assert host.published == [FILE], "and nothing changed"


def test_a_file_without_splits_says_where_weights_are_written() -> None:
    with pytest.raises(WeightsError, match=r"'ab' is no split.*write one, and reload"):
        put(Host(table({})), AB)


@pytest.mark.parametrize(
    ("file", "arms", "stays"),
    [
        (FILE, {"a": 1, "b": 1}, True),
        (table({"ab": AB, "cd": {"c": 3, "d": 1}}), {"a": 1, "b": 1}, True),
        (table({"ab": {"a": 91, "b": 10}, "cd": {"c": 1, "d": 1}}), {"a": 91, "b": 10}, False),
        (table({"ab": {"a": 90, "x": 10}}), {"a": 90, "x": 10}, False),
    ],
    ids=["nothing new", "another split", "other weights", "other backends"],
)
def test_after_a_reload_the_file_wins_where_it_changed(
    file: Table, arms: dict[str, int], stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(FILE)
    put(host, {"a": 1, "b": 1})
    put(host, {"c": 0, "d": 5}, "cd")
    with caplog.at_level(logging.INFO):
        host.weights.set_file(replace(file, version=2))
    assert host.arms() == arms
    assert host.said() == ("ann" if stays else None)
    assert host.table.version == 4, "versions rise, whatever the file's was"
    assert any("the file was changed there and wins" in line for line in caplog.messages) == (
        not stays or file is not FILE
    )
    host.weights.set_file(replace(FILE, version=20))
    assert host.table.version == 20
    assert host.said() == ("ann" if stays else None), "what was dropped does not come back"


def test_certificates_are_read_again_by_a_new_version_of_the_same() -> None:
    host = Host(FILE)
    put(host, {"a": 1, "b": 1})
    before = host.table
    host.weights.renew()
    assert host.table == replace(before, version=before.version + 1)


# ---------------------------------------------------------------- ejected


@pytest.mark.parametrize(
    ("factors", "arms", "ejected"),
    [
        ({"b": 0.0}, {"a": 90_000, "b": 0}, {"b": 0.0}),
        ({"b": 0.1}, {"a": 90_000, "b": 1_000}, {"b": 0.1}),
        ({"b": 0.3}, {"a": 90_000, "b": 3_000}, {"b": 0.3}),
        ({"a": 0.0, "b": 0.1}, {"a": 0, "b": 1_000}, {"a": 0.0, "b": 0.1}),
        ({"a": 0.0, "b": 0.0}, AB, {}),
        ({"b": 1.0}, AB, {}),
        ({"elsewhere": 0.0}, AB, {}),
    ],
)
def test_factors_lower_weights_and_never_all_of_them(
    factors: dict[str, float], arms: dict[str, int], ejected: dict[str, float]
) -> None:
    host = Host(FILE)
    for name, factor in factors.items():
        host.weights.eject(name, factor)
    assert host.arms() == arms
    assert host.weights.splits()[0].ejected == ejected
    for name in factors:
        host.weights.eject(name, 1.0)
    assert replace(host.table, version=1) == FILE


def test_nothing_is_published_for_a_factor_that_changes_nothing() -> None:
    host = Host(FILE)
    host.weights.eject("b", 0.0)
    host.weights.eject("b", 0.0)
    host.weights.eject("elsewhere", 0.0)
    assert [each.version for each in host.published] == [1, 2]


def test_an_ejection_applies_to_an_override_too() -> None:
    host = Host(FILE)
    host.weights.eject("b", 0.0)
    put(host, {"a": 50, "b": 50})
    assert host.arms() == {"a": 50_000, "b": 0}
    put(host, {"a": 0, "b": 50})
    assert host.arms() == {"a": 0, "b": 50}, "nothing else is left"


# ---------------------------------------------------------------- experiments


@pytest.mark.parametrize(
    ("arms", "epoch"),
    [
        ({"b": 10, "a": 90}, "spring|a=90,b=10"),
        ({"c.1": 0, "a-2": 1_000_000_000}, "spring|a-2=1000000000,c.1=0"),
    ],
)
def test_an_epoch_names_its_weights(arms: dict[str, int], epoch: str) -> None:
    assert epoch_of("spring", arms) == epoch
    assert arms_of(epoch) == ("spring", arms)


@pytest.mark.parametrize(
    "text", ["", "spring", "spring|", "|a=1", "spring|a", "spring|a=x", "spring|a=1,,b=2"]
)
def test_what_is_no_epoch_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="names no epoch"):
        arms_of(text)


def test_weights_bear_the_epoch_of_their_experiment_as_long_as_it_runs() -> None:
    host = Host(FILE)
    host.weights.name_epochs(NAMED)
    seen = []

    def look() -> None:
        view = host.weights.splits()[0]
        spec = host.table.routes[0].split
        assert spec is not None
        assert spec.epoch == view.epoch == epoch_of("spring", dict(spec.arms))
        assert view.experiment == "spring"
        seen.append(view.epoch)

    look()
    put(host, {"a": 50, "b": 50})
    look()
    host.weights.eject("b", 0.1)
    look()
    assert seen == ["spring|a=90,b=10", "spring|a=50,b=50", "spring|a=50000,b=5000"]
    assert host.table.routes[1] == FILE.routes[1], "the other split is in no experiment"
    count = len(host.published)
    host.weights.name_epochs(dict(NAMED))
    assert len(host.published) == count, "that was known"

    host.weights.eject("b", 1.0)
    host.weights.clear("ab", author="ann", reason="done")
    host.weights.name_epochs({})
    assert replace(host.table, version=1) == FILE


def test_so_many_different_weights_are_the_most_of_one_experiment() -> None:
    host = Host(FILE)
    host.weights.name_epochs(NAMED)
    for weight in range(1, EPOCHS_MAX):
        put(host, {"a": 1000, "b": weight})
    with pytest.raises(
        WeightsError, match=r"spring has had 64 different weights.*stop it and start a new one"
    ):
        put(host, {"a": 1, "b": 1000})
    put(host, {"a": 1000, "b": 7})  # those again are no new epoch
    put(host, {"c": 7, "d": 1}, "cd")  # and the other split is in no experiment
    host.weights.name_epochs({"ab": Named("summer", "a", "b")})
    put(host, {"a": 1, "b": 1000})
    assert host.weights.splits()[0].epoch == "summer|a=1,b=1000"
    host.weights.name_epochs(NAMED)
    put(host, {"a": 1, "b": 999})  # it begins anew


def curve(backend: str, model: str, ttft_ms: int) -> LearnedCurve:
    return LearnedCurve(backend, model, ((0, ttft_ms * MS), (1000, 2 * ttft_ms * MS)))


def test_both_arms_of_an_experiment_are_promised_what_the_control_is() -> None:
    curves = (
        curve("a", "m", 100),
        curve("b", "m", 300),
        curve("b", "only-b", 400),
        curve("a", "only-a", 200),
        curve("c", "m", 500),
    )
    file = table({"ab": AB, "cd": {"c": 1, "d": 1}}, curves=curves)
    host = Host(file)
    host.weights.name_epochs(NAMED)

    def promises(backend: str) -> dict[str, object]:
        return {each.model: each.points for each in host.table.slos[0].curves if each.backend == backend}

    assert promises("b") == promises("a") == {"m": curves[0].points, "only-a": curves[3].points}
    assert promises("c") == {"m": curves[4].points}
    assert host.table.slos[0].slack_ns == file.slos[0].slack_ns
    put(host, {"a": 50, "b": 50})
    assert promises("b") == promises("a")

    host.weights.name_epochs({})
    assert host.table.slos == file.slos, "each its own again"


@pytest.mark.parametrize(
    "names",
    [
        {"ab": Named("x", "a", "b"), "bc": Named("y", "b", "c")},
        {"bc": Named("x", "a", "b"), "ab": Named("y", "b", "c")},
        {"ab": Named("x", "a", "b"), "bc": Named("y", "c", "b")},
        {"ab": Named("x", "a", "c"), "bc": Named("y", "b", "c")},
        {"ab": Named("x", "a", "b"), "bc": Named("y", "b", "a"), "c": Named("z", "b", "c")},
    ],
)
def test_backends_that_several_experiments_join_are_judged_by_one_curve(names: dict[str, Named]) -> None:
    curves = tuple(curve(name, "m", ms) for name, ms in (("a", 100), ("b", 300), ("c", 500), ("d", 700)))
    host = Host(table({"ab": AB}, curves=curves))
    host.weights.name_epochs(names)
    told = {each.backend: each.points for each in host.table.slos[0].curves}
    assert len(host.table.slos[0].curves) == 4
    assert told["a"] == told["b"] == told["c"] in [each.points for each in curves[:3]]
    assert told["d"] == curves[3].points


def test_routes_that_share_a_splits_name_change_together() -> None:
    both = replace(
        FILE,
        routes=(
            RouteSpec(Match(model="m"), "a", split=split("a+b", {"a": 3, "b": 1})),
            RouteSpec(Match(), "b", split=split("a+b", {"a": 1, "b": 3})),
        ),
    )
    host = Host(both)
    put(host, {"a": 5, "b": 5}, "a+b")
    assert [dict(route.split.arms) for route in host.table.routes if route.split] == [{"a": 5, "b": 5}] * 2
    host.weights.clear("a+b", author="ann", reason="done")
    assert replace(host.table, version=1) == both
