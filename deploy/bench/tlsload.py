"""A lockstep load client with or without TLS, in plain Python: slower than load.c, but it runs everywhere.

    python -m deploy.bench.tlsload PORT EVENTS UPSTREAM_PORT [--tls]

The client's own slowness is no part of what is compared: the proxy's CPU time per event, with TLS and
without, both under this client.  Prints the same JSON as load.c.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field

MARK = re.compile(rb"@T(\d{19}):(\d{7})")
STREAMS = 16
LAST = b"\r\n0\r\n\r\n"


@dataclass
class Stream:
    """One connection with one streamed request on it."""

    slot: int
    sock: socket.socket
    asked_ns: int = 0
    held: bytes = b""
    next_seq: int = 0
    open: bool = True


@dataclass
class Seen:
    """What came."""

    delays_us: list[float] = field(default_factory=list)
    first_us: list[float] = field(default_factory=list)
    out_of_order: int = 0
    broken: int = 0
    complete: int = 0


def connect(port: int, slot: int, tls: bool) -> Stream:
    """Connect, shake hands, and go non-blocking."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname="localhost")
    return Stream(slot, sock)


def ask(stream: Stream, events: int) -> None:
    """Send the request."""
    wish = f"bench:n={events},interval_us=0,delay_us=0,lockstep=1,slot={stream.slot:04d} "
    body = json.dumps(
        {"model": "mock", "stream": True, "messages": [{"role": "user", "content": wish}]}
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    stream.asked_ns = time.monotonic_ns()
    stream.sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    stream.sock.setblocking(False)


def read(stream: Stream, seen: Seen, acks: socket.socket) -> None:
    """Take what is there, note each event and acknowledge it."""
    while stream.open:
        try:
            data = stream.sock.recv(262144)
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        except OSError:
            data = b""
        at_ns = time.monotonic_ns()
        if not data:
            stream.open = False
            seen.broken += 1
            return
        whole, end = stream.held + data, 0
        for mark in MARK.finditer(whole):
            end = mark.end()
            note(stream, seen, at_ns, int(mark[1]), int(mark[2]))
            acks.send(struct.pack("=I", stream.slot))
        stream.held = whole[end:][-64:]
        if whole.endswith(LAST):
            stream.open = False
            seen.complete += 1


def note(stream: Stream, seen: Seen, at_ns: int, sent_ns: int, seq: int) -> None:
    """Book one event."""
    seen.out_of_order += seq != stream.next_seq
    stream.next_seq = seq + 1
    seen.delays_us.append((at_ns - sent_ns) / 1e3)
    if seq == 0:
        seen.first_us.append((at_ns - stream.asked_ns) / 1e3)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; -1.0 of nothing."""
    return round(sorted(values)[int(share * (len(values) - 1) + 0.5)], 1) if values else -1.0


def run(port: int, events: int, upstream_port: int, tls: bool, limit_s: float = 30.0) -> dict[str, object]:
    """All streams to their ends."""
    acks = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    acks.connect(f"\0legato-bench-{upstream_port}")
    streams = [connect(port, slot, tls) for slot in range(STREAMS)]
    seen, start = Seen(), time.monotonic()
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            ask(stream, events)
            selector.register(stream.sock, selectors.EVENT_READ, stream)
        while any(stream.open for stream in streams) and time.monotonic() - start < limit_s:
            for key, _ in selector.select(1.0):
                read(key.data, seen, acks)
                if not key.data.open:
                    selector.unregister(key.fileobj)
    elapsed = time.monotonic() - start
    return {
        "connections": STREAMS,
        "elapsed_s": round(elapsed, 4),
        "events": len(seen.delays_us),
        "requests": 0,
        "streams": seen.complete,
        "per_s": round(len(seen.delays_us) / elapsed, 1),
        "p50_us": percentile(seen.delays_us, 0.5),
        "p99_us": percentile(seen.delays_us, 0.99),
        "p999_us": percentile(seen.delays_us, 0.999),
        "max_us": percentile(seen.delays_us, 1.0),
        "first_p50_us": percentile(seen.first_us, 0.5),
        "first_p99_us": percentile(seen.first_us, 0.99),
        "lost": sum(events - stream.next_seq for stream in streams),
        "out_of_order": seen.out_of_order,
        "bad_status": 0,
        "broken": seen.broken,
        "unfinished": sum(stream.open for stream in streams),
        "trouble": "",
    }


def main() -> None:
    """Parse, run, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("events", type=int)
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--tls", action="store_true")
    given = parser.parse_args()
    print(json.dumps(run(given.port, given.events, given.upstream_port, given.tls)))


if __name__ == "__main__":
    main()
