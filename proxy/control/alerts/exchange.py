"""What hosts tell each other so that all of them judge the traffic of all: slots, minutes, and what they say.

Hashes of the store (``control.shared_names``): of each slot one field a host, its groups in it; of each
minute its SLOs, for burn rates; what each sees by itself, what fires and which requests show it; what a
notifier took.  Everything is written whole, so that writing twice changes nothing; what another version wrote
and is not understood is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from proxy.control.alerts.judge import Verdict
from proxy.control.alerts.notice import Message, Severity, Worst
from proxy.control.alerts.rings import COLUMNS, KEPT, LATE, LONG, Book, Tally
from proxy.control.settle import GroupKey
from proxy.control.shared import Shared
from proxy.control.shared_names import (
    ALERT_MINUTES_KEPT_S,
    ALERT_SLOTS_KEPT_S,
    ALERTS_SAID,
    ALERTS_SAID_KEPT_S,
    alert_minute,
    alert_slot,
)
from scoring.alarm_rule import Evaluation, Hold

#: A new host reads so many slots back.
BACK: Final = KEPT - 6
_MINUTE: Final = 6  # slots
_BATCH: Final = 60  # hashes asked for in one turn
#: Hosts and groups of one value that are believed.
_HOSTS_MOST: Final = 256
_ROWS_MOST: Final = 256

T = TypeVar("T")


class LocalVerdict(Struct, frozen=True, array_like=True):
    """A ``Verdict`` without its group."""

    rule: str
    labels: tuple[tuple[str, str], ...]
    severity: Severity
    hold: tuple[float, float, float]
    fires: bool
    clears: bool
    value: float | None
    threshold: float
    evidence: dict[str, float]
    reason: str

    @classmethod
    def of(cls, verdict: Verdict) -> LocalVerdict:
        """To be told."""
        said, hold = verdict.said, verdict.hold
        return cls(
            verdict.rule,
            verdict.labels,
            verdict.severity,
            (hold.fire_s, hold.clear_s, hold.quiet_s),
            said.fires,
            said.clears,
            said.value,
            said.threshold,
            dict(said.evidence),
            said.reason,
        )

    def verdict(self) -> Verdict:
        """As the host had it that told it."""
        said = Evaluation(self.fires, self.clears, self.value, self.threshold, self.evidence, self.reason)
        return Verdict(self.rule, self.labels, self.severity, Hold(*self.hold), said)


class Incident(Struct, frozen=True, array_like=True):
    """What a host calls an alert that fires; ``number``: how often it was told."""

    incident: str
    fired_ns: int
    number: int


class HostSays(Struct, frozen=True, array_like=True):
    """Everything of one host but its slots; ``at_ns`` by the clock that all agree on."""

    at_ns: int
    verdicts: list[LocalVerdict]
    incidents: dict[str, Incident]  # by key
    worst: dict[str, tuple[Worst, ...]]  # by key
    again: tuple[int, int] = (0, 0)  # how often older slots were written late; the oldest of the last time
    yields: bool = False  # its notifiers refuse: others may tell


Rows = list[tuple[str, str, str, list[int]]]
Minute = dict[str, tuple[int, int]]
_encode: Final = msgspec.msgpack.Encoder().encode
_rows: Final = msgspec.msgpack.Decoder(Rows)
_minute: Final = msgspec.msgpack.Decoder(Minute)
_says: Final = msgspec.msgpack.Decoder(HostSays)


class Exchange:
    """One host's side.  Each call may raise ``Unshared``; what was not read or written then is later."""

    def __init__(self) -> None:
        self._written: int | None = None  # the newest slot that was written
        self._minute: int | None = None  # the newest minute
        self._read: int | None = None
        self.again = (0, 0)  # as ``HostSays.again``
        self._seen_again: dict[str, int] = {}
        self._read_from: int | None = None  # somebody wrote older slots: they are read anew

    def anew(self) -> Exchange:
        """Slots were renumbered: one that writes and reads all of them; a round under way keeps this one."""
        fresh = Exchange()
        fresh.again, fresh._seen_again = self.again, self._seen_again
        return fresh

    async def write(self, shared: Shared, own: Book) -> None:
        """What this host settled: slots that may have changed since the last time, minutes that are over."""
        if own.head is None:
            return
        head = own.head
        first = max(own.begun, head - BACK)
        if self._written is not None:
            late = first < self._written < head - LATE
            first = max(first, self._written - LATE)
            if late:
                self.again = (self.again[0] + 1, first)
        for slot in range(first, head + 1):
            if tallies := own.tallies(slot):
                await shared.put(alert_slot(slot), {shared.me: pack(tallies)}, ALERT_SLOTS_KEPT_S)
            self._written = slot
        last = (head - LATE) // _MINUTE - 1  # nothing more comes into it
        begun = max(own.begun // _MINUTE, last - LONG // _MINUTE + 1)
        for minute in range(begun if self._minute is None else max(self._minute + 1, begun), last + 1):
            sums = {slo: own.long(slo, (minute + 1) * _MINUTE, _MINUTE) for slo in own.slos}
            some = {slo: counts for slo, counts in sums.items() if counts[0]}
            if some:
                await shared.put(alert_minute(minute), {shared.me: _encode(some)}, ALERT_MINUTES_KEPT_S)
            self._minute = minute

    async def read(self, shared: Shared, merged: Book, slot: int) -> None:
        """What all hosts settled, up to ``slot``, into ``merged``; the first time all that there is."""
        merged.advance(slot)
        known = self._read
        first = slot - BACK if known is None else max(known - LATE, slot - BACK)
        if self._read_from is not None:
            first = max(min(first, self._read_from), slot - BACK)
        if known is None or slot - known > BACK:
            await self._read_minutes(shared, merged, first)
        slots = range(first, slot + 1)
        async for at, fields in _fetched(shared, slots, alert_slot):
            tallies: dict[GroupKey, Tally] = {}
            for rows in _each(fields, _rows.decode):
                for key, tally in unpack(rows):
                    tallies[key] = tally if key not in tallies else tallies[key].plus(tally)
            if tallies:
                merged.begin(at)
            merged.replace(at, tallies)
            # Of many hosts a slot takes milliseconds, and at the start there are hundreds.
            await asyncio.sleep(0)
        self._read, self._read_from = slot, None

    async def _read_minutes(self, shared: Shared, merged: Book, before: int) -> None:
        last = before // _MINUTE  # the slots from ``before`` on tell the rest
        minutes = range(last - (LONG - BACK) // _MINUTE, last)
        async for minute, fields in _fetched(shared, minutes, alert_minute):
            sums: dict[str, tuple[int, int]] = {}
            for told in _each(fields, _minute.decode):
                for slo, (counted, bad) in told.items():
                    held = sums.get(slo, (0, 0))
                    sums[slo] = held[0] + max(counted, 0), held[1] + max(bad, 0)
            for slo, (counted, bad) in sums.items():
                merged.begin(minute * _MINUTE)
                merged.spread(minute * _MINUTE + _MINUTE - 1, slo, counted, bad)

    async def say(self, shared: Shared, says: HostSays) -> dict[str, HostSays]:
        """Tell, and hear: what the other hosts said last, by who they are.  Old ones are taken away."""
        await shared.put(ALERTS_SAID, {shared.me: _encode(says)}, ALERTS_SAID_KEPT_S)
        heard = {}
        for host, value in list((await shared.fetch(ALERTS_SAID)).items())[:_HOSTS_MOST]:
            if host != shared.me:
                for told in _each({host: value}, _says.decode):
                    heard[host] = told
        old = [host for host, told in heard.items() if says.at_ns - told.at_ns > ALERTS_SAID_KEPT_S * 10**9]
        if old:
            await shared.drop(ALERTS_SAID, *old)
        for host, told in heard.items():
            times, slot = told.again
            if times != self._seen_again.get(host, 0) and slot > 0:
                self._read_from = slot if self._read_from is None else min(slot, self._read_from)
        self._seen_again = {host: told.again[0] for host, told in heard.items()}
        return {host: told for host, told in heard.items() if host not in old}


def pack(tallies: Mapping[GroupKey, Tally]) -> bytes:
    """A slot as it is written."""
    return _encode([(*key, list(tally)) for key, tally in tallies.items()])


def unpack(rows: Rows) -> Iterator[tuple[GroupKey, Tally]]:
    """Back; numbers that are none are passed over."""
    for backend, model, slo, numbers in rows[:_ROWS_MOST]:
        if len(numbers) == COLUMNS and all(0 <= number < 2**31 for number in numbers):
            yield GroupKey(backend, model, slo), Tally(*numbers)


def sent_fields(message: Message, name: str) -> Iterator[str]:
    """What is written when a notifier took a message."""
    for notice in message.notices:
        yield sent_field(notice.incident, notice.state, notice.number, name)


def sent_field(incident: str, state: str, number: int, name: str) -> str:
    """One of them."""
    return f"{incident} {state} {number} {name}"


def _each(fields: Mapping[str, bytes], decode: Callable[[bytes], T]) -> Iterator[T]:
    for value in fields.values():
        try:
            yield decode(value)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
            continue  # another version's


async def _fetched(
    shared: Shared, numbers: Iterable[int], name: Callable[[int], str]
) -> AsyncIterator[tuple[int, dict[str, bytes]]]:
    wanted = list(numbers)
    for first in range(0, len(wanted), _BATCH):
        batch = wanted[first : first + _BATCH]
        for number, fields in zip(
            batch, await shared.fetch_many([name(number) for number in batch]), strict=True
        ):
            yield number, fields
