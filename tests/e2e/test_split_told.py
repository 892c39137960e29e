"""What the control process is told of a split: every request's facts, and counts that outlive it."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from proxy.link import (
    Ack,
    Assigned,
    BackendSpec,
    Beat,
    Facts,
    FactsBatch,
    Frames,
    Hello,
    Match,
    RouteSpec,
    SloSpec,
    SplitSpec,
    Table,
    decode_up,
    frame,
)
from proxy.relay.sticky import Split
from tests.helpers.http1 import LAST_CHUNK, chunk
from tests.helpers.procs import free_port
from tests.helpers.rawclient import CHAT, STREAMED_CHAT, RawClient, get, post
from tests.helpers.upstream import SSE_HEAD, Connection, Upstream, chat_chunk, chat_stream, respond, scripted

SPLIT = SplitSpec(
    "ab", (("a", 50), ("b", 40), ("dead", 10)), "seed", ("header", "x-session-id"), "x-to", failover=True
)


class Control:
    """A worker of its own, and this test in its control process's place: it may go and come back."""

    def __init__(self, table: Table, folder: Path, stack: ExitStack) -> None:
        self.data = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._stack = stack
        self._waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._waiting.bind(str(folder / "link"))
        self._waiting.listen()
        self._waiting.settimeout(20)
        fd = self.data.fileno()
        command = [
            "-m",
            "proxy.relay.worker",
            "--id",
            "0",
            "--listen-fd",
            str(fd),
            "--link",
            str(folder / "link"),
        ]
        worker = subprocess.Popen([sys.executable, *command], pass_fds=[fd])
        stack.callback(worker.wait, 10)
        stack.callback(worker.terminate)
        self.facts: dict[int, Facts] = {}
        self.hello: Hello
        self.beat: Beat
        self.begin()
        self.use(table)

    def begin(self) -> None:
        """Take the worker's connection."""
        self.link = self._stack.enter_context(self._waiting.accept()[0])
        self.link.settimeout(20)
        self._frames = Frames()
        self._until(Hello)

    def use(self, table: Table) -> None:
        """Tell the table, and wait until it is in force."""
        self.link.sendall(frame(table))
        self._until(Beat)
        while self.beat.table_version != table.version:
            self._until(Beat)

    def _until(self, kind: type) -> None:
        while True:
            told = [decode_up(payload) for payload in self._frames.feed(self.link.recv(65536))]
            for message in told:
                if isinstance(message, FactsBatch):
                    self.facts |= {facts.seq: facts for facts in message.facts}
                    self.link.sendall(frame(Ack(message.facts[-1].seq)))
                elif isinstance(message, Beat):
                    self.beat = message
                else:
                    self.hello = message
            if any(isinstance(message, kind) for message in told):
                return

    def ask(self, *requests: bytes) -> None:
        """Each on the same connection."""
        with RawClient(self.data.getsockname(), timeout_s=20) as client:
            for raw in requests:
                client.send(raw)
                client.response()

    def settled(self, count: int) -> list[Facts]:
        """All facts, once there are so many, and a beat after them."""
        while len(self.facts) < count:
            self._until(FactsBatch)
        self._until(Beat)
        self._until(Beat)
        assert len(self.facts) == count
        return list(self.facts.values())


def table(upstream: Upstream, version: int = 1, split: SplitSpec = SPLIT) -> Table:
    backends = [BackendSpec(name, upstream.url) for name in ("a", "b")]
    backends += [BackendSpec("dead", f"http://127.0.0.1:{free_port()}")]
    routes = (RouteSpec(Match(model="plain"), "b"), RouteSpec(Match(), "a", split=split))
    slo = SloSpec("s", Match(), ((0, 10**9),), 10**9)
    return Table(version, tuple(backends), routes, (slo,), exclude=("/health",))


@pytest.fixture
def control() -> Iterator[tuple[Upstream, Control]]:
    with scripted(respond(chat_stream(["a"]))) as upstream, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="legato-test-")))
        yield upstream, Control(table(upstream), folder, stack)


def by_session(name: str) -> bytes:
    return post(CHAT, STREAMED_CHAT, ("X-Session-Id", name))


def rows(facts: list[Facts]) -> dict[tuple[str, str], int]:
    return Counter((one.assignment.backend, one.assignment.by) for one in facts if one.assignment)


def counted(beat: Beat) -> dict[tuple[str, str], int]:
    told: Counter[tuple[str, str]] = Counter()
    for row in beat.assigned:
        for by in ("session", "draw", "no_key", "forced"):
            told[row.backend, by] += getattr(row, by)
    return +told


def test_facts_and_counts_agree_and_outlive_the_control_process(control: tuple[Upstream, Control]) -> None:
    upstream, told = control
    assert told.beat.assigned == [Assigned("ab", name) for name in ("a", "b", "dead")], "known, and 0"
    split = Split(SPLIT)
    sessions = {split.session(b"s%d" % number): b"s%d" % number for number in range(60)}
    told.ask(*(by_session(key.decode()) for key in sessions.values()))
    told.ask(post(CHAT, STREAMED_CHAT), post(CHAT, STREAMED_CHAT))
    told.ask(post(CHAT, STREAMED_CHAT, ("X-To", "dead"), ("X-Session-Id", "s1")))
    told.ask(post(CHAT, b'{"model": "plain"}'), get("/health"))
    facts = told.settled(60 + 2 + 1 + 1)

    for one in facts[:60]:
        assert one.session in sessions
        assert one.assigned == split.arm(one.session)
        assert one.assignment is not None
        away = one.assigned == "dead"
        assert (one.backend != one.assigned) == away == (one.attempts == 2)
        assert one.assignment.failed == ("connection_refused" if away else None)
        assert (one.end, one.error, one.status) == ("complete", None, 200), "the client saw nothing of it"
        assert not one.forced
    assert sum(one.assigned == "dead" for one in facts[:60]) > 1
    for one in facts[60:62]:
        assert one.assignment is not None
        assert (one.assignment.by, one.session) == ("no_key", None)
    assert (facts[62].forced, facts[62].backend, facts[62].error) == (True, "dead", "connection_refused")
    assert facts[62].attempts == 1, "who chooses a backend is not sent to another one"
    assert (facts[63].assignment, facts[63].assigned, facts[63].forced) == (None, "b", False)
    assert all(key not in repr(facts).encode() for key in (b"'s1'", b"s59")), "no key is told"
    assert counted(told.beat) == rows(facts), "what passes unrecorded is not counted"

    told.link.close()  # the control process is killed; meanwhile requests go on
    told.ask(*(by_session(f"t{number}") for number in range(20)))
    told.begin()
    incarnation = told.hello.incarnation
    heavier = replace(SPLIT, arms=(("a", 20), ("b", 70), ("dead", 10)), epoch="new:a20,b70,dead10")
    told.use(table(upstream, 2, heavier))
    facts = told.settled(84)
    assert counted(told.beat) == rows(facts), "the next one reads the whole count in its first beat"
    assert told.hello.incarnation == incarnation
    told.ask(*(by_session(f"u{number}") for number in range(20)))
    facts = told.settled(104)
    since = Counter(one.assigned for one in facts[84:])
    for row in told.beat.assigned:
        if row.epoch:
            assert row.session == sum(row.buckets) == since[row.backend], "of these weights"
    assert all(one.assignment and one.assignment.epoch == heavier.epoch for one in facts[84:])
    assert counted(told.beat) == rows(facts)


WORD, END = chat_chunk({"content": "word"}), chat_chunk({}, finish="stop")
STREAMS, TABLES = 400, 100


async def waiting(conn: Connection) -> None:
    """A word at once, and the rest when it is told."""
    await conn.request()
    await conn.send(SSE_HEAD + chunk(WORD))
    await conn.told()
    await conn.send(chunk(END) + LAST_CHUNK)


def test_a_hundred_tables_touch_no_stream(control: tuple[Upstream, Control]) -> None:
    upstream, told = control
    upstream.use(waiting)
    away = SPLIT.arms[:2]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(told.data.getsockname(), timeout_s=20)) for _ in range(STREAMS)
        ]
        for number, client in enumerate(clients):
            client.send(by_session(f"s{number}"))
        answers = [client.read_into(client.begin(), at_least=len(WORD)) for client in clients]
        for version in range(2, TABLES + 1):
            arms = tuple((name, 1 + (weight + 17 * version) % 100) for name, weight in away)
            told.link.sendall(frame(table(upstream, version, replace(SPLIT, arms=arms))))
        told.use(table(upstream, TABLES + 1, replace(SPLIT, arms=(("a", 0), ("b", 1)))))
        assert sum(group.in_flight for group in told.beat.groups) == STREAMS
        for conn in upstream.connections:
            conn.tell()
        for client, answer in zip(clients, answers, strict=True):
            client.read_into(answer)
            assert (answer.end, answer.body) == ("complete", WORD + END)

    split = Split(SPLIT)
    facts = told.settled(STREAMS)
    homes = [split.arm(split.session(b"s%d" % number)) for number in range(STREAMS)]
    assert Counter(one.assigned for one in facts) == Counter(homes), "as assigned under the first table"
    assert counted(told.beat) == rows(facts)
