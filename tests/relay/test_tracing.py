"""W3C Trace Context as the specification tells it, and sampling as OpenTelemetry decides it."""

from __future__ import annotations

import os
import random
from itertools import count
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.link import TraceIds, Tracing
from proxy.relay.headers import Fields
from proxy.relay.tracing import STATE_MAX, Traces, read_parent

TRACE: Final = "12345678901234567890123456789012"
SPAN: Final = "1234567890123456"
VALID: Final = f"00-{TRACE}-{SPAN}-01".encode()
HOST: Final = (b"Host", b"h")

ON: Final = Traces(Tracing(1.0))
NEVER: Final = Traces(Tracing(0.0))
OFF: Final = Traces(None)
LEFT_ALONE: Final = Traces(Tracing(1.0, propagate=False))


def begun(traces: Traces, *fields: tuple[bytes, bytes]) -> tuple[str, TraceIds]:
    trace_id, ids = traces.begin([HOST, *fields])
    assert trace_id is not None
    assert ids is not None
    return trace_id, ids


def parent(value: bytes) -> tuple[bytes, bytes]:
    return (b"traceparent", value)


def sent(traces: Traces, *fields: tuple[bytes, bytes]) -> Fields:
    """What goes upstream of a request with these fields."""
    given = [HOST, *fields]
    trace_id, ids = begun(traces, *fields)
    return traces.inject(given, trace_id, ids)


# ---------------------------------------------------------------- reading traceparent

#: From the specification and the cases of its own test suite (https://github.com/w3c/trace-context/tree/main/test).
READ: Final[dict[str, tuple[bytes, tuple[str, str, int] | None]]] = {
    "sampled": (VALID, (TRACE, SPAN, 1)),
    "not sampled": (f"00-{TRACE}-{SPAN}-00".encode(), (TRACE, SPAN, 0)),
    "random": (f"00-{TRACE}-{SPAN}-02".encode(), (TRACE, SPAN, 2)),
    "random and sampled": (f"00-{TRACE}-{SPAN}-03".encode(), (TRACE, SPAN, 3)),
    "flags that nobody knows": (f"00-{TRACE}-{SPAN}-fd".encode(), (TRACE, SPAN, 1)),
    "white space around it": (b" \t" + VALID + b"\t ", (TRACE, SPAN, 1)),
    "an id of letters": (b"00-" + b"abcdef0123" * 3 + b"ab-abcdefabcdef0000-01",
                         ("abcdef0123" * 3 + "ab", "abcdefabcdef0000", 1)),
    "a later version": (f"cc-{TRACE}-{SPAN}-01".encode(), (TRACE, SPAN, 1)),
    "a later version with more": (f"cc-{TRACE}-{SPAN}-01-what-the-future".encode(), (TRACE, SPAN, 1)),
    "a later version with a dash": (f"01-{TRACE}-{SPAN}-00-".encode(), (TRACE, SPAN, 0)),
    "a later version, glued": (f"cc-{TRACE}-{SPAN}-01.what-the-future".encode(), None),
    "a later version, too short": (f"cc-{TRACE}-{SPAN}-0".encode(), None),
    "version ff": (f"ff-{TRACE}-{SPAN}-01".encode(), None),
    "version 00 with more": (VALID + b"-what-the-future", None),
    "version 00 with a dash": (VALID + b"-", None),
    "version 00, glued": (VALID + b".what-the-future", None),
    "one more digit": (VALID + b"1", None),
    "empty": (b"", None),
    "nothing but dashes": (b"---", None),
    "trace id of zeros": (f"00-{'0' * 32}-{SPAN}-01".encode(), None),
    "span id of zeros": (f"00-{TRACE}-{'0' * 16}-01".encode(), None),
    "trace id too short": (f"00-{TRACE[:-1]}-{SPAN}-01".encode(), None),
    "trace id too long": (f"00-{TRACE}1-{SPAN}-01".encode(), None),
    "span id too short": (f"00-{TRACE}-{SPAN[:-1]}-01".encode(), None),
    "span id too long": (f"00-{TRACE}-{SPAN}1-01".encode(), None),
    "flags too short": (f"00-{TRACE}-{SPAN}-1".encode(), None),
    "flags too long": (f"00-{TRACE}-{SPAN}-001".encode(), None),
    "version too short": (f"0-{TRACE}-{SPAN}-01".encode(), None),
    "version too long": (f"000-{TRACE}-{SPAN}-01".encode(), None),
    "trace id in capitals": (f"00-{'ABCDEF0123' * 3}AB-{SPAN}-01".encode(), None),
    "span id in capitals": (f"00-{TRACE}-ABCDEFABCDEF0000-01".encode(), None),
    "flags in capitals": (f"00-{TRACE}-{SPAN}-0A".encode(), None),
    "version in capitals": (f"CC-{TRACE}-{SPAN}-01".encode(), None),
    "version no number": (f".0-{TRACE}-{SPAN}-01".encode(), None),
    "trace id no number": (f"00-.{TRACE[1:]}-{SPAN}-01".encode(), None),
    "span id no number": (f"00-{TRACE}-.{SPAN[1:]}-01".encode(), None),
    "flags no number": (f"00-{TRACE}-{SPAN}-.0".encode(), None),
    "other dashes": (VALID.replace(b"-", b"_"), None),
    "two in one": (VALID + b"," + VALID, None),
    "digits of another script": (VALID.replace(b"1", "\N{ARABIC-INDIC DIGIT ONE}".encode()), None),
    "a line's end": (VALID + b"\n", None),
}  # fmt: skip


@pytest.mark.parametrize(("value", "read"), READ.values(), ids=READ)
def test_traceparent(value: bytes, read: tuple[str, str, int] | None) -> None:
    assert read_parent(value) == read
    trace_id, ids = begun(NEVER, parent(value))
    if read is None:
        assert trace_id != TRACE
        assert (ids.theirs, ids.parent, ids.sampled) == (False, None, False)
    else:
        assert (trace_id, ids.parent, ids.theirs, ids.sampled) == (read[0], read[1], True, bool(read[2] & 1))
    assert OFF.begin([HOST, parent(value)]) == (None if read is None else read[0], None)


@pytest.mark.parametrize("name", [b"traceparent", b"TraceParent", b"TRACEPARENT"])
def test_a_names_spelling_does_not_matter(name: bytes) -> None:
    assert begun(ON, (name, VALID))[0] == TRACE


@pytest.mark.parametrize("name", [b"trace-parent", b"trace.parent", b"traceparents", b"x"])
def test_other_names_are_other_headers(name: bytes) -> None:
    assert begun(ON, (name, VALID))[0] != TRACE
    assert OFF.begin([(name, VALID)]) == (None, None)


@pytest.mark.parametrize("second", [VALID, b"nonsense", f"00-{TRACE}-{SPAN[::-1]}-00".encode()])
def test_several_are_none(second: bytes) -> None:
    for fields in ([parent(VALID), parent(second)], [parent(second), HOST, (b"TraceParent", VALID)]):
        trace_id, ids = begun(ON, *fields)
        assert trace_id != TRACE
        assert not ids.theirs
        assert OFF.begin(fields) == (None, None)


# ---------------------------------------------------------------- tracestate

LONG: Final = ",".join(f"k{number}={'v' * 40}" for number in range(20))
STATES: Final[dict[str, tuple[list[bytes], str | None]]] = {
    "none": ([], None),
    "one": ([b"foo=1,bar=2"], "foo=1,bar=2"),
    "several are one, in their order": ([b"foo=1", b"bar=2", b"baz=3"], "foo=1,bar=2,baz=3"),
    "white space stays within": ([b" foo=1 \t,\t bar=2 "], "foo=1 \t,\t bar=2"),
    "empty": ([b""], None),
    "empty ones": ([b"foo=1", b""], "foo=1,"),
    "no text": ([b"foo=\xff\x00"], None),
    "a control character": ([b"foo=1\x07"], None),
    "too long: its last members go, whole": ([LONG.encode()], LONG[: LONG.rindex(",", 0, STATE_MAX + 1)]),
    "as long as may be": ([b"k=" + b"v" * (STATE_MAX - 2)], "k=" + "v" * (STATE_MAX - 2)),
    "as long as may be, and more": ([b"k=" + b"v" * (STATE_MAX - 2) + b",a=b"], "k=" + "v" * (STATE_MAX - 2)),
    "one member, too long": ([b"k=" + b"v" * STATE_MAX], None),
}


@pytest.mark.parametrize(("values", "kept"), STATES.values(), ids=STATES)
def test_tracestate(values: list[bytes], kept: str | None) -> None:
    states = [(b"TraceState", value) for value in values]
    ids = begun(ON, parent(VALID), *states)[1]
    assert ids.state == kept
    assert len(ids.state or "") <= STATE_MAX
    # It travels as it came, whatever we keep of it.
    assert [field for field in sent(ON, *states, parent(VALID)) if field in states] == states


@pytest.mark.parametrize("first", [[], [parent(b"nonsense")], [parent(VALID), parent(VALID)]])
def test_without_a_valid_parent_it_is_of_no_trace(first: Fields) -> None:
    state = (b"tracestate", b"foo=1")
    assert begun(ON, *first, state)[1].state is None
    assert state not in sent(ON, *first, state)
    assert state in sent(LEFT_ALONE, *first, state)


# ---------------------------------------------------------------- what goes upstream


def test_a_clients_parent_gives_way_to_ours_in_its_place() -> None:
    fields = [
        (b"B3", b"0"),
        (b"TraceParent", VALID),
        (b"baggage", b"a=1"),
        (b"x-cloud-trace-context", b"1/2;o=1"),
    ]
    trace_id, ids = begun(ON, *fields)
    out = ON.inject([HOST, *fields], trace_id, ids)
    assert out == [HOST, fields[0], (b"TraceParent", f"00-{TRACE}-{ids.client}-01".encode()), *fields[2:]]
    assert fields[1][1] == VALID  # what came in is not changed


def test_without_one_ours_comes_last() -> None:
    trace_id, ids = begun(ON)
    assert ON.inject([HOST], trace_id, ids) == [HOST, parent(f"00-{trace_id}-{ids.client}-01".encode())]


def test_of_several_one_is_left() -> None:
    first, second = (b"TraceParent", VALID), parent(VALID)
    trace_id, ids = begun(ON, first, second)
    ours = (b"TraceParent", f"00-{trace_id}-{ids.client}-01".encode())
    assert ON.inject([first, HOST, second], trace_id, ids) == [ours, HOST]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("00-{}-00", "00"), ("00-{}-01", "01"), ("00-{}-02", "02"), ("00-{}-03", "03"), ("00-{}-fc", "00"),
     ("cc-{}-01-more", "01"), ("00-{}-07", "03"), (" \t00-{}-03\t ", "03")],
)  # fmt: skip
@pytest.mark.parametrize("traces", [ON, NEVER])
def test_the_clients_flags_go_on(traces: Traces, theirs: str, ours: str) -> None:
    value = theirs.format(f"{TRACE}-{SPAN}").encode()
    name, out = sent(traces, parent(value))[-1]
    assert (name, out[:36], out[52:]) == (b"traceparent", f"00-{TRACE}-".encode(), f"-{ours}".encode())


def test_a_parent_that_ends_at_this_hop_is_continued_all_the_same() -> None:
    trace_id, ids = begun(ON, parent(VALID))
    assert ON.inject([HOST], trace_id, ids)[1] == parent(f"00-{TRACE}-{ids.client}-01".encode())


def test_headers_are_left_alone_where_that_is_set() -> None:
    fields = [parent(b"nonsense"), (b"tracestate", b"a=1"), parent(VALID)]
    trace_id, ids = begun(LEFT_ALONE, *fields)
    assert LEFT_ALONE.inject(fields, trace_id, ids) == fields
    assert begun(LEFT_ALONE, parent(VALID))[1].theirs


def test_what_was_sent_can_be_read_again() -> None:
    for value in (VALID, b"nonsense"):
        trace_id, ids = begun(ON, parent(value))
        [(_, out)] = ON.inject([parent(value)], trace_id, ids)
        read = read_parent(out)
        assert read is not None
        assert read[:2] == (trace_id, ids.client)


@pytest.mark.parametrize("flags", [0, 1])
def test_opentelemetry_on_both_sides_understands(flags: int) -> None:
    """Its client's header is our parent, and what we send is its server's."""
    propagator = TraceContextTextMapPropagator()
    context = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), False, trace.TraceFlags(flags))
    carrier: dict[str, str] = {}
    propagator.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(context)))
    fields = [(name.encode(), value.encode()) for name, value in carrier.items()]
    trace_id, ids = begun(ON, *fields)
    assert (trace_id, ids.parent, ids.sampled) == (TRACE, SPAN, bool(flags))
    out = {name.decode(): value.decode() for name, value in ON.inject(fields, trace_id, ids)}
    seen = trace.get_current_span(propagator.extract(out)).get_span_context()
    assert (seen.trace_id, seen.span_id) == (int(TRACE, 16), int(ids.client, 16))
    assert (seen.trace_flags.sampled, seen.is_remote) == (bool(flags), True)


# ---------------------------------------------------------------- ids


def test_ids_are_unique_over_the_hosts_workers() -> None:
    """What four workers draw, and two requests of one client's span."""
    workers = [Traces(Tracing(0.5)) for _ in range(4)]
    drawn: list[str] = []
    for worker in workers:
        for _ in range(5_000):
            trace_id, ids = begun(worker)
            assert (len(trace_id), len(ids.server), len(ids.client)) == (32, 16, 16)
            drawn += trace_id, ids.server, ids.client
    assert len(set(drawn)) == len(drawn)
    one, two = begun(ON, parent(VALID))[1], begun(ON, parent(VALID))[1]
    assert len({one.server, one.client, two.server, two.client, SPAN}) == 5


@pytest.mark.parametrize("zeros", [slice(0, 16), slice(16, 24), slice(24, 32), slice(0, 32)])
def test_no_id_is_zero(zeros: slice) -> None:
    calls = count()

    def first_zeros(size: int) -> bytes:
        drawn = bytearray(os.urandom(size))
        if next(calls) == 0:
            drawn[zeros] = bytes(len(drawn[zeros]))
        return bytes(drawn)

    trace_id, ids = begun(Traces(Tracing(1.0), first_zeros))
    assert next(calls) == 2
    assert all(int(drawn, 16) for drawn in (trace_id, ids.server, ids.client))


def test_without_tracing_nothing_is_drawn() -> None:
    def never(size: int) -> bytes:
        raise AssertionError("drawn")

    off = Traces(None, never)
    assert off.begin([HOST]) == (None, None)
    assert off.begin([HOST, parent(VALID)]) == (TRACE, None)
    assert not off.asks


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 0.01, 0.3, 0.5, 0.99, 1.0])
def test_the_ratio_decides_as_opentelemetry_does(ratio: float) -> None:
    theirs = TraceIdRatioBased(ratio)
    drawing = random.Random(f"{ratio}")
    edge = round(ratio * 2**64)
    lows = [drawing.getrandbits(64) for _ in range(2000)]
    lows += [low for low in (edge - 1, edge, edge + 1) if 0 < low < 2**64]
    for low in lows:
        drawn = (drawing.getrandbits(64) << 64 | low).to_bytes(16, "big") + b"\1" * 16
        trace_id, ids = begun(Traces(Tracing(ratio), lambda _, drawn=drawn: drawn))  # type: ignore[misc]
        decided = theirs.should_sample(None, int(trace_id, 16), "").decision
        assert ids.sampled is (decided is Decision.RECORD_AND_SAMPLE)


def test_a_client_that_decided_is_asked_no_more() -> None:
    assert begun(NEVER, parent(VALID))[1].sampled
    assert not begun(ON, parent(VALID[:-1] + b"0"))[1].sampled


# ---------------------------------------------------------------- anything at all

NAMES: Final = st.sampled_from(
    [b"traceparent", b"Traceparent", b"tracestate", b"TRACESTATE", b"host"]
) | st.binary(max_size=12)
VALUES: Final = (
    st.binary(max_size=80)
    | st.from_regex(rb"\A[0-9a-fA-F]{2}-[0-9a-f]{31,33}-[0-9a-f]{16}-[0-9a-f]{2}.{0,2}\Z")
    | st.sampled_from([VALID, b"  " + VALID, VALID + b"\t"])
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_nothing_that_a_client_sends_raises_or_cannot_be_told(fields: Fields) -> None:
    for traces in (ON, NEVER, OFF, LEFT_ALONE):
        trace_id, ids = traces.begin(fields)
        if ids is None or trace_id is None:
            assert traces is OFF
            continue
        out = traces.inject(fields, trace_id, ids)
        travels(ids)
        if traces is LEFT_ALONE:
            assert out == fields
            continue
        ours = [value for name, value in out if name.lower() == b"traceparent"]
        assert len(ours) == 1
        read = read_parent(ours[0])
        assert read is not None
        assert (read[0], read[1], bool(read[2] & 1)) == (trace_id, ids.client, ids.sampled)


def travels(ids: TraceIds) -> None:
    """It travels to the control process."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ids), type=TraceIds) == ids
