"""A chat server in a process of its own that keeps a pace: stop the process, and its tokens stop.

    with pacer() as server, serve(server.url) as legato:
        ... send Plan(gaps_ms=[20] * 50).request() to legato ...
        os.kill(server.pid, SIGSTOP)

What a stream says is in its request (header ``x-plan``).  A gap runs from the moment at which the event
before it was written: a server that stood still goes on at its pace, it does not catch up.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True)
class Plan:
    """One stream: event i comes ``gaps_ms[i]`` after the one before it and belongs to choice ``i % choices``.

    ``end``: ``done`` | ``cut`` (the connection closes in mid-body) | ``hang`` (nothing more comes).
    ``size``: bytes of text per event.  ``tokens``: what the usage at the end reports; 0: none is sent.
    ``finish_first``: choice 0 is finished at event so many (0: at the end, like the others).
    """

    gaps_ms: Sequence[float]
    choices: int = 1
    end: str = "done"
    size: int = 3
    tokens: int = 0
    finish_first: int = 0

    def request(self, name: str, model: str = "tiny") -> bytes:
        """The request's bytes; ``name`` is its id in records."""
        asked = {"model": model, "messages": [{"role": "user", "content": "go"}], "stream": True}
        body = json.dumps({**asked, "n": self.choices}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: legato.test\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {name}\r\nX-Plan: {json.dumps(asdict(self))}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(**fields: Any) -> bytes:
    value = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1764000000, "model": "tiny"}
    return _chunk(b"data: " + json.dumps({**value, **fields}).encode() + b"\n\n")


def _said(choice: int, text: str, finish: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return _event(choices=[{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}])


class _Server(asyncio.Protocol):
    """One connection: request after request, each answered by its plan."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.gone = False
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]] if found else []
        fields = {name.lower(): value for name, value in lines}
        if not found or len(body) < int(fields.get(b"content-length", b"0")):
            return
        self.buffer = b""
        plan = Plan(**json.loads(fields[b"x-plan"]))
        self.transport.write(_HEAD)
        self._later(plan, 0, time.monotonic())

    def _later(self, plan: Plan, index: int, at_s: float) -> None:
        if index == len(plan.gaps_ms):
            self._end(plan)
            return
        due_s = at_s + plan.gaps_ms[index] / 1000
        self.loop.call_later(max(0.0, due_s - time.monotonic()), self._say, plan, index, due_s)

    def _say(self, plan: Plan, index: int, due_s: float) -> None:
        if self.gone:
            return
        if self.full:  # as a server does that awaits its drain
            self.loop.call_later(0.001, self._say, plan, index, due_s)
            return
        choice = index % plan.choices
        if not (plan.finish_first and choice == 0 and index >= plan.finish_first):
            text = f"{index}".ljust(plan.size, "x")
            last = plan.finish_first and choice == 0 and index + plan.choices >= plan.finish_first
            self.transport.write(_said(choice, text) + (_said(choice, "", "stop") if last else b""))
        now_s = time.monotonic()
        # A timer's grain is made up for, a time in which the process stood still is not.
        self._later(plan, index + 1, due_s if now_s - due_s < 0.005 else now_s)

    def _end(self, plan: Plan) -> None:
        if plan.end == "cut":
            self.transport.close()
        elif plan.end == "done":
            open_ = range(1 if plan.finish_first else 0, plan.choices)
            out = b"".join(_said(choice, "", "stop") for choice in open_)
            if plan.tokens:
                usage = {
                    "prompt_tokens": 5,
                    "completion_tokens": plan.tokens,
                    "total_tokens": 5 + plan.tokens,
                }
                out += _event(choices=[], usage=usage)
            self.transport.write(out + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass(frozen=True)
class Pacer:
    """The server's process."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid


@contextmanager
def pacer() -> Iterator[Pacer]:
    """A server for the length of a test."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield Pacer(process, int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    uvloop.run(_serve())
