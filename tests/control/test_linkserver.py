"""The link over a real Unix socket: a scripted worker against the control plane, and their accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from proxy import clock
from proxy.control.core import Controller
from proxy.control.linkserver import NEWS_EVERY_NS, QUEUE_HIGH, STRIDE, LinkServer
from proxy.link import (
    Ack,
    FactsBatch,
    Frames,
    Hello,
    PromptModel,
    PromptModels,
    Table,
    Up,
    Usage,
    decode_down,
    frame,
)
from tests.control.facts import at, facts, stream, streamed, table
from tests.control.test_workers import beat, hello, now


def controller() -> Controller:
    """A control plane without logs."""
    return Controller(
        table(), instance="here", version="1", unix_ns=clock.unix_ns, monotonic_ns=clock.monotonic_ns
    )


@asynccontextmanager
async def serving(control: Controller, path: Path, folding: bool = True) -> AsyncIterator[LinkServer]:
    """The link's server on ``path``; everything ends with the block, as a killed process would."""
    link = LinkServer(control, clock.monotonic_ns)
    server = await asyncio.get_running_loop().create_unix_server(link.protocol, path)
    task = asyncio.create_task(link.run()) if folding else None
    try:
        yield link
    finally:
        server.close()
        if task is not None:
            task.cancel()
        link.abort()


class FakeWorker:
    """Speaks the worker's side, and keeps what is not acknowledged, as the real one does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Frames()
        self.tables: list[Table] = []
        self.learned: list[PromptModels] = []
        self.acked = 0
        self.closed = False
        self.listening = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, path: Path) -> FakeWorker:
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, *messages: Up) -> None:
        self.writer.write(b"".join(frame(message) for message in messages))

    async def _listen(self) -> None:
        while data := await self.reader.read(65_536):
            for payload in self.frames.feed(data):
                message = decode_down(payload)
                if isinstance(message, Ack):
                    self.acked = message.seq
                elif isinstance(message, PromptModels):
                    self.learned.append(message)
                else:
                    self.tables.append(message)
        self.closed = True

    async def until(self, holds: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110 - what is waited for lives in several places
                await asyncio.sleep(0.002)

    def close(self) -> None:
        self.writer.close()


def batch(*numbers: int) -> FactsBatch:
    return FactsBatch([facts(seq=number) for number in numbers])


def run(script: Callable[[Path], Any], tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(script(tmp_path / "link"), 60))


def test_hello_gets_the_table_and_facts_are_acknowledged(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path):
            worker = await FakeWorker.connect(path)
            assert not control.ready
            worker.send(hello(), batch(1, 2, 3), beat(now(in_flight=4)))
            await worker.until(lambda: worker.acked == 3)
            assert [each.version for each in worker.tables] == [1]
            assert control.ready
            await worker.until(lambda: control.snapshot().now != ())
            assert control.snapshot().now[0].in_flight == 4
            assert control.ledger.settled == 3

    run(script, tmp_path)


def test_a_new_table_goes_to_every_worker(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path) as link:
            workers = [await FakeWorker.connect(path) for _ in range(3)]
            for number, worker in enumerate(workers):
                worker.send(hello(number))
                await worker.until(lambda worker=worker: bool(worker.tables))  # type: ignore[misc]
            control.set_table(table(version=2))
            link.send_table()
            for worker in workers:
                await worker.until(lambda worker=worker: worker.tables[-1].version == 2)  # type: ignore[misc]

    run(script, tmp_path)


def test_a_lost_link_and_facts_sent_again_are_settled_once(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path):
            first = await FakeWorker.connect(path)
            first.send(hello(), batch(1, 2, 3))
            await first.until(lambda: first.acked == 3)
            first.close()
            second = await FakeWorker.connect(path)
            second.send(hello(acked=1, next_seq=7), batch(2, 3), batch(4, 6))
            await second.until(lambda: second.acked == 6)
            assert control.ledger.settled == 5
            assert control.snapshot().dropped["facts"] == 1
            assert control.snapshot().workers == 1

    run(script, tmp_path)


def test_a_control_process_that_dies_is_accounted_for_exactly(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        old, new = controller(), controller()
        async with serving(old, path):
            worker = await FakeWorker.connect(path)
            worker.send(hello(), *(batch(*range(n, n + 10)) for n in range(1, 101, 10)))
            await worker.until(lambda: worker.acked == 100)
            acked = worker.acked
        await worker.until(lambda: worker.closed)
        new_path = path.with_name("link2")
        async with serving(new, new_path):
            again = await FakeWorker.connect(new_path)
            # 101 to 120 were let go meanwhile: the buffer was full
            again.send(hello(acked=acked, next_seq=151), batch(*range(121, 151)))
            await again.until(lambda: again.acked == 150)
            dropped = new.snapshot().dropped
            assert dropped["settled_by_lost_control"] == 100
            assert dropped["facts"] == 20
            assert new.ledger.settled + dropped["settled_by_lost_control"] + dropped["facts"] == 150

    run(script, tmp_path)


def taught(per_token: float, *numbers: int, model: str = "llama") -> FactsBatch:
    """Requests of 10,000 bytes of text whose server told their length."""
    told = stream(usage=Usage(prompt=round(10_000 / per_token)))
    return FactsBatch([facts(seq=seq, stream=told, prompt_text_bytes=10_000, model=model) for seq in numbers])


def test_what_was_learned_goes_to_every_worker_and_to_those_that_come(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path):
            first, second = [await FakeWorker.connect(path) for _ in range(2)]
            first.send(hello(0), taught(2.5, *range(1, 10)))
            second.send(hello(1))
            for _ in range(20):  # beats are what the second passes by
                first.send(beat(now()))
                await asyncio.sleep(0.1)
                if first.learned and second.learned:
                    break
            news = PromptModels({"llama": PromptModel(2.5)})
            assert first.learned == second.learned == [news]
            third = await FakeWorker.connect(path)
            third.send(hello(2))
            await third.until(lambda: bool(third.learned))
            assert third.tables
            assert third.learned == [news]

    run(script, tmp_path)


def test_news_are_sent_at_most_once_a_second_and_none_is_lost() -> None:
    clock_ns = 5 * 10**9
    control = controller()
    link = LinkServer(control, lambda: clock_ns)
    worker = Listening(link)
    worker.says(hello(0))
    assert worker.learned == [], "nothing was learned yet"
    seq = 0
    for tenth in range(30):  # three seconds in which the ratio moves all the time
        clock_ns = 5 * 10**9 + tenth * NEWS_EVERY_NS // 10
        worker.says(taught(2.5 + 0.1 * tenth, *range(seq + 1, seq + 102)))
        seq += 101
    assert len(worker.learned) == 2
    clock_ns += NEWS_EVERY_NS
    worker.says(beat(now()))
    assert worker.learned[-1].models["llama"] == control.prompts.told["llama"]
    assert worker.learned[-1].models["llama"].bytes_per_token == pytest.approx(5.4, rel=0.001)
    clock_ns += NEWS_EVERY_NS
    worker.says(beat(now()))
    assert len(worker.learned) == 3, "nothing moved since"


class Listening:
    """A worker's connection without a socket: folds at once, and keeps what it was sent."""

    def __init__(self, link: LinkServer) -> None:
        self.link = link
        self.connection = link.protocol()
        self.connection.connection_made(cast(asyncio.Transport, self))
        self.frames = Frames()
        self.learned: list[PromptModels] = []

    def says(self, message: Up) -> None:
        self.connection.data_received(frame(message))
        while self.link.queued_bytes:
            self.link.fold_slice()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        messages = [decode_down(payload) for payload in self.frames.feed(data)]
        self.learned += [message for message in messages if isinstance(message, PromptModels)]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 64,  # a frame of 4 GiB
        b"\0\0\0\3abc",
        frame(batch(1)),  # facts before a hello
        frame(hello()) + frame(hello()),
        frame(Hello(99, 0, 1, "x", 1, 0, 0)),
        frame(hello()) + b"\0\0\0\1\xc1" + frame(batch(1)),
    ],
    ids=["too long", "not msgpack", "no hello", "two hellos", "another protocol", "nonsense after hello"],
)
def test_nonsense_is_disconnected_and_counted_and_others_go_on(nonsense: bytes, tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path):
            good = await FakeWorker.connect(path)
            good.send(hello(7), batch(1))
            bad = await FakeWorker.connect(path)
            bad.writer.write(nonsense)
            await bad.until(lambda: bad.closed or bad.listening.done())
            good.send(batch(2))
            await good.until(lambda: good.acked == 2)
            assert control.link_errors == 1
            assert control.ledger.settled == 2

    run(script, tmp_path)


def test_arrivals_that_are_no_arrivals_cost_one_score_and_nothing_else(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path):
            worker = await FakeWorker.connect(path)
            broken = streamed(at(50), seq=2)
            assert broken.stream is not None
            broken.stream.choices = (b"not whole",)
            unknown = facts(seq=3, end="an end of tomorrow")
            worker.send(hello(), FactsBatch([facts(seq=1), broken, unknown, facts(seq=4)]))
            await worker.until(lambda: worker.acked == 4)
            assert control.ledger.settled == 4
            assert control.snapshot().unmeasured["tap_error"] == 2
            assert sum(group.outcomes["proxy_error"] for group in control.snapshot().groups) == 1

    run(script, tmp_path)


def test_a_large_batch_gives_others_their_turn(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path) as link:
            worker = await FakeWorker.connect(path)
            worker.send(hello(), batch(*range(1, 10 * STRIDE + 1)))
            await worker.until(lambda: worker.acked > 0)
            await worker.until(lambda: worker.acked == 10 * STRIDE)
            assert control.ledger.settled == 10 * STRIDE
            assert link.queued_bytes == 0

    run(script, tmp_path)


def test_a_flood_waits_at_the_worker_and_arrives_whole(tmp_path: Path) -> None:
    async def script(path: Path) -> None:
        control = controller()
        async with serving(control, path, folding=False) as link:
            worker = await FakeWorker.connect(path)
            arrivals = streamed(*(at(50 + i) for i in range(20_000))).stream
            flood = [FactsBatch([streamed(stream=arrivals, seq=number)]) for number in range(1, 61)]
            worker.send(hello(), *flood)  # 60 streams of 320 KB, and nobody folds
            await worker.until(lambda: link.queued_bytes > QUEUE_HIGH)
            for _ in range(20):  # it had every chance to read on
                await asyncio.sleep(0.001)
            assert link.queued_bytes < QUEUE_HIGH + 2 * 1024 * 1024
            folding = asyncio.create_task(link.run())
            await worker.until(lambda: worker.acked == 60, within_s=15)
            assert control.ledger.settled == 60
            folding.cancel()

    run(script, tmp_path)


def test_batches_that_cannot_be_booked_leave_no_socket_unread(tmp_path: Path) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("an error of ours")

    async def script(path: Path) -> None:
        control = controller()
        control.add_sink(fails)
        async with serving(control, path) as link:
            worker = await FakeWorker.connect(path)
            worker.send(hello())
            large = {"tag": "x" * 400_000}
            for number in range(1, 61):  # 24 MB, more than may wait
                worker.send(FactsBatch([facts(seq=number, tags=large)]))
            await worker.until(lambda: worker.acked == 60)
            assert link.queued_bytes == 0

    async def end(path: Path) -> None:
        control = controller()
        control.add_sink(fails)
        async with serving(control, path, folding=False) as link:
            worker = await FakeWorker.connect(path)
            worker.send(hello(), batch(1))
            await worker.until(lambda: link.queued_bytes > 0)
            link.fold_for(10**9)
            await worker.until(lambda: worker.acked == 1)

    run(script, tmp_path)
    (tmp_path / "link").unlink()
    run(end, tmp_path)


def test_beats_and_facts_without_a_process_between() -> None:
    control = controller()
    assert isinstance(control.feed(hello()), Table)
    assert control.feed(batch(1, 2)) == Ack(2)
    assert control.feed(beat(now())) is None
    assert control.snapshot().now[0].in_flight == 1
    assert control.ledger.settled == 2
