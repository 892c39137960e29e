"""Experiments and weights by the admin API: who may, what is refused and why, what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from proxy.control.api_experiments import ExperimentList, SplitWeights, StartExperiment, experiments_router
from proxy.control.bodies import BODY_MAX
from proxy.control.core import Controller
from proxy.control.experiments.spec import ExperimentSpec
from proxy.control.experiments.views import ExperimentView
from tests.control.asked import asking, wrong
from tests.control.experiments.tables import T0, Host, table
from tests.control.pictured import Written, picture

SPLITS = {"ab": {"a": 90, "b": 10}, "c+d": {"c": 1, "d": 1}}
WORD = {"author": "ann", "reason": "ramp"}
WEIGHTS = {"weights": {"a": 50, "b": 50}, **WORD}
START = {"name": "try-2", "control": "a", "candidate": "b", "author": "ann"}


@dataclass
class Scene:
    """One host with two splits and two experiments, an old one and one that runs."""

    host: Host = field(default_factory=lambda: Host(table(SPLITS)))
    experiments: Written = field(
        default_factory=lambda: Written(
            picture("old", state="stopped", since="2026-11-22T00:00:00.000Z"), picture("new-vllm")
        )
    )

    def client(self, **more: Any) -> TestClient:
        """Who asks."""
        legato = Controller(
            table(SPLITS), instance="here", version="1", unix_ns=self.host.clock, monotonic_ns=self.host.clock
        )
        return asking(
            legato,
            lambda reads, changes: [experiments_router(self.experiments, self.host.weights, reads, changes)],
            **more,
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def client(scene: Scene) -> Iterator[TestClient]:
    with scene.client() as client:
        yield client


# ---------------------------------------------------------------- reading


def test_running_ones_come_first(client: TestClient) -> None:
    found = msgspec.json.decode(client.get("/api/experiments").content, type=ExperimentList)
    assert [view.spec.name for view in found.experiments] == ["new-vllm", "old"]


def test_one_by_its_name_whole(client: TestClient) -> None:
    answer = client.get("/api/experiments/new-vllm")
    assert msgspec.json.decode(answer.content, type=ExperimentView) == picture("new-vllm")


def test_a_name_that_nobody_knows_says_which_was_meant(client: TestClient) -> None:
    assert wrong(client.get("/api/experiments/new-vlm")) == (
        404,
        "'new-vlm' is no experiment of this Legato",
        "did you mean 'new-vllm'?",
    )
    assert "GET /api/experiments" in wrong(client.get("/api/experiments/zzz"))[2]


def test_splits_show_the_weights_in_force_and_the_files(client: TestClient) -> None:
    first, second = client.get("/api/splits").json()["splits"]
    assert first == {
        "name": "ab",
        "weights": {"a": 90, "b": 10},
        "file_weights": {"a": 90, "b": 10},
        "override": None,
        "ejected": {},
        "experiment": None,
        "elsewhere": None,
    }
    assert second["name"] == "c+d"


# ---------------------------------------------------------------- weights


def test_other_weights_are_in_force_and_told_with_who_and_why(scene: Scene, client: TestClient) -> None:
    answer = client.put("/api/splits/ab/weights", json=WEIGHTS)
    assert answer.status_code == 200
    found = msgspec.json.decode(answer.content, type=SplitWeights)
    assert (found.weights, found.file_weights) == ({"a": 50, "b": 50}, {"a": 90, "b": 10})
    assert found.override is not None
    assert (found.override.author, found.override.reason) == ("ann", "ramp")
    assert found.override.at == "2027-01-15T08:00:00.000Z"
    assert T0 == 1_800_000_000 * 10**9  # that moment
    assert scene.host.arms() == {"a": 50, "b": 50}
    assert client.get("/api/splits").json()["splits"][0] == answer.json()


def test_a_split_without_a_name_of_its_own_is_quoted(scene: Scene, client: TestClient) -> None:
    body = {"weights": {"c": 3, "d": 1}, **WORD}
    assert client.put("/api/splits/c%2Bd/weights", json=body).status_code == 200
    assert scene.host.arms("c+d") == {"c": 3, "d": 1}


def test_the_files_weights_again(scene: Scene, client: TestClient) -> None:
    client.put("/api/splits/ab/weights", json=WEIGHTS)
    answer = client.request("DELETE", "/api/splits/ab/weights", json=WORD)
    assert (answer.status_code, answer.json()["override"]) == (200, None)
    assert scene.host.arms() == {"a": 90, "b": 10}


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "mend"),
    [
        (
            "ab",
            {"weights": {"a": 1, "bb": 1}, **WORD},
            422,
            "'bb' is none of its backends",
            "did you mean 'b'?",
        ),
        ("ab", {"weights": {"a": 1}, **WORD}, 422, "no weight for b", "{a: 90, b: 10}"),
        ("ab", {"weights": {"a": -1, "b": 1}, **WORD}, 422, "the weight -1", "from 0 to"),
        ("ab", {"weights": {"a": 0, "b": 0}, **WORD}, 422, "no backend has a weight above 0", "give each"),
        ("ab", {"weights": {"a": 1.5, "b": 1}, **WORD}, 422, "weights", "openapi"),
        ("ab", {"weights": {"a": 1, "b": 1}, "author": "ann"}, 422, "reason is missing", "give reason"),
        ("ab", {**WORD}, 422, "weights is missing", "give weights"),
        ("ab", {**WEIGHTS, "author": ""}, 422, "author: '':", "openapi"),
        ("ab", {**WEIGHTS, "author": "  "}, 422, "the author is missing", "say who"),
        ("ab", {**WEIGHTS, "author": "a\x1b[2J"}, 422, "cannot be shown", "plain line"),
        ("ab", {**WEIGHTS, "reason": "x" * 301}, 422, "reason: 'xxx", "openapi"),
        ("ab", {**WEIGHTS, "wieghts": {}}, 422, "'wieghts' is no key", "did you mean 'weights'?"),
        ("abb", WEIGHTS, 404, "'abb' is no split", "did you mean 'ab'?"),
        ("zz", WEIGHTS, 404, "'zz' is no split", "there are ab, c+d"),
    ],
)
def test_weights_that_cannot_be(
    scene: Scene, client: TestClient, path: str, body: Any, status: int, message: str, mend: str
) -> None:
    found = wrong(client.put(f"/api/splits/{path}/weights", json=body))
    assert found[0] == status
    assert message in found[1]
    assert mend in found[2]
    assert scene.host.arms() == {"a": 90, "b": 10}


def test_no_split_of_that_name_can_be_cleared(client: TestClient) -> None:
    assert wrong(client.request("DELETE", "/api/splits/zz/weights", json=WORD))[0] == 404
    assert wrong(client.request("DELETE", "/api/splits/ab/weights", json={"author": "ann"}))[0] == 422


# ---------------------------------------------------------------- experiments


def test_an_experiment_is_started_and_stopped(scene: Scene, client: TestClient) -> None:
    answer = client.post("/api/experiments", json=START)
    assert answer.status_code == 200
    assert answer.json()["by"] == "ann"
    answer = client.post("/api/experiments/try-2/stop", json=WORD)
    assert (answer.status_code, answer.json()["state"]) == (200, "stopped")
    assert scene.experiments.said == [("start", "try-2", "ann"), ("stop", "try-2", "ann", "ramp")]


def test_all_terms_reach_the_experiment() -> None:
    told = START | {
        "split": "ab",
        "metric": "ttft",
        "margin": 0.1,
        "requests": 5000,
        "alpha": 0.01,
        "abort": True,
    }
    asked = msgspec.convert(told, StartExperiment)
    assert asked.spec == ExperimentSpec("try-2", "a", "b", "ab", "ttft", 0.1, 5000, 0.01, True)
    assert type(asked.spec) is ExperimentSpec


@pytest.mark.parametrize(
    ("change", "status", "message", "mend"),
    [
        ({"name": "old"}, 409, "old has been", "used once"),
        ({"candidate": "a"}, 422, "both are one", "name two"),
        ({"name": "a b"}, 422, "name: 'a b':", "openapi"),
        ({"metric": "speed"}, 422, "metric: 'speed':", "openapi"),
        ({"margin": "0.5%"}, 422, "margin: '0.5%':", "openapi"),
        ({"requests": 3}, 422, "requests: 3:", "openapi"),
        ({"alpha": 0.7}, 422, "alpha: 0.7:", "openapi"),
        ({"contrl": "a"}, 422, "'contrl' is no key", "did you mean 'control'?"),
        ({"author": None}, 422, "author: None:", "openapi"),
    ],
)
def test_an_experiment_that_cannot_be(
    scene: Scene, client: TestClient, change: dict[str, Any], status: int, message: str, mend: str
) -> None:
    found = wrong(client.post("/api/experiments", json=START | change))
    assert found[0] == status
    assert message in found[1]
    assert mend in found[2]
    assert scene.experiments.said == []


def test_an_author_is_asked_for(client: TestClient) -> None:
    without = {key: value for key, value in START.items() if key != "author"}
    assert wrong(client.post("/api/experiments", json=without)) == (
        422,
        "author is missing",
        "give author",
    )


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [("old", 409, "old is stopped"), ("nobody", 404, "'nobody' is no experiment")],
)
def test_what_does_not_run_cannot_be_stopped(
    client: TestClient, name: str, status: int, message: str
) -> None:
    found = wrong(client.post(f"/api/experiments/{name}/stop", json=WORD))
    assert found[0] == status
    assert message in found[1]


# ---------------------------------------------------------------- who may

CHANGES = (
    ("PUT", "/api/splits/ab/weights", WEIGHTS),
    ("DELETE", "/api/splits/ab/weights", WORD),
    ("POST", "/api/experiments", START),
    ("POST", "/api/experiments/new-vllm/stop", WORD),
)
READS = ("/api/experiments", "/api/experiments/old", "/api/splits")
TOKENS = {"token": "reads", "write_token": "writes"}


@dataclass
class Asker:
    """Somebody, and what becomes of a change and of a question."""

    why: str
    change: int
    read: int
    given: dict[str, str] = field(default_factory=dict)


ASKERS = (
    Asker("this host, where there is no token", 200, 200),
    Asker("another host", 403, 403, {"address": "10.0.0.9"}),
    Asker("a page by a name of its own", 403, 403, {"host": "evil.example"}),
    Asker("no token", 401, 401, {"token": "reads"}),
    Asker("another token", 401, 401, {"token": "reads", "sends": "x"}),
    Asker("the token, from anywhere", 200, 200, {"token": "reads", "sends": "reads", "address": "10.0.0.9"}),
    Asker("the reading token where changes have one", 401, 200, {**TOKENS, "sends": "reads"}),
    Asker("the changing token", 200, 401, {**TOKENS, "sends": "writes"}),
    Asker("this host without the changing token", 401, 200, {"write_token": "writes"}),
)


@pytest.mark.parametrize("asker", ASKERS, ids=lambda asker: asker.why)
def test_who_may_change_and_who_may_read(asker: Asker) -> None:
    for method, path, body in CHANGES:
        scene = Scene()
        with scene.client(**asker.given) as client:
            assert client.request(method, path, json=body).status_code == asker.change, path
        if asker.change != 200:
            assert (scene.experiments.said, scene.host.said()) == ([], None)
    with Scene().client(**asker.given) as client:
        assert [client.get(path).status_code for path in READS] == [asker.read] * len(READS)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_a_body_of_another_type_changes_nothing(
    scene: Scene, client: TestClient, kind: str, method: str, path: str, body: dict[str, Any]
) -> None:
    answer = client.request(method, path, content=msgspec.json.encode(body), headers={"content-type": kind})
    assert answer.status_code == 415
    assert (scene.experiments.said, scene.host.said()) == ([], None)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "is no JSON"),
        (b"{", 422, "is no JSON"),
        (b"\xff\xfe", 422, "is no JSON"),
        (b"[" * 20_000, 422, "is no JSON"),
        (b"[]", 422, "no JSON object"),
        (b'"x"', 422, "no JSON object"),
        (b'{"weights": {"a": 1}, "' + b"x" * BODY_MAX + b'": 1}', 413, "64 KiB"),
    ],
)
def test_bodies_that_are_none(client: TestClient, content: bytes, status: int, message: str) -> None:
    answer = client.put(
        "/api/splits/ab/weights", content=content, headers={"content-type": "application/json"}
    )
    found = wrong(answer)
    assert found[0] == status
    assert message in found[1]
    assert len(answer.content) < 1000


def test_the_document_describes_bodies_and_answers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    start = document["paths"]["/api/experiments"]["post"]
    (schema,) = [each["schema"]["$ref"] for each in start["requestBody"]["content"].values()]
    assert schema.endswith("/StartExperiment")
    schemas = document["components"]["schemas"]
    assert {"name", "control", "candidate", "author"} <= set(schemas["StartExperiment"]["required"])
    assert {"NewWeights", "Word", "SplitWeights", "ExperimentList"} <= schemas.keys()
    for path, method in (("/api/splits/{name}/weights", "put"), ("/api/experiments/{name}/stop", "post")):
        assert {"401", "403", "404", "413", "415", "422"} <= document["paths"][path][method][
            "responses"
        ].keys()
