"""Who put which weights in place of the file's, here and on the other hosts.

Every change of a split is a ``Word``: its weights, or that there are none any more.  The newest word counts.
It is for hosts whose file has the same weights as that of the host where it was said; for the others their
own file counts.

Words live in the hosts' memories.  The store only carries them: whoever has one in force says so again with
each ``sync`` (``kept_unix_ns``), and a host that begins, or reads another file, takes none that nobody
has said again since.  So what a restarted host finds is what others still go by, and where all of them were
restarted, that is nothing: the file has won.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from proxy.control.experiments.arms import Arms, Override, WeightsError, checked_arms, checked_word
from proxy.control.shared import Shared
from proxy.control.shared_names import WEIGHTS, WEIGHTS_KEPT_S

#: What nobody has said again for so long is as good as gone.
_KEPT_NS: Final = WEIGHTS_KEPT_S * 1_000_000_000
#: What is later than this is no time.
_LAST_NS: Final = 1 << 62
#: Bytes of a word at most.
_VALUE_MAX: Final = 65_536

#: The weights of all routes that share a split's name, as the file has them.
FileArms = tuple[Arms, ...]


class Word(Struct, frozen=True, kw_only=True):
    """One change of a split's weights; ``arms`` ``None``: the file's again."""

    arms: dict[str, int] | None
    author: str
    reason: str
    at_unix_ns: int
    file_arms: FileArms
    kept_unix_ns: int = 0  # when a host last said that it goes by it

    @property
    def newness(self) -> tuple[int, bytes]:
        """What orders words; two hosts that speak at one moment are ordered alike everywhere."""
        return self.at_unix_ns, _encoder.encode(msgspec.structs.replace(self, kept_unix_ns=0))

    @property
    def override(self) -> Override | None:
        """As readers see it."""
        if self.arms is None:
            return None
        return Override(self.arms, self.author, self.reason, self.at_unix_ns)


_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decoder: Final = msgspec.msgpack.Decoder(Word)


class Overrides:
    """The words of one host.  ``unix_ns()``: its clock; words bear the time of the store's, once known."""

    def __init__(self, unix_ns: Callable[[], int]) -> None:
        self._unix_ns = unix_ns
        self._offset_ns: int | None = None  # the store's clock less ours, once it was asked
        self._file: dict[str, FileArms] = {}
        self._held: dict[str, Word] = {}
        self._undated: set[str] = set()  # splits whose words bear our own clock's time
        self._elsewhere: dict[str, Override] = {}
        self._seen_ns: dict[str, int] = {}  # the time of the newest word that was seen of a split
        self._first: dict[str, int] = {}  # ``kept_unix_ns`` of what was found at the first look; 0: nothing

    def set_file(self, file: Mapping[str, FileArms]) -> list[str]:
        """What the file says now; the splits whose weights lose to it."""
        stays = {name for name, arms in file.items() if self._file.get(name) == arms}
        lost = [name for name, word in self._held.items() if name not in stays and word.arms is not None]
        self._file = dict(file)
        self._held = {name: word for name, word in self._held.items() if name in stays}
        self._seen_ns = {name: at_ns for name, at_ns in self._seen_ns.items() if name in stays}
        self._first = {name: kept_ns for name, kept_ns in self._first.items() if name in stays}
        self._elsewhere = {}
        return lost

    def say(
        self, split: str, arms: Mapping[str, int] | None, author: str, reason: str, at_unix_ns: int | None
    ) -> None:
        """Somebody changed a split of the file here: that is newer than all that this host knows.

        With ``at_unix_ns`` it is something that several hosts say by themselves: whoever has heard it from
        another one says nothing new.
        """
        held = self._held.get(split)
        if at_unix_ns is not None and held is not None:
            told = (None if arms is None else dict(arms), author, reason)
            if told == (held.arms, held.author, held.reason):
                return
        at_ns = self._unix_ns() + (self._offset_ns or 0) if at_unix_ns is None else at_unix_ns
        if at_unix_ns is None and self._offset_ns is None:
            self._undated.add(split)
        at_ns = max(at_ns, self._seen_ns.get(split, 0) + 1)
        self._seen_ns[split] = at_ns
        self._held[split] = Word(
            arms=None if arms is None else dict(arms),
            author=author,
            reason=reason,
            at_unix_ns=at_ns,
            file_arms=self._file[split],
        )

    def of(self, split: str) -> Override | None:
        """What stands in place of the file's weights."""
        word = self._held.get(split)
        return None if word is None else word.override

    def elsewhere(self, split: str) -> Override | None:
        """What other hosts go by, and this one does not, since its file has other weights than theirs."""
        return self._elsewhere.get(split)

    # ------------------------------------------------------------ other hosts

    async def sync(self, shared: Shared) -> dict[str, Word]:
        """Hear the other hosts and tell them; the words of others that count here from now on, by split."""
        fields = await shared.fetch(WEIGHTS)
        now_ns = shared.now_unix_ns()
        self._offset_ns = now_ns - self._unix_ns()
        self._date(self._offset_ns)
        taken: dict[str, Word] = {}
        tell: dict[str, bytes] = {}
        for split in self._file:
            told = self._read(split, fields.get(split))
            self._elsewhere.pop(split, None)
            if told is not None and self._hear(split, told, now_ns):
                taken[split] = told
            self._first.setdefault(split, 0 if told is None else told.kept_unix_ns)
            mine = self._held.get(split)
            if mine is not None and _to_tell(mine, told):
                tell[split] = _encoder.encode(msgspec.structs.replace(mine, kept_unix_ns=now_ns))
        if tell:
            await shared.put(WEIGHTS, tell, WEIGHTS_KEPT_S)
        return taken

    def _date(self, offset_ns: int) -> None:
        """Give what was said before the store was first asked its time."""
        for split in self._undated & self._held.keys():
            word = self._held[split]
            at_ns = max(word.at_unix_ns + offset_ns, 0)
            self._held[split] = msgspec.structs.replace(word, at_unix_ns=at_ns)
            self._seen_ns[split] = at_ns
        self._undated.clear()

    def _hear(self, split: str, told: Word, now_ns: int) -> bool:
        """Whether it counts here from now on."""
        self._seen_ns[split] = max(self._seen_ns.get(split, 0), told.at_unix_ns)
        if told.file_arms != self._file[split]:
            if told.override is not None and now_ns - told.kept_unix_ns <= _KEPT_NS:
                self._elsewhere[split] = told.override
            return False
        mine = self._held.get(split)
        if mine is not None and told.newness <= mine.newness:
            return False
        if mine is None and told.kept_unix_ns == self._first.get(split, told.kept_unix_ns):
            return False  # nobody has said it again since we look: it may be nobody's any more
        self._held[split] = told
        return True

    def _read(self, split: str, value: bytes | None) -> Word | None:
        """What another host wrote; ``None`` for nothing and for nonsense."""
        if value is None or len(value) > _VALUE_MAX:
            return None
        try:
            word = _decoder.decode(value)
            checked_word(word.author, word.reason)
            if word.arms is not None and word.file_arms == self._file[split]:
                checked_arms(split, word.arms, dict(word.file_arms[0]))
        except (msgspec.MsgspecError, WeightsError, UnicodeDecodeError):
            return None
        return word if 0 <= word.at_unix_ns < _LAST_NS else None


def _to_tell(mine: Word, told: Word | None) -> bool:
    """Whether to write a word: one in force always, so that it is known to be; never over a newer one.

    That there is none any more is said to those who still say the opposite.
    """
    if told is None:
        return mine.arms is not None
    newer = told.newness < mine.newness
    return newer or (mine.arms is not None and told.newness == mine.newness)
