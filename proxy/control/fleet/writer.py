"""Writes this host's slots, who it is, what is in flight and some records to Redis; nobody waits for it.

A round every ``Redis.every``: pack what changed into the outbox, ask Redis for its clock, write what waits,
and only once it is acknowledged tell the sums (``host``) and how far each worker's requests are in the slots
(``seen``).  Whatever fails is written again, the same bytes to the same field.  Every method of Redis's is
awaited in this one task; what is settled meanwhile goes into the book.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy import tasks
from proxy.control.fleet.book import Book, Packed
from proxy.control.fleet.health import Health
from proxy.control.fleet.layout import LAYOUT, HostValue, NowValue, encode
from proxy.control.fleet.losses import Losses
from proxy.control.fleet.offset import Offset
from proxy.control.fleet.outbox import Outbox
from proxy.control.fleet.records import RecordQueue
from proxy.control.fleet.redis_store import RedisStore, SlotWrite
from proxy.control.fleet.store import StoreError
from proxy.link import BackendNow, GroupNow

_log = logging.getLogger("legato.fleet")

_S: Final = 1_000_000_000
#: What is in flight is written so often.
_TICK_NS: Final = _S
#: Bytes of slots in one pipeline, and how long a round goes on with them before it lets others have a turn.
_AT_ONCE_BYTES: Final = 256 * 1024
_WRITE_NS: Final = 2 * _S
#: After trouble what was acknowledged so shortly before is written again: a failover may have lost it.
_UNSURE_NS: Final = 120 * _S
#: A Redis that lost our values gets all of them again, no more often than this (one that evicts them would
#: ask for ever).
_ALL_AGAIN_NS: Final = 60 * _S
#: Refused for one key only: the others are written.
_OF_ONE_KEY: Final = "wrong_type"

Picture = tuple[list[GroupNow], list[BackendNow]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes.  ``incarnation``: drawn at random at each start."""

    incarnation: str
    host: str
    version: str
    started_unix_ns: int

    def phase(self) -> float:
        """Where in a round this one begins, 0 to 1: a fleet that starts at once does not write at once."""
        return int(self.incarnation[:8], 16) / 2**32


class Writer:
    """See the module.  ``picture``: what is in flight on this host now; ``lost``: what was lost, by name."""

    def __init__(
        self,
        store: RedisStore,
        identity: Identity,
        *,
        every_ns: int,
        memory_bytes: int,
        picture: Callable[[], Picture],
        lost: Callable[[], dict[str, int]],
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.identity = identity
        self.book = Book()
        self.outbox = Outbox(memory_bytes)
        self.records = RecordQueue()
        self.losses = Losses()
        self.offset = Offset()
        self.health = Health(unix_ns, monotonic_ns)
        self.written_unix_ns: int | None = None
        self._store = store
        self._picture = picture
        self._lost = lost
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self._every_ns = every_ns
        self._round_at_ns = monotonic_ns() + int(identity.phase() * self._every_ns)
        self._unsure = False  # a failover may have lost what was acknowledged last
        self._due = False  # a round was packed and is not written
        self._announced: deque[bytes] = deque(maxlen=16)  # what may stand at ``host``
        self._all_again_ns: int | None = None
        self._record_failed = False
        self._booked_before = 0  # requests, in books before this one

    # ------------------------------------------------------------ the task

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tick()
            now_ns = self._monotonic_ns()
            next_ns = now_ns + _TICK_NS
            if self.health.waiting:
                next_ns = min(next_ns, self.health.try_at_ns)
            if not self._due:
                next_ns = min(next_ns, self._round_at_ns)
            await asyncio.sleep(max(next_ns - now_ns, 10_000_000) / 1e9)

    async def tick(self) -> None:
        """Whatever is due now; about once a second, and at once when a try is due.  Never raises."""
        try:
            self.book.advance(self.now_ns())
            if self._monotonic_ns() >= self._round_at_ns:
                await self.pack()
            await self._ready_records()
            if not self.health.waiting:
                await self._talk()
        except StoreError as error:
            self.health.failed(error.reason)
            if error.reason != _OF_ONE_KEY:
                self._unsure = True
                await self._store.reset()
        except Exception as error:  # an error of ours must not end what the control process does else
            if self.health.reason != "error":
                tasks.report("writing to Redis", error)
            self.health.failed("error")

    async def close(self, deadline_s: float) -> None:
        """Write what there is, within the deadline, and let go; what is left then is told in the log."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                self._round_at_ns = self.health.try_at_ns = 0
                await self.tick()
        if self.unwritten or self.outbox.waiting_slots:
            _log.warning(
                "Redis at the end: %s; it has not acknowledged %d requests that were settled here"
                " (%d slots wait, some of which it may have had)",
                self.health.reason or "its time was up",
                self.unwritten,
                self.outbox.waiting_slots,
            )
        await self._store.close(0.1)

    @property
    def unwritten(self) -> int:
        """Requests that were booked and that Redis has not acknowledged; less those counted as lost."""
        booked = self._booked_before + self.book.booked
        return max(booked - self.outbox.acknowledged.requests - self.outbox.lost, 0)

    def now_ns(self) -> int:
        """Redis's clock, unix nanoseconds."""
        return self._unix_ns() + self.offset.ns

    # ------------------------------------------------------------ a round

    async def pack(self) -> None:
        """Bring what was booked into the outbox, in steps."""
        now_ns = self._monotonic_ns()
        self._round_at_ns += self._every_ns
        if self._round_at_ns <= now_ns:  # rounds that were missed are not made up for
            self._round_at_ns = now_ns + self._every_ns
        self.losses.packing()
        for packed in self.book.pack():
            for each in packed:
                self.outbox.put(each)
            await asyncio.sleep(0)
        self.losses.packed()
        self.outbox.forget(self.now_ns() // _S)
        self._due = True

    async def _talk(self) -> None:
        troubled = self.health.status != "ok"
        if self._due or troubled:
            asked_ns = self._unix_ns()
            self.offset.measured(await self._store.time_ns(), asked_ns, self._unix_ns())
            asked = self.losses.asked
            if asked:
                self.losses.answered(asked, await self._store.seen(asked))
            await self._follow_clock()
            if self._unsure:
                self.outbox.again(self._monotonic_ns() - _UNSURE_NS)
                self._unsure = False
            await self._write()
            await self._announce()
            self._due = self.outbox.waiting_slots > 0
        await self._moment()
        if self.outbox.waiting_slots == 0 or not troubled:
            self.health.worked()

    async def _write(self) -> None:
        """Write what waits, up to a time."""
        until_ns = self._monotonic_ns() + _WRITE_NS
        refused: str | None = None
        for chunk in _chunks(self.outbox.waiting()):
            if self._monotonic_ns() > until_ns:
                return
            answers = await self._store.write_slots([self._as_write(each) for each in chunk])
            now_ns = self._monotonic_ns()
            for packed, answer in zip(chunk, answers, strict=True):
                if isinstance(answer, StoreError):
                    refused = answer.reason
                elif self.outbox.acknowledge(packed, now_ns) and answer:
                    self._lost_there()
            if refused is not None and refused != _OF_ONE_KEY:
                raise StoreError(refused)
        if refused is not None:
            await self._announce()
            await self._moment()
            raise StoreError(refused)

    def _as_write(self, packed: Packed) -> SlotWrite:
        key = self._store.keys.slot(packed.grain, packed.number)
        field = self.identity.incarnation + (f".{packed.generation}" if packed.generation else "")
        return SlotWrite(key, field, packed.data, packed.grain.expires_s(packed.number))

    async def _announce(self) -> None:
        """Tell who this is and what is in the slots: only after they were acknowledged."""
        who, now_ns = self.identity, self.now_ns()
        sums = self.outbox.acknowledged._asdict()
        value = HostValue(
            LAYOUT, who.host, who.version, who.started_unix_ns, self.offset.ns, sums, self._lost()
        )
        data = encode(value)
        known = set(self._announced)
        self._announced.append(data)
        before = await self._store.announce(who.incarnation, data, now_ns // _S)
        if known and before not in known:
            self._lost_there()
        self._announced.clear()
        self._announced.append(data)
        if self.outbox.waiting_slots == 0:
            due = self.losses.due(self._monotonic_ns())
            await self._store.write_seen(due)
            self.losses.written(due)
            self.written_unix_ns = self._unix_ns()

    async def _moment(self) -> None:
        """What is in flight, and records."""
        groups, backends = self._picture()
        now = NowValue(LAYOUT, self.identity.host, self.now_ns(), groups, backends)
        await self._store.write_now(self.identity.incarnation, encode(now))
        batch = self.records.waiting()
        if batch.recent or batch.worst:
            await self._store.add_records(batch.recent, batch.worst)
            self.records.taken(batch)

    # ------------------------------------------------------------ trouble

    def _lost_there(self) -> None:
        """Redis does not have what it had: it came back empty, or another took its place."""
        now_ns = self._monotonic_ns()
        if self._all_again_ns is not None and now_ns < self._all_again_ns:
            return
        self._all_again_ns = now_ns + _ALL_AGAIN_NS
        self.losses.all_again()
        if self.outbox.again():
            self._due = True

    async def _follow_clock(self) -> None:
        """Redis's clock went back a long way (it was set; the host's was wrong at the start)."""
        if self.book.outlived(self.now_ns()):
            await self.pack()
            for packed in self.book.pack():  # what came between the last two steps
                for each in packed:
                    self.outbox.put(each)
            self._booked_before += self.book.booked
            self.book = Book(self.book.generation + 1)
            self.book.advance(self.now_ns())

    async def _ready_records(self) -> None:
        try:
            for _ in self.records.ready():
                await asyncio.sleep(0)
        except Exception as error:  # a record that cannot be built must not keep the slots back
            if not self._record_failed:
                tasks.report("sharing a record", error)
            self._record_failed = True


def _chunks(packed: Sequence[Packed]) -> list[list[Packed]]:
    """Pieces of about ``_AT_ONCE_BYTES``, in order."""
    chunks: list[list[Packed]] = []
    size = _AT_ONCE_BYTES
    for each in packed:
        if size >= _AT_ONCE_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(each)
        size += len(each.data)
    return chunks
