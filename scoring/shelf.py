"""Where the slots of one group are kept: open ones live, closed ones packed, in three steps of time.

Times are numbers of slots: a *ten* is 10 s, 6 of them a minute, 360 an hour.  Tens are closed, then rolled
up to minutes and these to hours; each step is kept in runs of its own (``codec.py``): the tens of a minute,
20 minutes, and each hour by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from scoring import codec
from scoring.marks import Marks
from scoring.slot import Slot

MINUTE: Final = 6
HOUR: Final = 360
#: Minutes in a run: the fewer, the less is read for the edge of a window; 20 take 3% more than 60.
RUN: Final = 20
#: What a packed run costs beside its bytes: the object's head, its places in two dicts, its keys.
_OVERHEAD: Final = 200

#: The slot into which what begins at a ten is to be merged.
Sink = Callable[[int], Slot]


class Floors(NamedTuple):
    """The first ten of which each step is still kept."""

    tens: int
    minutes: int
    hours: int


class Shelf:
    """Packed slots of one step of time by their number; ``seal`` makes runs of ``length`` of them.

    ``step``: how many tens a slot lasts.  ``levels``: how far each run was lowered.
    """

    __slots__ = ("held", "length", "levels", "runs", "singles", "step")

    def __init__(self, step: int, length: int) -> None:
        self.step = step
        self.length = length
        self.singles: dict[int, bytes] = {}
        self.runs: dict[int, bytes] = {}
        self.levels: dict[int, int] = {}
        self.held = 0  # bytes, with what holding them costs

    def add(self, slots: Mapping[int, Slot], sealed: int) -> None:
        """Merge slots into those of their numbers.  Runs that end before the ten ``sealed`` are sealed."""
        late: dict[int, dict[int, Slot]] = {}
        for number, slot in slots.items():
            if number // self.length in self.runs:
                late.setdefault(number // self.length, {})[number % self.length] = slot
                continue
            kept = self.singles.get(number)
            if kept is not None:
                whole = codec.unpack(kept)
                whole.merge(slot)
                slot = whole
                self.held -= len(kept) + _OVERHEAD
            packed = self.singles[number] = codec.pack(slot)
            self.held += len(packed) + _OVERHEAD
        for run, parts in late.items():
            whole_run = codec.unpack_run(self.runs[run])
            for place, slot in parts.items():
                into = whole_run.setdefault(place, Slot())
                into.merge(slot)
                into.lower(self.levels[run])
            self.put(run, codec.pack_run(whole_run), self.levels[run])
        for run in {number // self.length for number in slots}:
            if (run + 1) * self.length * self.step <= sealed and run not in self.runs:
                self.seal(run)

    def seal(self, run: int) -> None:
        """Make one run of the slots with its numbers, all of which are closed."""
        first = run * self.length
        slots = {}
        for number in [each for each in self.singles if first <= each < first + self.length]:
            packed = self.singles.pop(number)
            self.held -= len(packed) + _OVERHEAD
            slots[number - first] = codec.unpack(packed)
        if slots:
            self.put(run, codec.pack_run(slots), 0)

    def any(self, low: int, high: int) -> bool:
        """Whether anything lies in the tens from ``low`` to ``high`` - 1, both on the bounds of runs."""
        low, high = low // self.step, high // self.step
        return any(low <= run * self.length < high for run in self.runs) or any(
            low <= number < high for number in self.singles
        )

    def read(self, low: int, high: int, into: Sink) -> None:
        """Merge the slots that lie in the tens from ``low`` to ``high`` - 1, both on this step's bounds."""
        low, high = low // self.step, high // self.step

        def read(packed: bytes, first: int) -> None:
            def chosen(place: int) -> Slot | None:
                return into((first + place) * self.step) if low <= first + place < high else None

            codec.read_run(packed, chosen)

        for number, packed in self.singles.items():
            if low <= number < high:
                read(packed, number)
        for run, packed in self.runs.items():
            if low < (run + 1) * self.length and run * self.length < high:
                read(packed, run * self.length)

    def lower(self, run: int, level: int) -> None:
        """Lower the resolution of a run."""
        self.put(run, codec.lowered(self.runs[run], level), level)

    def drop(self, floor: int) -> None:
        """Forget the runs that end before the ten ``floor``."""
        for run in [each for each in self.runs if (each + 1) * self.length * self.step <= floor]:
            self.held -= len(self.runs.pop(run)) + _OVERHEAD
            del self.levels[run]

    def put(self, run: int, packed: bytes, level: int) -> None:
        """Keep these bytes as the run, in place of what there was."""
        before = self.runs.get(run)
        if before is not None:
            self.held -= len(before) + _OVERHEAD
        self.runs[run] = packed
        self.levels[run] = level
        self.held += len(packed) + _OVERHEAD


class Ring:
    """The slots of one group over a day.

    Every ten that is no longer open is in ``tens``, if kept; every minute before ``rolled_minutes`` (a ten)
    in ``minutes``, every hour before ``rolled_hours`` in ``hours`` too.  Open slots are in none of them, so
    that a late one simply opens again: it is merged into all that have its time when it closes.  Then it
    goes to ``above`` too, the ring of all groups, which so has everything but what is open in theirs.
    """

    __slots__ = (
        "above",
        "hours",
        "marks",
        "minutes",
        "open",
        "rolled_hours",
        "rolled_minutes",
        "tens",
        "usual",
    )

    def __init__(self, closed: int, above: Ring | None = None) -> None:
        self.above = above
        self.open: dict[int, Slot] = {}
        self.tens = Shelf(1, MINUTE)
        self.minutes = Shelf(MINUTE, RUN)
        self.hours = Shelf(HOUR, 1)
        self.rolled_minutes = closed // MINUTE * MINUTE
        self.rolled_hours = closed // HOUR * HOUR
        self.marks = Marks(closed)
        self.usual = 0  # bytes that an open slot comes to, lately

    @property
    def shelves(self) -> tuple[Shelf, Shelf, Shelf]:
        """Tens, minutes, hours."""
        return self.tens, self.minutes, self.hours

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self.open and not any(shelf.singles or shelf.runs for shelf in self.shelves)

    @property
    def held(self) -> int:
        """Bytes of all that is kept; of open slots what they will come to if they become as usual."""
        live = sum(slot.nbytes for slot in self.open.values())
        return sum(shelf.held for shelf in self.shelves) + self.marks.held + max(live, 2 * self.usual)

    def slot(self, ten: int) -> Slot:
        """The open slot of that ten."""
        found = self.open.get(ten)
        if found is None:
            found = self.open[ten] = Slot()
        return found

    def tend(self, closed: int, floors: Floors) -> int:
        """Do what is due where all tens before ``closed`` are: pack, roll up, drop.

        The effort that it took, in units of about 0.2 ms.
        """
        self.usual = self.usual * 7 // 8
        effort = 1 + self._close([ten for ten in self.open if ten < closed], floors)
        for minute in sorted({ten // MINUTE for ten in self.tens.singles}):
            if (minute + 1) * MINUTE <= closed:
                effort += 8
                self._roll(self.tens, minute, self.minutes, self.rolled_hours)
        self.rolled_minutes = max(self.rolled_minutes, closed // MINUTE * MINUTE)
        for run in {minute // RUN for minute in self.minutes.singles}:
            if (run + 1) * RUN * MINUTE <= closed:
                effort += 8
                self.minutes.seal(run)
        for hour in range(self.rolled_hours // HOUR, closed // HOUR):
            if self.minutes.any(hour * HOUR, (hour + 1) * HOUR):
                effort += 80
                self._roll(self.minutes, hour, self.hours, closed)
        self.rolled_hours = max(self.rolled_hours, closed // HOUR * HOUR)
        self.tens.drop(floors.tens)
        self.minutes.drop(floors.minutes)
        self.hours.drop(floors.hours)
        return effort

    def read(self, low: int, high: int, step: int, into: Sink) -> None:
        """Merge all that ended in the tens from ``low`` to ``high`` - 1 into what ``into`` names.

        ``step``: no piece may cross a multiple of it (0: any may).  Where only minutes or hours are kept,
        the bounds must lie on theirs.
        """
        self.read_open(low, high, into)
        self.read_closed(low, high, step, into)

    def read_closed(self, low: int, high: int, step: int, into: Sink) -> None:
        """The same but for open slots."""
        for a, b in self._by(self.hours, low, high, step, self.rolled_hours, into):
            for c, d in self._by(self.minutes, a, b, step, self.rolled_minutes, into):
                self.tens.read(c, d, into)

    def read_open(self, low: int, high: int, into: Sink) -> None:
        """The same of the open slots alone."""
        for ten, slot in self.open.items():
            if low <= ten < high:
                into(ten).merge(slot)

    def closed_since(self, low: int, fits: Callable[[int], bool], into: Slot) -> None:
        """Merge all that closed and ended from the ten ``low`` on, by way of a mark that ``fits``."""
        begin = self.marks.since(low, fits, into)
        self.read_closed(low, begin, 0, lambda _: into)

    def follow(self, closed: int, floor: int, old_apart: int) -> Iterator[int]:
        """Let the marks follow the clock (``Marks.follow``)."""
        levels = self.minutes.levels

        def level_of(mark: int) -> int:
            return levels.get(mark // (MINUTE * RUN), 0)

        return self.marks.follow(closed, floor, old_apart, level_of)

    @staticmethod
    def _by(
        shelf: Shelf, low: int, high: int, step: int, rolled: int, into: Sink
    ) -> Iterable[tuple[int, int]]:
        """Read what whole slots of a shelf cover; the rest, before and after."""
        first = -(-low // shelf.step) * shelf.step
        last = min(high // shelf.step * shelf.step, rolled)
        if first >= last or step % shelf.step:
            return ((low, high),)
        shelf.read(first, last, into)
        return (low, first), (last, high)

    def _close(self, tens: Iterable[int], floors: Floors) -> int:
        closing = {ten: self.open.pop(ten) for ten in tens}
        if not closing:
            return 0
        self.usual = max(self.usual, *(slot.nbytes for slot in closing.values()))
        if self.above is not None:
            for ten, slot in closing.items():
                self.above.slot(ten).merge(slot)
        for ten, slot in closing.items():
            self.marks.closed(ten, slot)
        minutes: dict[int, Slot] = {}
        hours: dict[int, Slot] = {}
        for ten, slot in closing.items():
            if ten < self.rolled_minutes and (ten >= self.rolled_hours or ten >= floors.minutes):
                minutes.setdefault(ten // MINUTE, Slot()).merge(slot)
            if self.rolled_hours > ten >= floors.hours:
                hours.setdefault(ten // HOUR, Slot()).merge(slot)
        kept = {ten: slot for ten, slot in closing.items() if ten >= min(self.rolled_minutes, floors.tens)}
        self.tens.add(kept, self.rolled_minutes)
        self.minutes.add(minutes, self.rolled_hours)
        self.hours.add(hours, self.rolled_hours)
        return len(kept) + 40 * len(minutes) + len(hours)

    @staticmethod
    def _roll(shelf: Shelf, run: int, above: Shelf, sealed: int) -> None:
        """Make one slot for the shelf above of the slots of this one, and seal their runs."""
        whole = Slot()
        low, high = run * above.step, (run + 1) * above.step
        shelf.read(low, high, lambda _: whole)
        of_run = shelf.step * shelf.length
        for each in range(low // of_run, high // of_run):
            shelf.seal(each)
        above.add({run: whole}, sealed)
