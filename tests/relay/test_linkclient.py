"""The worker's end of the link: numbered, batched, kept until acknowledged, bounded, sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from proxy.link import (
    DELAY_BOUNDS_NS,
    Ack,
    BackendSpec,
    Beat,
    Facts,
    FactsBatch,
    Frames,
    Hello,
    Match,
    PromptModel,
    PromptModels,
    SloSpec,
    Table,
    Up,
    decode_up,
    frame,
)
from proxy.relay import linkclient as module
from proxy.relay.linkclient import LinkClient

TABLE = Table(7, (BackendSpec("b", "http://b"),), (), (SloSpec("s", Match(), ((0, 1),), 1),))


def facts(seq: int, path: str = "/") -> Facts:
    return Facts(
        seq, f"id-{seq}", 0, 0, 1, "complete", "POST", path, 200, False, False, None, "b", "s", 1, 1, 0
    )


def beat() -> Beat:
    zeros = [0] * (len(DELAY_BOUNDS_NS) + 1)
    return Beat(0, [], [], 0, zeros, 0, zeros, 0, zeros, 0, {}, 7, True, False, 0)


class Control:
    """The other end: what was written to it, and what it says."""

    def __init__(self, client: LinkClient) -> None:
        self.client = client
        self.frames = Frames()
        self.heard: list[Up] = []
        self.aborted = False
        client.connection_made(cast(asyncio.Transport, self))

    def write(self, data: bytes) -> None:
        self.heard += [decode_up(payload) for payload in self.frames.feed(data)]

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.client.connection_lost(None)

    @property
    def seqs(self) -> list[int]:
        return [one.seq for batch in self.heard if isinstance(batch, FactsBatch) for one in batch.facts]

    @property
    def hello(self) -> Hello:
        first = self.heard[0]
        assert isinstance(first, Hello)
        return first

    def ack(self, seq: int) -> None:
        self.client.data_received(frame(Ack(seq)))


def on_a_loop(test: Callable[[LinkClient, list[Table]], Awaitable[None]]) -> None:
    async def main() -> None:
        tables: list[Table] = []
        await test(LinkClient(3, 42, "/nowhere", tables.append), tables)

    asyncio.run(main())


def finish(client: LinkClient, count: int, path: str = "/") -> None:
    for _ in range(count):
        client.facts(lambda seq: facts(seq, path))


async def flushed(client: LinkClient) -> None:
    async with asyncio.timeout(30):
        while client._fresh:  # noqa: ASYNC110 - a timer of the client's own
            await asyncio.sleep(0.005)


def test_it_says_hello_takes_the_table_and_numbers_from_one() -> None:
    async def test(client: LinkClient, tables: list[Table]) -> None:
        control = Control(client)
        assert (control.hello.worker, control.hello.pid, control.hello.next_seq) == (3, 42, 1)
        assert (control.hello.acked, control.hello.dropped) == (0, 0)
        client.data_received(frame(TABLE))
        assert tables == [TABLE]
        finish(client, 3)
        assert control.seqs == [], "they are gathered for a moment"
        await flushed(client)
        assert control.seqs == [1, 2, 3]
        assert client.backlog == 3
        control.ack(3)
        assert client.backlog == 0
        assert client._kept_bytes == 0

    on_a_loop(test)


def test_what_was_learned_is_handed_on_and_is_no_table() -> None:
    news = PromptModels({"m": PromptModel(2.5, 30.0), "": PromptModel(4.0)})

    async def main() -> None:
        tables: list[Table] = []
        learned: list[PromptModels] = []
        client = LinkClient(3, 42, "/nowhere", tables.append, learned.append)
        Control(client)
        client.data_received(frame(TABLE) + frame(news))
        assert (tables, learned) == ([TABLE], [news])

    asyncio.run(main())


def test_many_go_at_once() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        finish(client, module._BATCH)
        assert control.seqs == list(range(1, module._BATCH + 1))

    on_a_loop(test)


def test_what_was_not_acknowledged_is_sent_again_and_only_that() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        first = Control(client)
        finish(client, 3 * module._BATCH)
        first.ack(module._BATCH)
        client.connection_lost(None)
        finish(client, 2)  # meanwhile
        second = Control(client)
        assert (second.hello.acked, second.hello.next_seq) == (module._BATCH, 3 * module._BATCH + 3)
        assert second.hello.incarnation == first.hello.incarnation
        assert second.seqs == list(range(module._BATCH + 1, 3 * module._BATCH + 3))
        second.ack(3 * module._BATCH + 2)
        client.connection_lost(None)
        assert Control(client).seqs == []

    on_a_loop(test)


def test_an_acknowledgement_in_the_middle_of_a_batch_keeps_the_batch() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        finish(client, module._BATCH)
        control.ack(10)
        client.connection_lost(None)
        again = Control(client)
        assert again.hello.acked == 10
        assert again.seqs == list(range(1, module._BATCH + 1)), "control knows which it has seen"

    on_a_loop(test)


def test_without_a_link_everything_is_kept_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP_BYTES", 100_000)

    async def test(client: LinkClient, _: list[Table]) -> None:
        finish(client, 100 * module._BATCH, "x" * 100)
        assert 80_000 < client._kept_bytes <= 100_000
        assert client._kept_bytes == sum(len(payload) for _, payload in client._kept)
        control = Control(client)
        seqs = control.seqs
        assert seqs[-1] == 100 * module._BATCH, "the newest are there"
        assert seqs == list(range(seqs[0], seqs[-1] + 1)), "the oldest were let go: the gap tells how many"
        assert seqs[0] > 1

    on_a_loop(test)


def test_a_link_that_is_behind_is_not_written_to() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        client.pause_writing()
        finish(client, 2 * module._BATCH)
        client.beat(beat())
        assert control.heard[1:] == []
        client.resume_writing()
        assert control.seqs == list(range(1, 2 * module._BATCH + 1))
        assert not any(isinstance(one, Beat) for one in control.heard), "a beat is replaced by the next"
        client.beat(beat())
        assert isinstance(control.heard[-1], Beat)

    on_a_loop(test)


def test_facts_go_before_the_beat_that_follows_them() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        finish(client, 1)
        client.beat(beat())
        assert [type(one) for one in control.heard] == [Hello, FactsBatch, Beat]

    on_a_loop(test)


def test_letting_go_while_behind_sends_nothing_twice_and_skips_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_KEEP_BYTES", 50_000)

    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        finish(client, module._BATCH, "x" * 100)
        client.pause_writing()
        finish(client, 50 * module._BATCH, "x" * 100)
        client.resume_writing()
        seqs = control.seqs
        assert seqs == sorted(set(seqs))
        assert seqs[-1] == 51 * module._BATCH

    on_a_loop(test)


def test_nonsense_from_control_ends_the_connection_and_nothing_else() -> None:
    async def test(client: LinkClient, tables: list[Table]) -> None:
        control = Control(client)
        client.data_received(b"\x00\x00\x00\x03abc")
        assert control.aborted
        client.connection_lost(None)
        Control(client)
        client.data_received(frame(TABLE))
        assert tables == [TABLE]

    on_a_loop(test)


def test_the_end_waits_for_the_last_acknowledgement() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        control = Control(client)
        finish(client, 5)
        closing = asyncio.ensure_future(client.close(5))
        await asyncio.sleep(0)
        assert control.seqs == [1, 2, 3, 4, 5]
        assert not closing.done()
        control.ack(5)
        await closing

    on_a_loop(test)


def test_but_not_for_ever() -> None:
    async def test(client: LinkClient, _: list[Table]) -> None:
        finish(client, 5)
        await client.close(0.01)
        assert client.backlog == 5

    on_a_loop(test)


def test_it_connects_and_connects_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.005)

    async def main() -> None:
        client = LinkClient(0, 1, str(tmp_path / "link"), lambda _: None)
        keeping = asyncio.ensure_future(client.keep())
        hellos: asyncio.Queue[Hello] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            (payload,) = Frames().feed(await reader.read(10_000))
            message = decode_up(payload)
            assert isinstance(message, Hello)
            hellos.put_nowait(message)
            writer.close()  # and hangs up

        await asyncio.sleep(0.02)  # nobody listens yet
        async with asyncio.timeout(30), await asyncio.start_unix_server(accept, client.path):
            assert (await hellos.get()).incarnation == (await hellos.get()).incarnation
        client._closed = True
        await keeping

    asyncio.run(main())
