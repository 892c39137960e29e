"""What a dead worker took along is counted once, and exactly: over links, restarts and control processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest

from proxy.control.core import Controller
from proxy.control.dead import LINK_NS, UNHEARD_NS
from proxy.control.linkserver import LinkServer
from proxy.control.workers import GRACE_NS, Worker, Workers
from proxy.link import PROTOCOL, Facts, Hello, frame
from proxy.tally import Begun, Tally, claim, make_tally
from tests.control.facts import facts, table
from tests.control.test_workers import beat, hello, lost, now


@dataclass
class Host:
    """The memory, who lives, and the control process of now."""

    fd: int
    living: set[int] = field(default_factory=set)
    now_ns: int = 0
    born: int = 0
    booked: int = 0

    def __post_init__(self) -> None:
        self.control()

    def control(self) -> None:
        """A control process takes the place of the one before."""
        self.workers = Workers(Tally(self.fd, self.living.__contains__))

    def look(self, after_ns: int = 1_000_000_000, *, behind_ns: int = 0) -> dict[str, int]:
        """What is lost, a while later; ``behind_ns``: since when there is more to read than is booked."""
        self.now_ns += after_ns
        self.workers.sweep(self.now_ns)
        self.workers.look_for_dead(self.now_ns, self.now_ns - behind_ns)
        return lost(self.workers)


class Live:
    """A worker with a link that delivers when it is told to."""

    def __init__(self, host: Host, number: int = 0) -> None:
        host.born += 1
        self.host, self.number = host, number
        self.pid, self.incarnation = 1000 + host.born, f"{host.born:016x}"
        self.begun: Begun = claim(host.fd, number, self.incarnation, self.pid)
        host.living.add(self.pid)
        self.numbered = self.acked = 0
        self.held: Worker | None = None

    def hello(self) -> Live:
        said = Hello(PROTOCOL, self.number, self.pid, self.incarnation, self.numbered + 1, self.acked, 0)
        self.held = self.host.workers.hello(said)
        return self

    def begin(self, count: int) -> Live:
        for _ in range(count):
            self.begun.count()
        return self

    def end(self, count: int, *, told: bool = True, acked: bool = True) -> Live:
        """So many end; ``told``: all that was not yet is sent and booked; ``acked``: and that is heard."""
        self.numbered += count
        if told and self.held is not None:
            batch = [facts(seq=n) for n in range(self.acked + 1, self.numbered + 1)]
            self.host.booked += len(self.host.workers.fresh(self.held, batch))
            self.host.workers.settled(self.held)
            if acked:
                self.acked = self.numbered
        return self

    def die(self, *, read: bool = True) -> None:
        """``read``: its link's end was read."""
        self.host.living.discard(self.pid)
        if read and self.held is not None:
            self.host.workers.left(self.held, self.host.now_ns)


@pytest.fixture
def host() -> Iterator[Host]:
    fd = make_tally(2)
    assert fd is not None
    yield Host(fd)
    os.close(fd)


def test_what_was_in_flight_and_what_was_not_told(host: Host) -> None:
    worker = Live(host).hello().begin(20).end(7).end(5, told=False)
    worker.die()
    assert host.look() == {"worker_lost": 20 - 7}
    assert host.look() == {"worker_lost": 13}, "once"
    Live(host).hello()
    assert host.look(GRACE_NS) == {"worker_lost": 13}, "nor by who takes its place"


def test_the_last_beat_is_not_asked_where_there_is_a_count(host: Host) -> None:
    worker = Live(host).hello().begin(6)
    assert worker.held is not None
    host.workers.beat(worker.held, beat(now(in_flight=50), dropped={"facts": 3}))
    worker.die()
    assert host.look() == {"worker_lost": 6}
    assert host.look(GRACE_NS) == {"worker_lost": 6}
    assert host.workers.lost_in_flight() == {"default": 50}, "experiments go by what the beat says"


def test_nothing_is_counted_before_all_that_it_sent_is_read(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(2)
    worker.die(read=False)
    assert host.look() == {}
    successor = Live(host).hello()  # its hello overtook what the dead one had sent
    assert host.look() == {}
    worker.end(3)
    worker.die()
    assert host.look() == {"worker_lost": 5}
    successor.begin(1).die()
    assert host.look() == {"worker_lost": 6}


def test_a_worker_that_only_stays_away_took_nothing_along(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(2).end(3, told=False)
    assert worker.held is not None
    host.workers.left(worker.held, host.now_ns)
    assert host.look(GRACE_NS) == {}
    assert host.look(60 * GRACE_NS) == {}
    worker.hello().end(0)
    assert host.look() == {}
    worker.end(5).die()
    assert host.look() == {}, "all ten were told"


def test_one_that_stayed_away_and_died_there(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(2).end(3, told=False)
    assert worker.held is not None
    host.workers.left(worker.held, host.now_ns)
    assert host.look(GRACE_NS) == {}
    worker.die(read=False)
    assert host.look() == {"worker_lost": 8}


def test_what_it_wrote_to_a_link_that_nobody_accepted_yet_is_read_first(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(2)
    worker.die()  # its link had broken, and it had opened another one
    assert host.look(LINK_NS - 1) == {}
    worker.hello().end(5)
    worker.die()
    assert host.look(LINK_NS) == {"worker_lost": 3}


def test_nothing_is_counted_while_more_has_arrived_than_is_booked(host: Host) -> None:
    """A control process that comes late has much to read: what the dead one had sent is in it somewhere."""
    heard, unheard = Live(host).hello().begin(10), Live(host, 1).begin(10)
    heard.die()
    unheard.die(read=False)
    for _ in range(20):
        assert host.look(behind_ns=host.now_ns + 1_000_000_000) == {}
    unheard.hello().end(7)
    unheard.die()
    assert host.look(LINK_NS) == {"worker_lost": 10 + 3}


def test_at_the_end_nothing_is_waited_for(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(2)
    Live(host, 1).begin(4).die(read=False)
    worker.die()
    host.workers.look_for_dead(host.now_ns, host.now_ns, last=True)
    assert lost(host.workers) == {"worker_lost": 12}


def test_a_graceful_end_takes_nothing_along(host: Host) -> None:
    Live(host).hello().begin(10).end(10).die()
    Live(host, 1).hello().die()
    assert host.look() == host.look(GRACE_NS) == {}


def test_a_gap_is_counted_as_a_gap_and_not_again(host: Host) -> None:
    worker = Live(host).hello().begin(10)
    assert worker.held is not None
    host.workers.fresh(worker.held, [facts(seq=1), facts(seq=4)])  # 2 and 3 were let go
    host.workers.settled(worker.held)
    worker.die()
    assert host.look() == {"facts": 2, "worker_lost": 6}


def test_a_new_control_process_counts_nothing_of_who_lives_on(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(4).end(2, acked=False)
    host.control()
    assert host.look(10 * UNHEARD_NS) == {}, "not even before it said hello again"
    worker.hello().end(1)  # with what nobody had acknowledged
    assert host.look() == {"settled_by_lost_control": 4}
    worker.die()
    assert host.look() == {"settled_by_lost_control": 4, "worker_lost": 3}


def test_who_died_while_no_control_process_was_there(host: Host) -> None:
    worker = Live(host).hello().begin(10).end(4).end(2, acked=False).end(1, told=False)
    Live(host, 1).hello().begin(5).die()
    assert host.look() == {"worker_lost": 5}
    host.control()
    worker.die(read=False)
    Live(host).begin(3).hello()
    assert host.look() == {}, "what it wrote may still wait in the socket"
    assert host.look(UNHEARD_NS) == {"settled_by_lost_control": 6, "worker_lost": 4}
    host.control()
    assert host.look(UNHEARD_NS) == {}, "its predecessor had counted it"


def test_what_it_had_written_to_nobody_is_read_first(host: Host) -> None:
    worker = Live(host).begin(10)
    worker.die(read=False)
    assert host.look() == {}
    worker.hello().end(6)  # it waited in the listening socket
    assert host.look(10 * UNHEARD_NS) == {}
    worker.die()
    assert host.look() == {"worker_lost": 4}


def test_a_pid_that_another_process_has_by_now_hides_nobody(host: Host) -> None:
    worker = Live(host).hello().begin(3)
    worker.die()
    host.living.add(worker.pid)
    assert host.look(GRACE_NS) == {}
    Live(host).hello()
    assert host.look() == {"worker_lost": 3}


def test_without_a_count_of_its_own_the_last_beat_tells(host: Host) -> None:
    worker = host.workers.hello(hello(worker=0, incarnation="f" * 16))
    host.workers.beat(worker, beat(now(in_flight=3)))
    host.workers.left(worker, host.now_ns)
    assert host.look(GRACE_NS) == {"worker_lost": 3}


@pytest.mark.parametrize("seed", range(40))
def test_everything_begun_is_in_one_book(host: Host, seed: int) -> None:
    """Random lives: what this process booked, what it says is lost, and what those that live still hold."""
    dice = Random(seed)
    lives = {number: Live(host, number).hello() for number in range(2)}
    begun = 0
    for _ in range(200):
        number = dice.randrange(2)
        live = lives[number]
        match dice.choice(("begin", "begin", "end", "end", "away", "kill", "look")):
            case "begin":
                count = dice.randrange(20)
                live.begin(count)
                begun += count
            case "end":
                running = live.begun.counted - live.numbered
                live.end(dice.randint(0, running), told=dice.random() < 0.7, acked=dice.random() < 0.8)
            case "away":
                assert live.held is not None
                host.workers.left(live.held, host.now_ns)
                host.now_ns += dice.choice((0, GRACE_NS))
                host.workers.sweep(host.now_ns)
                live.hello()
            case "kill":
                live.die()
                if dice.random() < 0.5:
                    host.look()
                lives[number] = Live(host, number).hello()
            case "look":
                host.look(dice.randrange(3_000_000_000))
        host.look(LINK_NS)
        held = sum(live.begun.counted - _seen(live) for live in lives.values())
        told = lost(host.workers)
        assert host.booked + told.pop("worker_lost", 0) + held == begun
        assert told == {}
    told = host.look()
    for live in lives.values():
        live.end(live.begun.counted - live.numbered).die()
    assert host.look() == told, "who told everything took nothing along"


def _seen(live: Live) -> int:
    return 0 if live.held is None else live.held.seen


# ---------------------------------------------------------------- the whole control plane


class Listener:
    """Who would ask Redis."""

    def __init__(self) -> None:
        self.heard: list[Hello] = []

    def hello(self, hello: Hello) -> None:
        self.heard.append(hello)

    def booked(self, booked: object) -> None: ...
    def seen(self, worker: str, number: int) -> None: ...


def test_a_fleet_hears_of_who_died_between_two_control_processes(host: Host) -> None:
    clock = lambda: host.now_ns  # noqa: E731
    controller = Controller(
        table(), instance="i", version="0", unix_ns=clock, monotonic_ns=clock,
        tally=Tally(host.fd, host.living.__contains__),
    )  # fmt: skip
    fleet = Listener()
    controller.join(fleet)  # type: ignore[arg-type]
    worker = Live(host).hello().begin(9).end(4)
    worker.die(read=False)
    for _ in range(2):
        host.now_ns += UNHEARD_NS
        controller.look_for_dead(host.now_ns)
    assert [(said.incarnation, said.acked) for said in fleet.heard] == [(worker.incarnation, 4)]
    assert lost(controller.workers) == {"settled_by_lost_control": 4, "worker_lost": 5}


def test_the_link_tells_when_all_that_arrived_was_booked(host: Host) -> None:
    clock = lambda: host.now_ns  # noqa: E731
    link = LinkServer(
        Controller(table(), instance="i", version="0", unix_ns=clock, monotonic_ns=clock), clock
    )
    connection = link.protocol()
    host.now_ns = 5
    assert link.read_ns == 5
    link.queue(connection, frame(hello())[4:])
    host.now_ns = 7
    assert link.read_ns < 7
    link.fold_slice()
    assert link.read_ns == 7

    async def behind() -> None:
        task = asyncio.ensure_future(link.run())
        link.queue(connection, frame(beat())[4:])
        for _ in range(10):
            await asyncio.sleep(0)
        host.now_ns = 9
        link.queue(connection, frame(beat())[4:])
        assert link.read_ns == 7, "as of when it was no more behind"
        task.cancel()

    asyncio.run(behind())


def test_what_is_booked_is_noted_for_whoever_comes_after(host: Host) -> None:
    clock = lambda: host.now_ns  # noqa: E731
    controller = Controller(
        table(), instance="i", version="0", unix_ns=clock, monotonic_ns=clock,
        tally=Tally(host.fd, host.living.__contains__),
    )  # fmt: skip
    worker = Live(host).begin(5)
    held = controller.hello(Hello(PROTOCOL, 0, worker.pid, worker.incarnation, 1, 0, 0))
    batch: list[Facts] = [facts(seq=1), facts(seq=2, mirror_of="r"), facts(seq=3)]
    controller.facts(held, batch)
    (entry,) = Tally(host.fd).entries()
    assert (entry.begun, entry.settled) == (5, 3)
