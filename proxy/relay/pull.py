"""``transport: httpx``: httpx's own transport in place of our wire, pulled and slower.

For odd TLS needs, HTTP/2 (where the ``h2`` package is installed), or a second opinion in an incident.
It offers the relay what ``pool.Pool`` and ``upstream.Connection`` offer.  httpx keeps the connections:
names are resolved and idle connections kept by it, ``max_age`` does not apply.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx

from proxy.clock import monotonic_ns
from proxy.link import BackendNow, BackendSpec, Timeouts
from proxy.relay.headers import read_response_head
from proxy.relay.pool import Origin, tls_context
from proxy.relay.upstream import Request, Sink
from proxy.tasks import spawn

#: Pieces of a streamed upload that wait for httpx before the client is paused.
_UPLOAD_PIECES: Final = 16


class PullPool(Origin):
    """A backend's connections as httpx keeps them."""

    def __init__(self, spec: BackendSpec, timeouts: Timeouts) -> None:
        super().__init__(spec, timeouts)
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls_context(spec) if self.tls else False,
            http2=self.tls and importlib.util.find_spec("h2") is not None,
            uds=spec.uds,
            limits=httpx.Limits(
                max_connections=spec.max_connections,
                max_keepalive_connections=None,
                keepalive_expiry=timeouts.upstream_keepalive_ns / 1e9,
            ),
        )

    def take(self) -> PullConnection | None:
        """A place for one exchange; the connection is httpx's affair.  ``None``: no further one fits."""
        if self.full or self.closed:
            return None
        self.active += 1
        return PullConnection(self, self._transport)

    async def connect(self) -> PullConnection:
        """Never needed: ``take`` gives a place unless the pool is full."""
        raise RuntimeError("a pull pool connects by itself")

    def sweep(self, now_ns: int) -> None:
        """httpx expires its idle connections itself."""

    def close(self) -> None:
        """No new requests; what is idle closes, what runs ends by itself."""
        self.closed = True
        if not self.active:
            spawn(self._transport.aclose(), f"close {self.spec.name}")

    def given_back(self, *, up: bool) -> None:
        """An exchange is over."""
        self.active -= 1
        self.up = up
        if self.closed and not self.active:
            spawn(self._transport.aclose(), f"close {self.spec.name}")

    def now(self) -> BackendNow:
        """The pool's state for a beat."""
        return BackendNow(self.spec.name, self.up, self.active, 0, 0, 1)


class PullConnection:
    """One exchange over httpx: a task that pulls, and stamps as soon as a piece is in its hands."""

    __slots__ = (
        "_pool",
        "_room",
        "_sink",
        "_task",
        "_transport",
        "_upload",
        "at_ns",
        "first_byte_ns",
        "peer",
    )

    def __init__(self, pool: PullPool, transport: httpx.AsyncHTTPTransport) -> None:
        self._pool = pool
        self._transport = transport
        self._sink: Sink | None = None
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._upload: asyncio.Queue[bytes | None] | None = None
        self.at_ns = monotonic_ns()
        self.first_byte_ns: int | None = None
        self.peer = ""

    # ------------------------------------------------------------------ what the exchange asks

    def send(self, sink: Sink, request: Request, body: Sequence[bytes], *, more: bool) -> None:
        """Begin the exchange.  Chunked framing of an upload is httpx's own."""
        self._sink = sink
        if more:
            self._upload = asyncio.Queue()
            for piece in body:
                self._upload.put_nowait(piece)
        self._task = spawn(self._run(request, list(body)), "pull")

    def send_body(self, data: bytes) -> None:
        """A piece of a streamed upload."""
        if self._upload is not None:
            self._upload.put_nowait(data)
            if self._upload.qsize() > _UPLOAD_PIECES and self._sink is not None:
                self._sink.on_upload_room(False)

    def send_end(self) -> None:
        """The upload is complete."""
        if self._upload is not None:
            self._upload.put_nowait(None)

    def abort(self) -> None:
        """Close at once; the sink hears nothing more."""
        self._sink = None
        task, self._task = self._task, None  # one that was cancelled keeps its frames, which hold us
        if task is not None:
            task.cancel()
        else:
            self._pool.given_back(up=True)

    def pause(self) -> None:
        """Pull no further piece."""
        self._room.clear()

    def resume(self) -> None:
        """Pull on."""
        self._room.set()

    # ------------------------------------------------------------------ the task

    async def _run(self, request: Request, body: list[bytes]) -> None:
        up = True
        try:
            await self._exchange(request, body)
        except httpx.ConnectTimeout:
            up = False
            self._fail("timeout_connect")
        except httpx.ConnectError:
            up = False
            self._fail("connect_failed")
        except (httpx.RemoteProtocolError, httpx.LocalProtocolError, httpx.UnsupportedProtocol):
            self._fail("bad_response" if self.first_byte_ns is None else "truncated")
        except (httpx.HTTPError, httpx.StreamError, OSError):
            self._fail("no_response" if self.first_byte_ns is None else "truncated")
        finally:
            self._pool.given_back(up=up)

    async def _exchange(self, request: Request, body: list[bytes]) -> None:
        pool = self._pool
        outgoing = httpx.Request(
            request.method.decode("ascii"),
            httpx.URL(scheme="https" if pool.tls else "http", host=pool.host, port=pool.port, path="/"),
            headers=[*request.fields, *((b"Transfer-Encoding", b"chunked") for _ in range(request.chunked))],
            stream=_Body(self._pieces() if self._upload is not None else _all(body)),
            extensions={
                "target": request.target,  # byte for byte, past httpx's own reading of URLs
                "timeout": {"connect": (pool.timeouts.connect_ns or 0) / 1e9 or None},
                "trace": self._trace,
            },
        )
        response = await self._transport.handle_async_request(outgoing)
        try:
            self._head(response)
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for data in response.stream:
                at_ns = self.at_ns = monotonic_ns()
                if self._sink is None:
                    return
                self._sink.on_bodies([data], at_ns)
                await self._room.wait()
        finally:
            await response.aclose()
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.on_end(monotonic_ns())

    def _head(self, response: httpx.Response) -> None:
        at_ns = self.at_ns = self.first_byte_ns = monotonic_ns()
        stream = response.extensions.get("network_stream")
        address = stream.get_extra_info("server_addr") if stream is not None else None
        self.peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""
        reason = response.extensions.get("reason_phrase", b"")
        if self._sink is not None:
            self._sink.on_head(
                read_response_head(response.status_code, reason, list(response.headers.raw)), at_ns
            )
            self._sink.on_bodies([], at_ns)

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started") and self._sink is not None:
            self._sink.on_connected(monotonic_ns())
        if event.endswith("send_request_body.complete") and self._sink is not None:
            self._sink.on_request_sent(monotonic_ns())

    async def _pieces(self) -> AsyncIterator[bytes]:
        assert self._upload is not None
        while (piece := await self._upload.get()) is not None:
            if self._upload.empty() and self._sink is not None:
                self._sink.on_upload_room(True)
            yield piece

    def _fail(self, kind: str) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_failure(kind, monotonic_ns())


class _Body(httpx.AsyncByteStream):
    """A request body from an iterator."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece


async def _all(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
