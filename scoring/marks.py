"""What ended since each of some marks: so that a window that ends now takes a few merges, however long it is.

For one group (or the total).  A *mark* is a ten; kept with it is the packed sum of all that ended from it on.
Such a sum changes with every slot that closes, so it is kept in three parts:

    far     marks 3 minutes apart (20 where they are old): from the mark to ``far_to``
    near    marks 1 minute apart, the first of them at ``far_to``: from the mark to ``near_to``
    live    the minutes that begin at ``near_to`` or later, not packed

``near_to`` follows the clock minute by minute and ``far_to`` by 12 minutes: each time what has come is merged
into the sums before it.  A window reads the slots from its beginning to the next mark, one far sum, one near
sum, and what is live.  All of it is derived; a mark from which on nothing came for a while may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from scoring import codec
from scoring.slot import Slot

MINUTE: Final = 6
#: Tens between young marks, and between old ones (more where memory is short).
APART: Final = 3 * MINUTE
OLD_APART: Final = 20 * MINUTE
_FAR_STEP: Final = 4 * APART
_YOUNG: Final = 70 * MINUTE
#: What a packed sum costs beside its bytes.
_OVERHEAD: Final = 160
#: From so many minutes for which something came late, it is merged at once.
_LATE_MOST: Final = 6


class Marks:
    """See the module.  Times are numbers of tens (10 s)."""

    __slots__ = ("_far", "_late", "_live", "_near", "_taken", "far_to", "near_to", "version")

    def __init__(self, closed: int) -> None:
        self.near_to = self.far_to = closed // APART * APART
        self.version = 0  # of what has closed
        self._far: dict[int, bytes] = {}
        self._near: dict[int, bytes] = {}
        self._live: dict[int, Slot] = {}  # by the first ten of its minute, as those that came late
        self._late: dict[int, Slot] = {}
        self._taken: dict[int, Slot] = {}  # of these what is just being merged into the far sums

    @property
    def held(self) -> int:
        """Bytes that it takes."""
        packed = sum(map(len, self._far.values())) + sum(map(len, self._near.values()))
        slots = (*self._live.values(), *self._late.values(), *self._taken.values())
        return packed + _OVERHEAD * (len(self._far) + len(self._near)) + sum(slot.nbytes for slot in slots)

    def closed(self, ten: int, slot: Slot) -> None:
        """What a slot held when it closed, the first time or again; merged, not kept."""
        self.version += 1
        kept, begins = self._live if ten >= self.near_to else self._late, ten // MINUTE * MINUTE
        into = kept.get(begins)
        if into is None:
            into = kept[begins] = Slot()
        into.merge(slot)

    def since(self, low: int, fits: Callable[[int], bool], into: Slot) -> int:
        """Merge all that closed from a mark on, the first from ``low`` on that ``fits``; that mark."""
        far = min((mark for mark in self._far if mark >= low and fits(mark)), default=None)
        least = max(low, self.far_to)
        near = min((mark for mark in self._near if mark >= least), default=None)
        if far is not None:
            codec.read_run(self._far[far], lambda _: into)
        if near is not None:
            codec.read_run(self._near[near], lambda _: into)
        begin = far if far is not None else near
        if begin is None:
            begin = max(self.near_to, -(-low // MINUTE) * MINUTE)
        for kept in (self._late, self._taken, self._live):
            for begins, slot in kept.items():
                if begins >= begin:
                    into.merge(slot)
        return begin

    # ------------------------------------------------------------ following the clock

    def due(self, closed: int) -> bool:
        """Whether ``follow`` has anything to do where all tens before ``closed`` are closed."""
        return self.near_to + MINUTE <= closed

    def follow(
        self, closed: int, floor: int, old_apart: int, level_of: Callable[[int], int]
    ) -> Iterator[int]:
        """Let the marks follow the clock; yields what each step took, in units of about 0.25 ms.

        Between steps all is in order.  ``floor``: older marks are dropped.  ``level_of`` a mark: how far its
        sum is lowered.
        """
        while self.near_to + MINUTE <= closed:
            self._near_on()
            if self.near_to >= self.far_to + _FAR_STEP:
                yield from self._far_on(self.near_to, floor, old_apart, level_of)
            if self._near:
                yield 1 + len(self._near)
        if len(self._late) > _LATE_MOST:
            self._late_near()
            yield from self._far_on(self.far_to, floor, old_apart, level_of)

    def _near_on(self) -> None:
        """One minute more is behind: it gets a mark, and is merged into those before."""
        self._late_near()
        live = self._live.pop(self.near_to, None)
        if live is not None:
            self._add_near(self.near_to, live)
        self.near_to += MINUTE

    def _late_near(self) -> None:
        for begins in [each for each in self._late if each >= self.far_to]:
            self._add_near(begins, self._late.pop(begins))

    def _add_near(self, begins: int, slot: Slot) -> None:
        after = min((mark for mark in self._near if mark >= begins), default=None)
        if after != begins:  # its own mark begins with all that came after it
            self._near[begins] = _NOTHING if after is None else self._near[after]
        for mark in [each for each in self._near if each <= begins]:
            self._near[mark] = _with(self._near[mark], [slot], 0)

    def _far_on(self, to: int, floor: int, old_apart: int, level_of: Callable[[int], int]) -> Iterator[int]:
        """The near sums until ``to`` become far ones, and are merged into those before, as what came late.

        Until its last step all is as it was; what comes late meanwhile waits.
        """
        for begins, slot in self._late.items():
            self._taken.setdefault(begins, Slot()).merge(slot)
        self._late = {}
        far = {}
        for mark in range(self.far_to, to, APART):
            near = min((each for each in self._near if mark <= each < mark + APART), default=None)
            if near is not None:
                far[mark] = self._near[near]
        recent = [codec.unpack(self._near[min(self._near)])] if far else []
        buckets = set()
        for mark in sorted(self._far):
            if to - mark > _YOUNG:
                if mark < floor or mark // old_apart in buckets:
                    continue
                buckets.add(mark // old_apart)
            added = recent + [slot for begins, slot in self._taken.items() if begins >= mark]
            if added:
                far[mark] = _with(self._far[mark], added, level_of(mark))
                yield 1
            else:
                far[mark] = self._far[mark]
        self._far, self._taken, self.far_to = far, {}, to
        self._near = {mark: packed for mark, packed in self._near.items() if mark >= to}


_NOTHING: Final = codec.pack(Slot())


def _with(packed: bytes, added: Iterable[Slot], level: int) -> bytes:
    whole = codec.unpack(packed)
    for slot in added:
        whole.merge(slot)
    whole.lower(level)
    return codec.pack(whole)
