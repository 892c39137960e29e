"""The admin API over all hosts: the default, one host's answer where Redis is away, records from any host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from proxy.control.api_requests import own_records
from proxy.control.core import Controller
from proxy.control.fleet.answers import Away
from proxy.control.fleet.fleet import FleetState
from proxy.control.fleet.reader import Reader
from proxy.control.record import Record, iso_time
from proxy.control.settle import GroupKey, settle
from proxy.control.store import Store
from proxy.control.windows import Booked, WindowBook
from proxy.link import BackendNow, FactsBatch, GroupNow, Hello
from tests.control.facts import UNIX, S, facts
from tests.control.fleet.fakes import Memory, Ticks, reader
from tests.control.test_api import serving
from tests.control.test_windows import HOUR, MINUTE, Clock, control, ended, stream_now
from tests.control.test_workers import hello
from tests.test_report_command import run as report

QWEN = GroupKey("default", "qwen", "default")


@dataclass
class Joined:
    """What a controller is given as its fleet, as far as it is read."""

    reader: Reader

    def booked(self, booked: Booked) -> None:
        """Nothing is written."""

    def seen(self, worker: str, number: int) -> None:
        """Nothing is written."""

    def hello(self, hello: Hello) -> None:
        """Nothing is written."""

    def state(self) -> FleetState:
        """How it goes."""
        return FleetState("i", "ok", None, 0, 0, 0, 0, None, {})


class Scene:
    """This host ended one request, each of two others 30 in the last 5 minutes; served over HTTP."""

    def __init__(self) -> None:
        self.clock = Clock(UNIX - UNIX % HOUR + 40 * MINUTE)
        self.memory, self.monotonic = Memory(), Ticks()
        book = WindowBook(self.clock.now_ns)
        booked: dict[str, list[Booked]] = {"b": [], "c": []}
        for number in range(60):
            made = stream_now(self.clock, 80, 110 + number)
            settled = settle(made, "other")
            booked["bc"[number % 2]].append(book.add(QWEN, settled))
            self.memory.record(settled.record)
            self.clock.now_ns += 5 * S
        self.clock.now_ns += 3 * S
        self.own: Controller = control(self.clock)
        self.own.feed(hello())
        mine = ended(self.clock, facts(100, id="mine", model="llama"))
        self.own.feed(FactsBatch([mine]))
        booked["a"] = [book.add(GroupKey("default", "llama", "default"), settle(mine, "here"))]
        for host, there in booked.items():
            self.memory.write(host, there)
        for host, up in (("b", True), ("c", False)):
            self.memory.picture(
                host,
                self.clock.now_ns,
                [GroupNow(*QWEN, 3, 1, 2, 5_000_000)],
                [BackendNow("gpu", up, 2, 1, 0, 4)],
            )
        self.reader = reader(self.memory, Ticks(self.clock.now_ns), self.monotonic)
        self.own.join(Joined(self.reader))

    def fails(self, reason: str | None) -> None:
        """Redis answers (or not) from now on, and what was kept has had its time."""
        self.memory.fails = reason
        self.monotonic.now_ns += 10 * S


@contextmanager
def served() -> Iterator[tuple[Scene, httpx.Client]]:
    scene = Scene()
    with serving(scene.own) as client:
        yield scene, client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served() as (_, client):
        yield client


# ---------------------------------------------------------------- all hosts


@pytest.mark.parametrize("query", ["window=1h", "window=1h&scope=fleet", "window=1d"])
def test_a_window_is_of_all_hosts(client: httpx.Client, query: str) -> None:
    found = client.get(f"/api/summary?{query}").json()
    assert (found["scope"], found["instances"], found["degraded"]) == ("fleet", 3, None)
    assert found["total"]["requests"] == 61
    assert [(group["model"], group["requests"]) for group in found["groups"]] == [("llama", 1), ("qwen", 60)]
    assert found["groups"][1]["objective"] is not None


def test_what_is_in_flight_is_that_of_all_hosts_and_the_own_share_is_not(client: httpx.Client) -> None:
    found = client.get("/api/summary?window=5m").json()
    assert found["total"]["in_flight"]["requests"] == 6
    assert found["groups"][-1]["in_flight"]["overdue"] == 2
    assert found["backends"] == [
        {"name": "gpu", "up": True, "active": 4, "idle": 2, "connecting": 0, "addresses": 4}
    ]
    assert (found["instance"], found["proxy"]["instance"], found["proxy"]["workers"]) == ("here", "here", 1)


@pytest.mark.parametrize("query", ["", "?scope=host", "?window=1h&scope=host"])
def test_this_host_alone(client: httpx.Client, query: str) -> None:
    found = client.get(f"/api/summary{query}").json()
    assert (found["scope"], found["instances"], found["degraded"]) == ("host", 1, None)
    assert found["total"]["requests"] == 1


def test_curves_are_of_all_hosts(client: httpx.Client) -> None:
    found = client.get("/api/curves/miss-rate?window=1h").json()
    assert (found["scope"], found["instances"], found["degraded"]) == ("fleet", 3, None)
    assert found["total"]["miss_rate"]["scored"] == 60
    assert client.get("/api/curves/miss-rate?scope=host").json()["total"]["miss_rate"] is None


@pytest.mark.parametrize(
    ("query", "series", "points"),
    [("window=10m&step=1m", 1, 11), ("window=1h&by=model", 2, 61), ("window=5m&step=10s&by=group", 2, 31)],
)
def test_a_series_adds_up_to_the_window(client: httpx.Client, query: str, series: int, points: int) -> None:
    found = client.get(f"/api/timeseries?metric=requests&{query}").json()
    assert (found["scope"], found["degraded"]) == ("fleet", None)
    assert [len(each["points"]) for each in found["series"]] == [points] * series
    assert sum(point["value"] for each in found["series"] for point in each["points"]) == 61
    for each in found["series"]:
        for before, after in zip(each["points"], each["points"][1:], strict=False):
            assert before["to"] == after["from"]


def test_a_series_by_model_names_the_model_and_nothing_else(client: httpx.Client) -> None:
    found = client.get("/api/timeseries?metric=ttft_p50&window=10m&step=5m&by=model").json()
    names = [(each["backend"], each["model"], each["slo"]) for each in found["series"]]
    assert names == [(None, "llama", None), (None, "qwen", None)]
    llama, qwen = ([point["value"] for point in each["points"]] for each in found["series"])
    assert set(llama) == {None}
    assert any(value == pytest.approx(0.08, rel=0.01) for value in qwen)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("path", "says", "mend"),
    [
        ("/api/summary?scope=fleet", "needs a window", "window=1h"),
        ("/api/summary?scope=planet", "scope", "fleet"),
        ("/api/timeseries?metric=requests&window=1m&step=5m", "longer than the window", "15m"),
    ],
)
def test_what_cannot_be_answered_says_how_to_mend_it(
    client: httpx.Client, path: str, says: str, mend: str
) -> None:
    refused = client.get(path)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert says in error["message"]
    assert mend in error["mend"] + error["message"]


def test_too_many_points_over_all_hosts_are_refused() -> None:
    with served() as (scene, client):
        once = settle(ended(scene.clock), "other")
        book = WindowBook(scene.clock.now_ns)
        scene.memory.write("b", [book.add(GroupKey("b", f"m{n}", "s"), once) for n in range(40)])
        refused = client.get("/api/timeseries?metric=requests&window=1d&step=1m&by=group")
        assert refused.status_code == 422
        assert "step: '1m' makes" in refused.json()["error"]["message"]
        assert "by=none" in refused.json()["error"]["mend"]


@pytest.mark.parametrize(
    "path", ["/api/summary?window=1h", "/api/timeseries?metric=requests", "/api/requests?"]
)
def test_without_redis_there_is_no_fleet(path: str) -> None:
    with serving(control(Clock())) as client:
        plain = client.get(path)
        assert (plain.status_code, plain.json()["scope"]) == (200, "host")
        refused = client.get(f"{path}&scope=fleet")
    assert refused.status_code == 422
    assert "needs Redis, and none is configured" in refused.json()["error"]["message"]
    assert "redis.url" in refused.json()["error"]["mend"]


def test_without_redis_its_client_is_not_imported() -> None:
    code = "import sys, proxy.control.api, proxy.control.controller; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- Redis away


def test_away_this_host_answers_and_says_so_and_back_again() -> None:
    with served() as (scene, client):
        begun = iso_time(scene.clock.now_ns)
        paths = (
            "/api/summary?window=1h",
            "/api/curves/miss-rate",
            "/api/timeseries?metric=requests&window=10m",
        )
        for path in paths:
            assert client.get(path).json()["scope"] == "fleet"
        scene.fails("slow")
        for path in (*paths, "/api/requests?scope=fleet"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert (answer.json()["scope"], answer.json()["degraded"]) == (
                "host",
                {"reason": "slow", "since": begun},
            )
        assert client.get("/api/summary?window=1h").json()["total"]["requests"] == 1
        assert client.get("/api/summary?window=1h&scope=host").json()["degraded"] is None
        assert client.get("/readyz").status_code == 200
        assert scene.memory.asked < 20  # not once for each of them
        scene.fails(None)
        for path in paths:
            assert (client.get(path).json()["scope"], client.get(path).json()["degraded"]) == ("fleet", None)


def test_what_was_passed_over_is_shown() -> None:
    with served() as (scene, client):
        assert client.get("/api/fleet").json()["nonsense"] == 0
        damaged = {key: b"damaged" for key in scene.memory.stored}
        scene.memory.stored |= damaged
        scene.fails(None)
        client.get("/api/summary?window=1h")
        assert client.get("/api/fleet").json()["nonsense"] == len(damaged) == 2


# ---------------------------------------------------------------- records


def test_a_record_of_another_host_is_found_by_its_id() -> None:
    with served() as (scene, client):
        other = scene.reader
        theirs = client.get("/api/requests?scope=fleet").json()["requests"][-1]
        assert theirs["instance"] == "other"
        found = client.get(f"/api/requests/{theirs['id']}")
        assert found.status_code == 200
        assert found.json() == theirs | {"timeline": None}
        assert client.get("/api/requests/mine").json()["instance"] == "here"
        unknown = client.get("/api/requests/unknown")
        assert unknown.status_code == 404
        assert "Redis" not in unknown.json()["error"]["mend"]
        scene.fails("away")
        away = client.get(f"/api/requests/{theirs['id']}")
        assert away.status_code == 404
        assert "Redis: away" in away.json()["error"]["mend"]
        assert client.get("/api/requests/mine").status_code == 200
        assert other.away is not None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 61),
        ("&backend=default", 61),
        ("&model=nobody", 0),
        ("&id=mine", 1),
        ("&stream=true", 60),
        ("&stream=false", 1),
        ("&outcome=completed", 61),
        ("&outcome=timeout", 0),
        ("&status=200&min_duration_s=0.15", 21),
        ("&min_missed=1", 19),
        ("&max_fluidity=0", 0),
        ("&sort=worst", 60),
    ],
)
def test_records_of_all_hosts_are_filtered_as_those_of_one(
    client: httpx.Client, query: str, count: int
) -> None:
    found = client.get(f"/api/requests?scope=fleet&limit=1000{query}").json()
    assert (found["scope"], found["searched"]) == ("fleet", 61)
    assert found["matched"] == len(found["requests"]) == count


def test_the_latest_come_first(client: httpx.Client) -> None:
    times = [each["time"] for each in client.get("/api/requests?scope=fleet").json()["requests"]]
    assert times == sorted(times, reverse=True)
    assert len(client.get("/api/requests").json()["requests"]) == 1


def test_records_that_nobody_asked_for_yet_are_built_between_turns_of_the_loop() -> None:
    store = Store()
    store.add_many([settle(facts(id=f"r{number}"), "here") for number in range(500)])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def story() -> list[Record]:
        task = asyncio.create_task(others())
        found = await own_records(store)
        task.cancel()
        return found

    assert {each.id for each in asyncio.run(story())} == {f"r{number}" for number in range(500)}
    assert turns >= 10


# ---------------------------------------------------------------- the report


def test_the_report_says_whose_numbers_it_shows() -> None:
    with served() as (scene, client):
        url = str(client.base_url)
        told = report("--admin", url).output
        assert "on 3 instances (as here reads them)" in told
        assert "of here alone" in told
        assert "on here:" in report("--admin", url, "--scope", "host").output
        scene.fails("slow")
        told = report("--admin", url).output
        assert "this is here alone" in told
        assert "(Redis: slow since " in told


def test_where_only_writing_fails_all_hosts_are_shown_and_it_is_said() -> None:
    with served() as (scene, client):
        trouble = [Away("read_only", scene.clock.now_ns - 60 * S)]
        told = {"reason": "read_only", "since": iso_time(scene.clock.now_ns - 60 * S)}
        scene.reader = reader(scene.memory, Ticks(scene.clock.now_ns), trouble=lambda: trouble[-1])
        scene.own.join(Joined(scene.reader))
        found = client.get("/api/summary?window=1h").json()
        assert (found["scope"], found["degraded"], found["total"]["requests"]) == ("fleet", told, 61)
        assert "what ended on here of late is missing" in report("--admin", str(client.base_url)).output
        trouble.append(Away("slow", scene.clock.now_ns))
        asked = scene.memory.asked
        found = client.get("/api/summary?window=1d").json()
        assert (found["scope"], found["degraded"]["reason"]) == ("host", "slow")
        assert scene.memory.asked == asked  # the writer's word is enough
