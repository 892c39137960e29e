"""How experiments begin and end: by the file, at run time, by a reload that takes their ground away."""

from __future__ import annotations

import logging

import msgspec
import pytest

from proxy.control.experiments.experiments import ENDED_MAX
from proxy.control.experiments.spec import ExperimentError, ExperimentSpec
from proxy.control.experiments.views import ExperimentView
from proxy.link import SplitSpec
from proxy.settings.experiment import Experiment
from tests.control.experiments.lab import Host, Lab, spec, split, table_of, well
from tests.control.experiments.test_experiment import seen
from tests.control.facts import S


def of_file(name: str | None = "exp", **fields: object) -> Experiment:
    given = {"control": "control", "candidate": "candidate"} if name else {}
    return Experiment.model_validate({"name": name, **given, **fields})


def configure(host: Host, settings: Experiment, *splits: SplitSpec) -> None:
    """As a reload does: the weights first."""
    table = table_of(*(splits or host.lab.splits))
    host.weights.set_file(table)
    host.experiments.configure(settings, table)


def marked(host: Host) -> dict[str, str | None]:
    return {view.name: view.experiment for view in host.weights.splits()}


def test_the_file_starts_one_and_leaving_it_out_stops_it() -> None:
    host = Lab().host()
    host.experiments.configure(of_file(), host.table)
    assert marked(host) == {"chat": "exp"}
    assert (seen(host).by, seen(host).state) == ("file", "running")
    configure(host, of_file())  # a reload that changes nothing
    assert seen(host).state == "running"
    host.serve(300)
    host.second()
    configure(host, of_file(None))
    assert marked(host) == {"chat": None}
    stopped = seen(host)
    assert (stopped.state, stopped.ended_by) == ("stopped", "file")
    assert stopped.control.recorded > 0
    configure(host, of_file())  # a name is used once
    assert (marked(host), seen(host).state) == ({"chat": None}, "stopped")


def test_the_files_next_one_takes_the_place_of_the_one_before() -> None:
    host = Lab().host()
    host.experiments.configure(of_file("one"), host.table)
    configure(host, of_file("two"))
    assert marked(host) == {"chat": "two"}
    assert {view.spec.name: view.state for view in host.experiments.views()} == {
        "one": "stopped", "two": "running",
    }  # fmt: skip


def test_terms_are_fixed_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    host = Lab().host()
    host.experiments.configure(of_file(), host.table)
    with caplog.at_level(logging.ERROR):
        configure(host, of_file(margin=0.5))
    assert "its terms were fixed when it began" in caplog.text
    assert seen(host).spec.margin is None
    assert seen(host).state == "running"


GROUND = [
    (split(control=50, candidate=40, third=10), "running", None),
    (split(control=10, candidate=90), "running", None),
    (split(control=50, third=50), "stopped", "the routes were changed: split chat is over control, third"),
    (split(sticky=True), "stopped", "the routes were changed: sticky or not"),
]


@pytest.mark.parametrize(("after", "state", "why"), GROUND)
def test_a_reload_may_take_its_ground_away(after: SplitSpec, state: str, why: str | None) -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    configure(host, of_file(None), after)
    assert (seen(host).state, seen(host).ended_for) == (state, why)
    assert marked(host) == {"chat": "exp" if state == "running" else None}


TWO = (split(), SplitSpec("rest", (("candidate", 1), ("control", 1)), "seed"))
REFUSED = [
    (spec(candidate="control"), (), "control and candidate are both control", "two different backends"),
    (spec(candidate="fourth"), (), "no route is split over control and fourth", "write one that is"),
    (spec(split="caht"), (), "caht is no split", "did you mean chat?"),
    (spec(split="nothing-like-it"), (), "nothing-like-it is no split", "there are chat"),
    (spec(split="chat", candidate="fourth"), (), "split chat is over candidate, control", "name two"),
    (spec(), TWO, "control and candidate are in several splits", "name one: split: chat or split: rest"),
    (
        spec(),
        (split(), split(sticky=True)),
        "some routes of split chat are sticky and some are not",
        "give these routes names",
    ),
]


@pytest.mark.parametrize(("wanted", "splits", "what", "mend"), REFUSED)
def test_what_cannot_be_is_refused_with_its_mend(
    wanted: ExperimentSpec, splits: tuple[SplitSpec, ...], what: str, mend: str
) -> None:
    host = Lab(*splits).host()
    with pytest.raises(ExperimentError) as caught:
        host.experiments.start(wanted, "ann")
    assert caught.value.what == what
    assert mend in caught.value.mend
    assert host.experiments.views() == []


def test_one_per_split_and_each_name_once() -> None:
    host = Lab(*TWO).host()
    host.experiments.start(spec("one", split="chat"), "ann")
    with pytest.raises(ExperimentError, match="split chat is in experiment one"):
        host.experiments.start(spec("two", split="chat"), "ann")
    host.experiments.start(spec("two", split="rest"), "ann")
    assert marked(host) == {"chat": "one", "rest": "two"}
    host.experiments.stop("one", "bob", "seen enough")
    with pytest.raises(ExperimentError, match="there is an experiment one already: a name is used once"):
        host.experiments.start(spec("one", split="chat"), "ann")
    with pytest.raises(ExperimentError, match="experiment one has ended"):
        host.experiments.stop("one", "bob", "again")
    with pytest.raises(ExperimentError, match="there is no experiment 'three': known are: one, two"):
        host.experiments.stop("three", "bob", "again")
    with pytest.raises(ExperimentError, match="the author is missing"):
        host.experiments.stop("two", " ", "again")
    assert marked(host) == {"chat": None, "rest": "two"}


def test_two_splits_have_their_experiments_apart() -> None:
    host = Lab(*TWO).host()
    host.experiments.start(spec("one", split="chat"), "ann")
    host.experiments.start(spec("two", split="rest"), "ann")
    for which, times in ((0, 30), (1, 20)):
        for _ in range(times):
            host.workers[0].assign(host, None, well, which)
    host.rest()
    host.second()
    views = host.experiments.views()
    counted = {view.spec.name: view.control.recorded + view.candidate.recorded for view in views}
    assert counted == {"one": 30, "two": 20}


def test_those_that_ended_last_stay() -> None:
    host = Lab().host()
    for number in range(ENDED_MAX + 5):
        host.lab.now_ns += S
        host.experiments.start(spec(f"e{number}"), "ann")
        if not number:
            host.serve(200)
            host.second()
            assert seen(host, "e0").control.assigned > 50
        host.experiments.stop(f"e{number}", "ann", "next")
    host.second()
    names = [view.spec.name for view in host.experiments.views()]
    assert names == [f"e{number}" for number in range(ENDED_MAX + 4, 4, -1)]
    host.experiments.start(spec("e0"), "ann")  # long forgotten, with all that it had counted
    host.second()
    assert seen(host, "e0").control.assigned == 0


def test_a_view_is_complete_json() -> None:
    host = Lab(split(sticky=True)).host()
    host.experiments.start(spec(margin=0.01), "ann")
    host.serve(400, sessions=range(300))
    host.second()
    view = seen(host)
    assert msgspec.json.decode(msgspec.json.encode(view), type=ExperimentView) == view
    assert len(view.metrics) == 7
    for metric in view.metrics:
        assert all(reason.what and reason.what != reason.code for reason in metric.reasons)
        assert metric.title
    assert view.occupied == [len(set(buckets)) for buckets in occupied(host)]
    assert view.metrics[0].margin == 0.01


def occupied(host: Host) -> list[list[int]]:
    out: dict[str, list[int]] = {"control": [], "candidate": []}
    for each in host.settled:
        if each.assignment is not None:
            out[each.assignment.backend].append(each.assignment.bucket)
    return list(out.values())


def test_before_any_request_everything_is_said_to_be_unknown() -> None:
    host = Lab().host()
    host.experiments.start(spec(), "ann")
    host.second()
    view = seen(host)
    assert (view.verdict, view.headline) == (
        "undecided",
        "undecided on good requests: an arm has no request that shows this",
    )
    assert view.epochs == []
    assert view.hosts == 1
    assert view.hour is None
    assert [quantile.value_s for quantile in view.control.ttft] == [None, None, None]
