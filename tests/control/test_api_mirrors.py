"""``/api/mirrors`` over HTTP: what it shows, what it says beside it, and who may read it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from proxy.control.api import _install_errors
from proxy.control.api_mirrors import MirrorsView, mirrors_router, view
from proxy.control.core import Controller
from proxy.control.experiments.pairs import Pairs
from proxy.control.guard import Guard
from proxy.link import Facts, FactsBatch, Match, MirrorSpec, RouteSpec, Table
from tests.control.experiments.test_pairs import Clock, copy, request
from tests.control.facts import DEFAULT, at, facts
from tests.control.test_workers import beat, hello


def mirrored(share: float = 1.0) -> Table:
    routes = (RouteSpec(Match(), "stable", mirror=MirrorSpec("next", share)),)
    return Table(1, (), routes, (DEFAULT,))


def scene(share: float, *batch: Facts, dropped: int = 0) -> tuple[Controller, Pairs]:
    control = Controller(
        mirrored(share), instance="here", version="1", unix_ns=lambda: 10**18, monotonic_ns=lambda: 0
    )
    pairs = Pairs(Clock())
    control.add_sink(pairs)
    control.add_mirror(pairs.copies)
    control.feed(hello())
    numbered = [msgspec.structs.replace(each, seq=seq) for seq, each in enumerate(batch, 1)]
    control.feed(FactsBatch(numbered))
    control.feed(msgspec.structs.replace(beat(), mirror_dropped={"next": dropped}))
    return control, pairs


def shown(share: float, *batch: Facts, dropped: int = 0) -> MirrorsView:
    return view(*scene(share, *batch, dropped=dropped))


def rows(pairs: int) -> list[Facts]:
    out = []
    for number in range(pairs):
        events = [at(50 + number % 7), at(90)], [at(70 + number % 5), at(90)]
        out += [request(f"r{number}", *events[0]), copy(f"r{number}", *events[1])]
    return out


def test_a_pair_of_backends_is_shown_with_ids_and_intervals() -> None:
    (shadow,) = shown(1.0, *rows(30)).shadows
    assert (shadow.shadow, shadow.shares) == ("next", [1.0])
    assert shadow.results == {"completed": 30, "failed": 0, "timeout": 0, "dropped": 0}
    assert shadow.unpaired == {"requests": 0, "copies": 0}
    (one,) = shadow.by_backend
    assert (one.backend, one.pairs, one.excluded, one.cut) == ("stable", 30, {}, 0)
    ttft = one.metrics["ttft"]
    assert ttft.pairs == 30
    assert ttft.effect == pytest.approx(0.019, abs=0.002)
    assert ttft.low is not None
    assert ttft.high is not None
    assert ttft.effect is not None
    assert ttft.low < ttft.effect < ttft.high
    assert ttft.verdict == "undecided"
    assert ttft.reasons[0].startswith("too_few: not enough pairs yet")
    assert one.metrics["good"].reasons
    assert (one.last[0].id, one.last[0].copy_id) == ("r29", "copy-r29")
    assert (one.last[0].ttft_s, one.last[0].copy_ttft_s) == (0.051, 0.074)


@pytest.mark.parametrize(
    ("share", "dropped", "said"),
    [
        (1.0, 0, ["every request of its route"]),
        (0.05, 0, ["copies only, of a part of the requests"]),
        (1.0, 7, ["copies only", "7 of 8 copies were dropped"]),
    ],
)
def test_what_to_bear_in_mind_is_said(share: float, dropped: int, said: list[str]) -> None:
    (shadow,) = shown(share, *rows(1), dropped=dropped).shadows
    assert shadow.results["dropped"] == dropped
    assert len(shadow.says) == len(said)
    assert all(part in sentence for part, sentence in zip(said, shadow.says, strict=True))


def test_a_shadow_of_which_nothing_is_known_yet_and_one_that_is_gone() -> None:
    (shadow,) = shown(0.5).shadows
    assert (sum(shadow.results.values()), shadow.by_backend) == (0, [])
    shadows = shown(1.0, request("a", shadow="old"), copy("a", backend="old")).shadows
    assert [each.shadow for each in shadows] == ["next", "old"]
    assert shadows[1].says == ["No route copies to old any more."]


def test_copies_are_in_nothing_else() -> None:
    control, _ = scene(1.0, *rows(3))
    snapshot = control.snapshot()
    assert [(group.backend, sum(group.results.values())) for group in snapshot.groups] == [("stable", 3)]
    assert control.store.find("r0") is not None
    assert control.store.find("copy-r0") is None


def client_of(token: str | None) -> TestClient:
    control, pairs = scene(1.0, *rows(2))
    app = FastAPI()
    app.include_router(mirrors_router(control, pairs, Guard(lambda: token)))
    _install_errors(app)
    return TestClient(app, base_url="http://localhost")


def test_the_route_is_guarded_and_typed() -> None:
    assert client_of("secret").get("/api/mirrors").status_code == 401
    answer: Any = client_of("secret").get("/api/mirrors", headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 200
    told = msgspec.json.decode(answer.content, type=MirrorsView)
    assert told.shadows[0].by_backend[0].pairs == 2


def test_a_shadow_that_takes_nothing_is_said_to() -> None:
    batch = []
    for number in range(3):
        made = facts(status=404, stream_asked=True)
        refused = msgspec.structs.replace(made, id=f"c{number}", mirror_of=f"r{number}", backend="next")
        batch += [request(f"r{number}"), refused]
    (shadow,) = shown(1.0, *batch).shadows
    assert shadow.by_backend[0].excluded == {"rejected_by_shadow": 3}
    assert shadow.says[-1] == "next rejected 3 copies of requests that were taken: they are in no metric."
