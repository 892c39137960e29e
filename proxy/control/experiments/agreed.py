"""What hosts tell each other of experiments: which there are, and what each control process counted.

Hash ``EXPERIMENTS``: by name an ``Entry``; the first to write a name fixes its terms, whoever ends it writes
that.  One hash for each: by control process (``Shared.me``) its counts, written whole.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec
from msgspec.structs import replace

from proxy.control.experiments.book import Book
from proxy.control.experiments.experiment import Entry, Experiment
from proxy.control.experiments.packing import Others, Reader, Writer
from proxy.control.shared import Shared
from proxy.control.shared_names import EXPERIMENTS, EXPERIMENTS_KEPT_S, experiment_counts
from scoring.compare_sums import BUCKETS

_log = logging.getLogger("legato.experiments")

#: Entries, and control processes of one experiment, that are looked at; further ones are left aside.
ENTRIES_MAX: Final = 64
HOSTS_MAX: Final = 256
_ENTRY_BYTES_MAX: Final = 256 * 1024
#: What does not change is written again after this, lest it be gone.
_RENEW_NS: Final = 86_400_000_000_000

_read_entry = msgspec.msgpack.Decoder(Entry)


class Hosts:
    """Writes what is this host's, reads what others wrote."""

    def __init__(self) -> None:
        self._writers: dict[str, Writer] = {}
        self._others: dict[str, Others] = {}
        self._written: dict[str, tuple[bytes, int]] = {}  # by hash and field: what, and when
        self._forgotten: list[str] = []

    # ------------------------------------------------------------ which there are

    async def entries(self, shared: Shared) -> dict[str, Entry]:
        """All experiments that any host knows."""
        out: dict[str, Entry] = {}
        fields = await shared.fetch(EXPERIMENTS)
        for name, data in sorted(fields.items())[:ENTRIES_MAX]:
            entry = _entry(data)
            if entry is not None and entry.spec.name == name:
                out[name] = entry
        return out

    async def agree(self, shared: Shared, experiment: Experiment, entries: dict[str, Entry]) -> None:
        """Make an experiment known, and what became of it."""
        if experiment.conflict:
            return
        name, mine = experiment.spec.name, experiment.entry
        theirs = entries.get(name)
        if theirs is None:
            held = await shared.put_new(EXPERIMENTS, name, msgspec.msgpack.encode(mine), EXPERIMENTS_KEPT_S)
            theirs = _entry(held)
            if theirs is None:
                return
        if not same(theirs, mine):
            experiment.conflict = True
            _log.error("experiment %s: another host runs another one of this name, nothing is merged", name)
            return
        if theirs.since_unix_ns < mine.since_unix_ns:
            mine = replace(mine, since_unix_ns=theirs.since_unix_ns, by=theirs.by)
            experiment.entry = mine
        more = (theirs.running and not mine.running) or (theirs.final is None and mine.final is not None)
        more = more or (theirs.final is None and ended_before(mine, theirs))
        if more or self._due(name, shared):
            data = msgspec.msgpack.encode(mine)
            if len(data) <= _ENTRY_BYTES_MAX:
                await shared.put(EXPERIMENTS, {name: data}, EXPERIMENTS_KEPT_S)
            self._written[name] = (b"", shared.now_unix_ns())

    def _due(self, name: str, shared: Shared) -> bool:
        known = self._written.setdefault(name, (b"", shared.now_unix_ns()))
        return shared.now_unix_ns() - known[1] >= _RENEW_NS

    # ------------------------------------------------------------ what was counted

    async def share(self, shared: Shared, experiment: Experiment) -> None:
        """Write what was counted here, merge what was counted elsewhere."""
        name = experiment.spec.name
        where = experiment_counts(name)
        now_unix_ns = shared.now_unix_ns()
        if experiment.split is not None:
            writer = self._writers.setdefault(name, Writer(experiment.spec.digest))
            data = writer.pack(experiment.book)
            before, at_unix_ns = self._written.get(where, (b"", 0))
            if data != before or now_unix_ns - at_unix_ns >= _RENEW_NS:
                await shared.put(where, {shared.me: data}, EXPERIMENTS_KEPT_S)
                self._written[where] = (data, now_unix_ns)
        fields = await shared.fetch(where)
        fields.pop(shared.me, None)
        if not experiment.counting:
            return  # its figures became final meanwhile
        await self._read(experiment, dict(sorted(fields.items())[:HOSTS_MAX]), len(fields))

    async def _read(self, experiment: Experiment, fields: dict[str, bytes], found: int) -> None:
        if experiment.split is None and experiment.others is None:
            self._take_buckets(experiment, fields)
        name, buckets = experiment.spec.name, experiment.book.buckets
        others = self._others.get(name)
        if others is None or others.buckets != buckets:
            others = self._others[name] = Others(experiment.spec.digest, buckets)
        for wrong in others.reading(fields):
            if wrong is not None:
                _log.warning("experiment %s: %s", name, wrong)
            experiment.stale()
            await asyncio.sleep(0)  # a fleet's counts are a second's work: requests are settled in between
        if not experiment.counting:
            return  # it ended meanwhile: its figures are what others said
        experiment.others = others.book if others.hosts else None
        experiment.strangers = others.strangers
        experiment.unread = found - len(fields) + others.unread
        experiment.hosts = others.hosts + (experiment.split is not None)
        experiment.stale()

    def _take_buckets(self, experiment: Experiment, fields: dict[str, bytes]) -> None:
        """Who counts nothing itself goes by those who do."""
        for data in fields.values():
            reader = Reader(experiment.spec.digest, BUCKETS)
            try:
                reader.read(data)
            except ValueError:
                continue
            buckets = 1 if reader.stranger else BUCKETS
            if buckets != experiment.book.buckets:
                experiment.book, experiment.clustered = Book(buckets), buckets > 1
            return

    # ------------------------------------------------------------ what is over

    def forget(self, name: str) -> None:
        """It is among the last ones no more."""
        self._writers.pop(name, None)
        self._others.pop(name, None)
        self._written.pop(name, None)
        self._written.pop(experiment_counts(name), None)
        self._forgotten.append(name)

    async def drop_forgotten(self, shared: Shared) -> None:
        """Take what is over for long away: the name may be used again, and must find nothing."""
        if self._forgotten:
            await shared.drop(EXPERIMENTS, *self._forgotten)
        while self._forgotten:
            where = experiment_counts(self._forgotten[-1])
            await shared.drop(where, *await shared.fetch(where))
            self._forgotten.pop()


def same(one: Entry, two: Entry) -> bool:
    """Whether they are one experiment: the same terms in the same split."""
    return (one.spec, one.split) == (two.spec, two.split)


def ended_before(one: Entry, two: Entry) -> bool:
    """Whether both have ended, ``one`` of them first; of two ends of one moment one is always the first."""
    if one.running or two.running:
        return False
    ends = [(each.until_unix_ns or 0, each.ended_by or "", each.ended_for or "") for each in (one, two)]
    return ends[0] < ends[1]


def _entry(data: bytes) -> Entry | None:
    if len(data) > _ENTRY_BYTES_MAX:
        return None
    try:
        return _read_entry.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
