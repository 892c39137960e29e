"""Recordings through a tap with their own stamps, and on to their settled requests, without a socket."""

from __future__ import annotations

from functools import cache

from proxy.control.settle import Settled, settle
from proxy.link import Stream
from proxy.relay.tap import Tap, is_stream, open_tap
from tests.control.facts import facts
from tests.helpers.recordings import Pieces, Recording, load
from tests.helpers.taps import MS

TTFT_NS = 100 * MS
TBT_NS = 2 * MS


def choices_asked(recording: Recording) -> int:
    """The request's ``n``."""
    asked = recording.asked.get("n", 1)
    return asked if isinstance(asked, int) else 1


def opened(recording: Recording, *, cap: int = 20_000) -> Tap:
    """A tap for the recorded response, as the relay would open it; t = 0 is the stamps' own."""
    response = recording.response()
    return open_tap(
        path=recording.path,
        content_type=response.header(b"content-type"),
        content_encoding=response.header(b"content-encoding"),
        ttft_ns=TTFT_NS,
        tbt_ns=TBT_NS,
        t0_ns=0,
        arrivals_cap=cap,
        choices=choices_asked(recording),
    )


def played(recording: Recording, pieces: Pieces | None = None) -> Stream:
    """A recording through a tap, with its own stamps."""
    tap, response = opened(recording), recording.response()
    for at_ns, data in response.body if pieces is None else pieces:
        tap.feed(data, at_ns)
    tap.finish(recording.pieces[-1][0], response.complete)
    stream = tap.to_stream()
    assert tap.faults == 0
    return stream


@cache
def settled(name: str) -> Settled:
    """The recording ``name`` as the control process settles it."""
    recording = load(name)
    response = recording.response()
    given = facts(
        received_ns=0,
        sent_ns=0,
        end_ns=recording.pieces[-1][0],
        end="complete" if response.complete else "truncated",
        path=recording.path,
        status=response.status,
        streamed=is_stream(response.header(b"content-type")),
        stream_asked=bool(recording.asked.get("stream")),
        choices_asked=choices_asked(recording),
        ttft_target_ns=TTFT_NS,
        tbt_target_ns=TBT_NS,
        stream=played(recording),
    )
    return settle(given, "here")
