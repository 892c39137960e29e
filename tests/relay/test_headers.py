"""Which header fields travel, and what a response's head says of its body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.relay.headers import (
    HOP_BY_HOP,
    Fields,
    Framing,
    end_to_end,
    find,
    named_by_connection,
    read_response_head,
    tokens,
)
from tests.helpers.http1 import Head

NAMES = st.sampled_from(
    [
        b"Host",
        b"X-A",
        b"x-a",
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Upgrade",
        b"Trailer",
        b"Cookie",
        b"Accept",
    ]
)
VALUES = st.sampled_from([b"", b"close", b"x-a", b"X-A, cookie", b"keep-alive", b"trailers", b"1"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


@given(FIELDS)
def test_what_is_kept_is_kept_as_it_is_and_agrees_with_another_reading_of_the_rfc(fields: Fields) -> None:
    kept = end_to_end(fields)
    rest = iter(fields)
    assert all(field in rest for field in kept), "in order, each as it was"
    theirs = Head(b"", (b"", b"", b""), fields).end_to_end()
    protected = {b"host", b"content-length", b"content-type", b"content-encoding"}
    assert [f for f in kept if f[0].lower() not in protected] == [
        f for f in theirs if f[0].lower() not in protected
    ]


def test_connection_names_fields_but_not_those_that_framing_needs() -> None:
    fields: Fields = [(b"Connection", b"X-Hop, Host ,content-length"), (b"connection", b"close,,x-two")]
    assert named_by_connection(fields) == {b"x-hop", b"close", b"x-two"}
    kept = end_to_end([*fields, (b"Host", b"a"), (b"x-HOP", b"1"), (b"X-Two", b"2"), (b"X-Three", b"3")])
    assert kept == [(b"Host", b"a"), (b"X-Three", b"3")]


def test_more_can_be_dropped() -> None:
    assert end_to_end([(b"Expect", b"100-continue"), (b"A", b"b")], frozenset((b"expect",))) == [(b"A", b"b")]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_end_here(name: bytes) -> None:
    assert end_to_end([(name.title(), b"x")]) == []


def test_lists_of_tokens() -> None:
    assert tokens(b" A ,b,, C\t") == [b"a", b"b", b"c"]
    assert tokens(b"") == []


def test_the_first_value_counts() -> None:
    assert find([(b"X-A", b"1"), (b"x-a", b"2")], b"x-a") == b"1"
    assert find([], b"x-a") is None


# ---------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("fields", "framing", "bad"),
    [
        ([(b"Content-Length", b"12")], Framing(12, False), False),
        ([(b"Transfer-Encoding", b"chunked")], Framing(None, True), False),
        ([(b"transfer-encoding", b" Chunked ")], Framing(None, True), False),
        ([(b"Transfer-Encoding", b"gzip, chunked")], Framing(None, False), True),
        (
            [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
            Framing(None, False),
            True,
        ),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")], Framing(None, True), False),
        ([], Framing(None, False), False),
    ],
)
def test_how_a_body_is_delimited(fields: Fields, framing: Framing, bad: bool) -> None:
    head = read_response_head(200, b"OK", fields)
    assert (head.framing, head.bad_coding) == (framing, bad)


def test_a_head_keeps_what_travels_and_tells_what_the_tap_asks_for() -> None:
    fields: Fields = [
        (b"Date", b"now"),
        (b"content-TYPE", b"Text/Event-Stream; charset=UTF-8"),
        (b"Content-Encoding", b" GZIP "),
        (b"Set-Cookie", b"a"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5, max=100"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"b"),
    ]
    head = read_response_head(206, b"Partly", fields)
    assert (head.status, head.reason) == (206, b"Partly")
    assert head.fields == [fields[0], fields[1], fields[2], fields[3], fields[7], fields[8]]
    assert head.content_type == b"text/event-stream; charset=utf-8"
    assert (head.content_encoding, head.keep_alive_s) == (b"gzip", 5)


@pytest.mark.parametrize("value", [b"", b"max=3", b"timeout=", b"timeout=-5", b"timeout=5s", b"timeout"])
def test_a_keep_alive_that_says_no_number_says_nothing(value: bytes) -> None:
    assert read_response_head(200, b"", [(b"Keep-Alive", value)]).keep_alive_s is None
