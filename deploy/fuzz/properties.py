"""What must hold for every input: ``check(data)``, which raises ``Broken`` where it does not.

1. No exception leaves the tap, and none was caught in it (``faults``).
2. What it holds is bounded: decoder's buffers, body's copy, arrivals.
3. Its facts pack, and unpack to the same; the words in them are words.
4. Cuts change nothing: pieces of one moment say the same as the whole.  (But for what the hot path does not
   read, by intent, where events tell their tokens so far: ``_UNREAD``.)
5. Allocations stay within a bound (where the input asks for it to be traced).

The product's bounds are made small here (``shrink``), so that small inputs reach them.
"""

from __future__ import annotations

import re
import tracemalloc
from array import array
from types import ModuleType
from typing import Any, Final

import msgspec

from deploy.fuzz.inputs import Plan, planned
from proxy.link import META_TOKENS_BITS, META_TOKENS_MAX, Stream
from proxy.relay import body as body_module
from proxy.relay import decompress
from proxy.relay.body import BodyTap
from proxy.relay.framing import SseDecoder
from proxy.relay.ndjson import NdjsonDecoder
from proxy.relay.streamtap import CHOICES_MAX, StreamTap
from proxy.relay.tap import Tap, open_tap

EVENT_LIMIT: Final = 4096
ARRIVALS_CAP: Final = 48
BODY_LIMIT: Final = 8192
TRACED_MAX: Final = 32 * 1024 * 1024
MS: Final = 1_000_000

#: A track keeps at least this many events, whatever the cap (``arrivals._LEAST_CAP``), 16 bytes each.
_TRACK_LEAST: Final = 8 * 16
HELD_MAX: Final = 2 * EVENT_LIMIT + BODY_LIMIT + 2 * ARRIVALS_CAP * 16 + CHOICES_MAX * _TRACK_LEAST

#: Fields that may differ with the cuts.  Counts other than the tokens so far are not kept from a plain event
#: that comes alone: a server that changes its mind about the prompt is not heard.  Of SGLang's events only
#: the end is read then: one with a broken beginning counts.
_UNREAD: Final[dict[str, frozenset[str]]] = {
    "llamacpp.completion": frozenset(("usage", "reported")),
    "gemini.generate": frozenset(("usage", "reported")),
    "sglang.generate": frozenset(Stream.__struct_fields__),
}  #: What ``shrink`` sets.
SMALL: Final[tuple[tuple[ModuleType, str, int], ...]] = (
    (body_module, "BODY_LIMIT", BODY_LIMIT),
    (body_module, "HEAD_KEPT", 1024),
    (body_module, "TAIL_KEPT", 2048),
    (decompress, "FEED_LIMIT", 256 * 1024),
    (decompress, "FREE_BYTES", 64 * 1024),
)
_WORDS: Final = re.compile(r"[\x20-\x7e]{1,200}")
_decode: Final = msgspec.msgpack.Decoder(Stream).decode


class Broken(Exception):
    """A property does not hold."""


def shrink() -> None:
    """Make the bounds of this process small."""
    for module, name, value in SMALL:
        assert hasattr(module, name)
        setattr(module, name, value)


def check(data: bytes) -> None:
    """See the module."""
    plan = planned(data)
    if plan.traced:
        tracemalloc.start()
    try:
        _check(plan)
        if plan.traced:
            _, peak = tracemalloc.get_traced_memory()
            _hold(peak <= TRACED_MAX, f"{plan.size} bytes took {peak} of memory")
    finally:
        if plan.traced:
            tracemalloc.stop()


def _check(plan: Plan) -> None:
    cut = _run(plan, plan.pieces)
    if not plan.timed and plan.sound and len(plan.pieces) > 1:
        whole = _run(plan, (b"".join(plan.pieces),))
        different = _difference(cut, whole)
        _hold(not different, f"cuts change what is said:{different}")


def _run(plan: Plan, pieces: tuple[bytes, ...]) -> Stream:
    tap = _opened(plan)
    now_ns = 600 * MS
    for number, piece in enumerate(pieces):
        if plan.timed:
            now_ns += (number * 37 % 90) * MS
        tap.feed(piece, now_ns)
        _hold(tap.faults == 0, "a fault while feeding")
        _hold(held(tap) <= HELD_MAX, f"{held(tap)} bytes are held")
        if plan.timed:
            tap.overdue_ns(now_ns + MS)
            tap.missed_by(now_ns + MS)
    tap.finish(now_ns, plan.complete)
    stream = tap.to_stream()
    tap.overdue_ns(now_ns)
    tap.missed_by(now_ns)
    _hold(tap.faults == 0, "a fault at the end")
    _hold(held(tap) <= HELD_MAX, f"{held(tap)} bytes are held at the end")
    _judge(tap, stream)
    return stream


def _opened(plan: Plan) -> Tap:
    tap = open_tap(
        path=plan.path,
        content_type=plan.content_type,
        content_encoding=plan.encoding,
        ttft_ns=500 * MS,
        tbt_ns=50 * MS,
        t0_ns=0,
        arrivals_cap=ARRIVALS_CAP,
        choices=plan.choices,
        dialect=plan.dialect,
    )
    _hold(tap.faults == 0, "a fault while opening")
    if isinstance(tap, StreamTap):
        tap._decoder = type(tap._decoder)(EVENT_LIMIT)
    return tap


def _judge(tap: Tap, stream: Stream) -> None:
    packed = msgspec.msgpack.encode(stream)
    _hold(msgspec.msgpack.encode(_decode(packed)) == packed, "the facts do not survive the link")
    for name in ("finish_reason", "error", "response_id", "unmeasured", "dialect", "tokens_source"):
        text = getattr(stream, name)
        _hold(text is None or bool(_WORDS.fullmatch(text)), f"{name} is no word: {text!r}")
    _hold(stream.tokens >= 0 and stream.events >= 0, "negative counts")
    _hold(tap.tokens == stream.tokens, "the tap and its facts count differently")
    _hold(len(stream.choices) <= CHOICES_MAX, "choices without number")


def held(tap: Any) -> int:
    """Bytes that a tap keeps between two pieces: what grows with its input."""
    if isinstance(tap, BodyTap):
        return len(tap._body) + len(tap._head or b"")
    if not isinstance(tap, StreamTap):
        return 0
    decoder = tap._decoder
    size = len(decoder._line)
    if isinstance(decoder, SseDecoder):
        size += len(decoder._data) + len(decoder._name) + len(decoder.last_event_id)
    else:
        assert isinstance(decoder, NdjsonDecoder)
    tracks = {id(track): track for track in (tap._one, *tap._tracks.values())}
    return size + sum(16 * len(track._arrivals) // 2 for track in tracks.values())


def _hold(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Broken(otherwise)


def _difference(cut: Stream, whole: Stream) -> str:
    unread = _UNREAD.get(cut.dialect, frozenset())
    return "".join(
        f"\n  {name}: {_shown(getattr(cut, name))} in pieces, {_shown(getattr(whole, name))} whole"
        for name in cut.__struct_fields__
        if getattr(cut, name) != getattr(whole, name) and name not in unread
    )


def _shown(value: Any) -> str:
    """A field; of arrivals the tokens and bytes of each event."""
    if isinstance(value, tuple) and value and isinstance(value[0], bytes):
        metas = [array("q", packed)[1::2] for packed in value]
        return repr([[(meta & META_TOKENS_MAX, meta >> META_TOKENS_BITS) for meta in each] for each in metas])
    return repr(value)
