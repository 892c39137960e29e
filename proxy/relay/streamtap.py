"""The tap of an event stream: bytes -> events -> meanings -> tokens -> deadlines.

Hot path: nearly every piece is one event with one plain answer text, framed like the one before it (a line
``data: ``, perhaps behind one with its name, or a bare line).  Its shape is tested by cutting prefix and
suffix off, a typed decoder reads it, the score is one comparison and one addition (``Track``).  Everything
else takes the general way, which does the same to the same bytes, at leisure.
"""

from __future__ import annotations

from typing import Final

from proxy.link import Stream
from proxy.relay.arrivals import Track
from proxy.relay.counting import Counter
from proxy.relay.decompress import BadEncoding, Bomb, Inflater
from proxy.relay.dialects.base import (
    BROKEN,
    RANKS,
    RUNNING_USAGE,
    Dialect,
    Reading,
    error_of,
)
from proxy.relay.dialects.registry import GENERIC, sniff
from proxy.relay.framing import SseDecoder
from proxy.relay.ndjson import NdjsonDecoder
from proxy.relay.noted import Firsts, Reported

#: More choices than any API allows in one request (OpenAI: 128); beyond, it is no such stream.
CHOICES_MAX: Final = 128
_DATA: Final = b"data: "
_HEAD_MAX: Final = 128
_ID_TRIES: Final = 8
#: Bytes of an event whose dialect tells tokens so far instead: nothing is apportioned over such events.
_ONE_MORE: Final = 1
_RUNNING: Final = RANKS[RUNNING_USAGE]


class StreamTap:
    """The tap of an event stream.  Deadlines count from ``t0_ns``; see the module.

    ``lines``: one JSON value a line (NDJSON) instead of SSE.  ``fixed``: the dialect was set by the route, no
    event decides it.
    """

    __slots__ = (
        "_asked",
        "_cap",
        "_counter",
        "_decode",
        "_decoder",
        "_dialect",
        "_done",
        "_error",
        "_firsts",
        "_fixed",
        "_frame",
        "_head",
        "_id_tries",
        "_inflater",
        "_lines",
        "_model",
        "_named_id",
        "_one",
        "_over",
        "_plain",
        "_quick",
        "_quick_size",
        "_reported",
        "_settled",
        "_steady",
        "_strange",
        "_tail",
        "_tbt_ns",
        "_tracks",
        "_ttft_ns",
        "_understood",
        "broken",
        "faults",
        "t0_ns",
        "unmeasured",
    )

    def __init__(
        self,
        dialect: Dialect | None,
        inflater: Inflater | None,
        ttft_ns: int,
        tbt_ns: int,
        t0_ns: int,
        cap: int,
        asked: int,
        *,
        lines: bool = False,
        fixed: bool = False,
    ) -> None:
        self.t0_ns = t0_ns
        self._ttft_ns, self._tbt_ns = ttft_ns, max(tbt_ns, 1)
        self._asked = max(asked, 1)
        self._cap = cap // min(self._asked, CHOICES_MAX)  # of events kept for each choice
        self._inflater = inflater
        self._lines, self._fixed = lines, fixed
        self._decoder: SseDecoder | NdjsonDecoder = NdjsonDecoder() if lines else SseDecoder()
        self._set_dialect(dialect or GENERIC)
        self._settled = False  # the first event has not confirmed the dialect yet
        self._steady = False
        self._quick = False
        self._head = self._tail = b""
        self._frame = 0
        # Choice 0, which every stream is taken to have: its first deadline runs before anything is seen.
        self._one = Track(self._ttft_ns, self._tbt_ns, self._cap)
        self._tracks: dict[int, Track] = {}
        self._counter = Counter()
        self._reported = Reported()
        self._firsts = Firsts()
        self._named_id: str | None = None
        self._model: str | None = None
        self._id_tries = _ID_TRIES
        self._error: str | None = None
        self._done = False  # [DONE] went by: nothing more is awaited, and nothing is thereby proved
        self._over = False  # the body ended as it should
        self._understood = False  # an event was one of the dialect's
        self._strange = False  # an event was not
        self.broken = 0
        self.faults = 0
        self.unmeasured: str | None = None

    # ------------------------------------------------------------ in the stream

    def feed(self, data: bytes, at_ns: int) -> None:
        """Look at the next piece.  HOT: the first half is all that nearly every piece sees."""
        try:
            if self._quick:
                body = data.removeprefix(self._head).removesuffix(self._tail)
                if len(data) - len(body) == self._frame and 10 not in body and 13 not in body:
                    try:
                        size = self._quick_size(body)
                    except BROKEN:
                        size = 0
                    track = self._one
                    if size < 0 and size + track.tokens == -1:
                        size = _ONE_MORE
                    if size > 0:
                        at = at_ns - self.t0_ns
                        if at > track.due_ns:
                            track.late_at(at)
                        track.due_ns += track.tbt_ns
                        track.append(at)
                        track.append(size << 20 | 1)
                        track.room -= 1
                        if not track.room:
                            track.thin()
                        return
                    if size and self._grown(-size, at_ns):
                        return
            self._feed(data, at_ns)
        except Exception:
            self._fault()

    def _grown(self, tokens: int, at_ns: int) -> bool:
        """There are ``tokens`` now, by running usage; false: no more than before."""
        growth = tokens - self._one.tokens
        if growth > 0:
            self._one.arrive(at_ns - self.t0_ns, growth, _ONE_MORE)
            if growth > 1:
                self._counter.several = True
                self._counter.burst = max(self._counter.burst, growth)
        return growth > 0

    def _feed(self, data: bytes, at_ns: int) -> None:
        if self.unmeasured is not None:
            return
        if self._quick and self._counter.rank == _RUNNING:
            self._reported.at_least(self._one.tokens)
        if self._inflater is not None:
            try:
                data = self._inflater.feed(data)
            except Bomb:
                self._give_up("bomb")
                return
            except BadEncoding:
                self._give_up("encoding")
                return
        decoder = self._decoder
        for name, payload in decoder.decode(data):
            self._event(name, payload, at_ns)
        if decoder.overflowed:
            self._give_up("event_too_large")
            return
        self._quick = self._steady and self._inflater is None and decoder.idle and self._learn(data)

    def _learn(self, data: bytes) -> bool:
        """Take the framing of a piece for that of the next: (a name's line,) ``data: `` and an empty line."""
        end = b"\r\n" if self._decoder.crlf else b"\n"
        if self._lines:
            self._head, self._tail = b"", end
        else:
            name = data[: data.find(b"\n") + 1] if data.startswith(b"event: ") else b""
            if len(name) > _HEAD_MAX or name.strip() == b"event: error":
                return False
            self._head, self._tail = name + _DATA, end + end
        self._frame = len(self._head) + len(self._tail)
        return data.startswith(self._head) and data.endswith(self._tail)

    def _event(self, name: bytes, payload: bytes, at_ns: int) -> None:
        if not payload or self.unmeasured is not None:
            return
        if self._firsts.event_ns is None:
            self._firsts.event_ns = at_ns
        if payload == b"[DONE]":
            self._done = True
            return
        if name == b"error":
            self._understood = True
            self._error = self._error or error_of(payload)
            return
        if not self._settled and self._settle(payload):
            return
        try:
            chunk = self._decode(payload)
        except BROKEN:
            chunk = self._dialect.mend(payload)
            if chunk is None:
                self.broken += 1
                self._strange = True
                return
        if self._steady:
            size = self._plain(chunk)
            if size > 0:
                self._one.arrive(at_ns - self.t0_ns, 1, size)
                return
        reading = self._dialect.read(chunk)
        if reading is None:
            self._strange = True
        else:
            self._understood = True
            self._take(reading, at_ns)
            # From here on another plain event changes nothing but choice 0's track.
            self._steady = (
                self._settled
                and 0 in self._tracks
                and not self._one.pending
                and self._firsts.answer_ns is not None
                and self._counter.rank == self._dialect.plain_rank
                and (self._counter.rank != _RUNNING or (self._asked == 1 and len(self._tracks) == 1))
            )

    def _settle(self, payload: bytes) -> bool:
        """Let the first events confirm the dialect and name the response; true: this one says nothing."""
        sniffed = sniff(payload, self._dialect)
        if sniffed.blank:
            return True
        if sniffed.dialect is not None and not self._fixed:
            self._set_dialect(sniffed.dialect)
        self._named_id = self._named_id or sniffed.response_id
        self._model = self._model or sniffed.model
        self._id_tries -= 1
        self._settled = self._named_id is not None or not self._id_tries or self._dialect is GENERIC
        return False

    def _set_dialect(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._decode, self._plain, self._quick_size = dialect.decode, dialect.plain, dialect.quick

    def _take(self, reading: Reading, at_ns: int) -> None:
        usage = reading.usage
        for output in reading.outputs:
            track = self._tracks.get(output.choice) or self._open(output.choice)
            if track is None:
                self._give_up("dialect")
                return
            if output.total >= 0:
                output.size = track.growth(output.total)
                output.kind = output.kind if output.size else 0  # the same text again is no output
            # The request's running usage is a choice's only where there is but one.
            own = usage if reading.per_choice or (self._asked == 1 and len(self._tracks) == 1) else None
            tokens = self._counter.tokens(output, own, track) + track.pending
            if output.kind or (output.finish is not None and track.events):
                track.pending = 0
                if tokens:
                    # The same for every way that the bytes may be cut: the quick one tells no sizes here.
                    size = _ONE_MORE if self._dialect.plain_rank == _RUNNING else output.size
                    track.arrive(at_ns - self.t0_ns, tokens, size)
                self._firsts.stamp(output.kind, at_ns)
            else:
                track.pending = tokens
            if output.finish is not None:
                track.finish = output.finish
            if reading.per_choice and usage is not None:
                self._reported.take_choice(output.choice, usage)
        if usage is not None and not reading.per_choice:
            self._reported.take(usage)
        if reading.error is not None and self._error is None:
            self._error = reading.error
        if reading.model is not None and self._model is None:
            self._model = reading.model

    def _open(self, index: int) -> Track | None:
        """The track of a choice that is seen for the first time; ``None``: too many."""
        if len(self._tracks) >= CHOICES_MAX:
            return None
        # Choices that nobody asked for (several prompts) share what is left: all together stay bounded.
        cap = self._cap // max(len(self._tracks) + 2 - self._asked, 1)
        track = self._one if index == 0 else Track(self._ttft_ns, self._tbt_ns, cap)
        self._tracks[index] = track
        return track

    # ------------------------------------------------------------ where it stands

    @property
    def tokens(self) -> int:
        """Tokens counted so far, over all choices."""
        return sum(track.tokens for track in self._tracks.values())

    @property
    def finished(self) -> bool:
        """The finish reason of every choice went by; a dialect without any: the body ended as it should."""
        if self._dialect.counted_end:
            return self._over
        tracks = self._tracks.values()
        whole = len(tracks) >= self._asked or self._over  # servers exist that ignore ``n``
        return whole and bool(tracks) and all(track.finish is not None for track in tracks)

    def overdue_ns(self, now_ns: int) -> int:
        """How long the token that is most overdue is; 0 or less: none is."""
        try:
            return max((track.overdue_ns(now_ns - self.t0_ns) for track in self._awaited()), default=0)
        except Exception:
            self._fault()
            return 0

    def missed_by(self, now_ns: int) -> int:
        """Deadlines missed so far, with those that have passed for tokens still awaited."""
        try:
            ended = self._ended()
            done = [track for track in self._tracks.values() if ended or track.finish is not None]
            missed = sum(track.missed for track in done)
            return missed + sum(track.missed_by(now_ns - self.t0_ns) for track in self._awaited())
        except Exception:
            self._fault()
            return 0

    def _awaited(self) -> list[Track]:
        """The choices from which a token is due.  Of events that nobody understands none is."""
        if self._ended() or (self._strange and not self._understood):
            return []
        if not self._tracks:
            return [self._one]
        return [track for track in self._tracks.values() if track.finish is None]

    def _ended(self) -> bool:
        return self._done or self._over or self._error is not None or self.unmeasured is not None

    # ------------------------------------------------------------ the end

    def finish(self, at_ns: int, complete: bool = True) -> None:
        """The body is over."""
        try:
            self._quick = False
            if complete and self.unmeasured is None:
                for name, payload in self._decoder.flush():
                    self._event(name, payload, at_ns)
            self._over = self._over or complete
            if self.unmeasured is None and not self.tokens and self._error is None:
                if self._strange and not self._understood:
                    self.unmeasured = "unrecognised"
                elif complete:
                    self.unmeasured = "no_tokens"
        except Exception:
            self._fault()

    def to_stream(self) -> Stream:
        """The facts."""
        try:
            return self._stream()
        except Exception:
            self._fault()
            return Stream(self._dialect.name, unmeasured=self.unmeasured)

    def _stream(self) -> Stream:
        tracks = [self._tracks[index] for index in sorted(self._tracks)]
        if self._dialect.plain_rank == self._counter.rank == _RUNNING and len(tracks) == 1:
            self._reported.at_least(tracks[0].tokens)
        return Stream(
            dialect=self._dialect.name,
            choices=tuple(track.packed() for track in tracks),
            events=sum(track.events for track in tracks),
            tokens=sum(track.tokens for track in tracks),
            tokens_source=self._counter.source,
            usage=self._reported.usage,
            finish_reason=next((track.finish for track in tracks if track.finish is not None), None),
            finished=self.finished,
            error=self._error,
            response_id=self._named_id,
            first_event_ns=self._firsts.event_ns,
            first_reasoning_ns=self._firsts.reasoning_ns,
            first_answer_ns=self._firsts.answer_ns,
            first_tool_ns=self._firsts.tool_ns,
            thinned=any(track.thinned for track in tracks),
            unmeasured=self.unmeasured,
            scores=tuple(track.score() for track in tracks),
            broken=self.broken,
            several=self._counter.several,
            reported=self._reported.each(sorted(self._tracks)),
            model=self._model,
        )

    def _give_up(self, reason: str) -> None:
        """Measuring ends here; what was held is let go."""
        self.unmeasured = reason
        self._quick = False
        self._decoder = SseDecoder()  # an empty one
        self._inflater = None

    def _fault(self) -> None:
        self.faults += 1
        self._give_up("tap_error")
