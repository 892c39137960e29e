"""The scripted server by itself: every event is a piece of its own, and a cut stream has no end."""

from __future__ import annotations

from typing import Any

from tests.helpers.rawclient import RawClient, get, post
from tests.helpers.scripted import Answer, event_stream, line_stream, plays
from tests.helpers.upstream import json_response, scripted

EVENTS = [{"type": "a", "text": "é"}, b": ping\n\n", {"type": "b"}]


def by_size(asked: Any) -> Answer:
    return json_response(asked) if asked else line_stream([{"n": 1}, {"n": 2}])


def test_what_is_played_is_what_was_scripted() -> None:
    script = plays({"/sse": event_stream(EVENTS, named=True), "/either": by_size})
    with scripted(script) as upstream, RawClient(upstream.address) as client:
        client.send(post("/sse?x=1", b"{}"))
        answer = client.response()
        assert answer.body.decode() == (
            'event: a\ndata: {"type": "a", "text": "é"}\n\n: ping\n\nevent: b\ndata: {"type": "b"}\n\n'
        )
        assert answer.head.get(b"content-type") == b"text/event-stream; charset=utf-8"
        client.send(post("/either", b"{}"))
        assert client.response().body == b'{"n": 1}\n{"n": 2}\n'
        client.send(post("/either", b'{"n": 3}'))
        assert client.response().body == b'{"n": 3}'
        client.send(get("/other"))
        assert client.response().status == 404
        assert len(upstream.connections) == 1


def test_a_cut_stream_ends_before_its_end() -> None:
    script = plays({"/sse": event_stream([{"n": 1}], cut=True)})
    with scripted(script) as upstream, RawClient(upstream.address) as client:
        client.send(post("/sse", b"{}"))
        answer = client.response()
        assert (answer.end, answer.body) == ("truncated", b'data: {"n": 1}\n\n')


def test_each_event_is_a_read_of_its_own() -> None:
    script = plays({"/sse": event_stream([{"n": n} for n in range(20)])})
    with scripted(script) as upstream, RawClient(upstream.address) as client:
        client.send(post("/sse", b"{}"))
        assert len(client.response().arrivals) > 10  # a busy machine may join some
