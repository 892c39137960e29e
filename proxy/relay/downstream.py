"""What the client's side can do.  The only module that knows uvicorn.

``ClientProtocol`` is uvicorn's ``HttpToolsProtocol`` with the seams mended that ASGI cannot reach: names
keep their case and the target its bytes; heads are bounded; a silent client does not stay; the request
that *runs* hears of the disconnect, also when others are pipelined behind it; a chunk is written in the
callback that brought it, without a coroutine.  Requests that follow on the same connection wait until
the one before is answered, unparsed where they came in a later read.

One ``Client`` (client.py) stands for one request and its answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.clock import monotonic_ns
from proxy.relay.client import Client, Limits
from proxy.relay.headers import tokens

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

#: Bytes of requests that wait behind a running one before reading stops.
_AHEAD_LIMIT: Final = 64 * 1024
#: How long, and how much, we read on after an early answer, so that a reset does not overtake it.
_LINGER_S: Final = 2.0
#: A reset waits this long, at most, for what was written before it, and looks this often.
_RESET_WITHIN_NS: Final = 30_000_000_000
_RESET_POLL_S: Final = 0.02
_INT: Final = struct.Struct("i")
_LINGER_NONE: Final = struct.pack("ii", 1, 0)
_DEMANDS: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_SERVES: Final = frozenset(("1.1", "1.0"))


class ClientProtocol(HttpToolsProtocol):
    """One client connection; requests are answered one at a time, in order."""

    limits: Limits  # set by ``protocol_class``

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parsing: Client | None = None  # the request that is arriving
        self.running: Client | None = None  # the request that is being answered
        self.waiting: deque[Client] = deque()  # complete requests behind it
        self._ahead: list[bytes] = []  # bytes behind those, not parsed yet
        self._ahead_size = 0
        self._in_head = 0  # bytes of an unfinished head
        self._head_size = 0
        self._refused: str | None = None
        self._discarding = False
        self._discarded = 0
        self._last_ns = 0
        self._timing_head = False  # the timer runs against an unfinished request
        self._reset_at_drain = False

    # ------------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_ns = monotonic_ns()
        self._arm(self.limits.client_head_s)
        self._timing_head = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        clients = [c for c in (self.running, *self.waiting, self.parsing) if c is not None]
        self.running = self.parsing = None
        self.waiting.clear()
        self._ahead.clear()
        for client in dict.fromkeys(clients):
            client.gone = True
            client.drop_body()
            client.release_backlog()
            client.let_go(disconnected=True)
            if client.listener is not None:
                client.listener.on_client_gone()
        if exc is None:
            self.transport.close()
        self.parser = self.cycle = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > 1024 * 1024:
                self.transport.close()
            return
        running = self.running
        if running is not None and running.complete:
            self._ahead.append(data)
            self._ahead_size += len(data)
            if self._ahead_size > _AHEAD_LIMIT:
                self.flow.pause_reading()
            return
        self._last_ns = monotonic_ns()
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self.parsing is None:
            self._in_head += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # decided in on_headers_complete
        except httptools.HttpParserError:
            self._refused = self._refused or "bad_request"
        if self._refused is None and self._in_head > self.limits.head_limit and self.parsing is None:
            self._refused = "head_too_large"
        if self._refused is not None:
            self._refuse(self._refused)
            return
        arriving = self.running is None and (self._in_head or self.parsing is not None)
        if arriving and not self._timing_head:
            self._arm(self.limits.client_head_s)
            self._timing_head = True

    def eof_received(self) -> None:
        """A client that closes its side has left (as for other reverse proxies)."""

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.running is not None:
            self.running.slow(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reset_at_drain:
            self._reset(monotonic_ns() + _RESET_WITHIN_NS)
        elif self.running is not None:
            self.running.flowing()

    # ------------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._head_size = 0
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.parsing is None:  # else it is a trailer
            self._head_size += len(name) + len(value) + 4
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._refused is not None:
            return  # what follows in the same read is not looked at
        client = self.parsing = Client(self)
        self._in_head = 0
        client.method = self.parser.get_method()
        client.target = self.url
        client.version = self.parser.get_http_version()
        client.fields = self.headers
        client.keep_alive = client.version == "1.1" and self.parser.should_keep_alive()
        code = self._check_head(client)
        if code is not None:
            self._refused = code
        elif client.expects_body and self.expect_100_continue and self.running is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_head(self, client: Client) -> str | None:
        """The code of the reply where the head is one that we cannot serve."""
        if self._head_size > self.limits.head_limit:
            return "head_too_large"
        if client.method == b"CONNECT":
            return "method"
        if client.version not in _SERVES:
            return "bad_request"
        hosts = 0
        for name, value in client.fields:
            name = name.lower()
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                client.expects_body = value.strip() != b"0"
            elif name in _DEMANDS and (code := self._check_demand(client, name, value)) is not None:
                return code
        if hosts > 1 or (hosts == 0 and client.version == "1.1"):
            return "bad_host"
        return None

    def _check_demand(self, client: Client, name: bytes, value: bytes) -> str | None:
        """The fields that ask something of this hop."""
        asked = value.strip().lower()
        if name == b"transfer-encoding":
            if asked != b"chunked":
                return "transfer_coding"
            if client.version == "1.0":
                return "bad_request"  # its framing means different things to different readers
            client.expects_body = client.upload_chunked = True
        elif name == b"expect":
            if asked != b"100-continue":
                return "unknown_expectation"
            self.expect_100_continue = True
        elif self.parser.should_upgrade():
            if b"h2c" not in tokens(asked):
                return "upgrade"
            client.keep_alive = False  # declined in silence, as RFC 9110 7.8 allows
        return None

    def on_body(self, body: bytes) -> None:
        client = self.parsing
        if client is None or self._refused is not None:
            return
        client.body_size += len(body)
        if client.streaming:
            if client.listener is not None:
                client.listener.on_upload(body)
            elif not client.response_done:  # its task has not run yet: this goes out with the head
                client.hold(body)
                self.flow.pause_reading()
            return
        client.hold(body)
        limits = self.limits
        if client.body_size > limits.body_limit or limits.body_room < 0:
            client.streaming = True
            self._accept(client)

    def on_message_complete(self) -> None:
        if self._refused is not None:
            return  # the record tells what it was that is refused
        client, self.parsing = self.parsing, None
        if client is None:
            return
        client.complete = True
        if not client.streaming:
            self._accept(client)
        elif client.listener is not None:
            client.listener.on_upload_end()

    # ------------------------------------------------------------------ one at a time

    def _accept(self, client: Client) -> None:
        if self.running is None:
            self._run(client)
        else:
            self.waiting.append(client)
            if client.streaming:
                self.flow.pause_reading()

    def _run(self, client: Client) -> None:
        self._unset_keepalive_if_required()
        self._timing_head = False
        self.running = client
        path, _, query = client.target.partition(b"?")
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": client.version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": client.method.decode("ascii"),
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "headers": client.fields,
            "extensions": {"legato.client": client},
        }
        client.cycle = self.cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=client.keep_alive,
            on_response=_nothing,
        )
        self._start_asgi_task(client.cycle, self.app)

    def answered(self, client: Client) -> None:
        """The running request's response is complete: close, or go on with what waits."""
        client.drop_body()
        self.running = None
        if self.transport.is_closing():
            return
        if not client.complete:
            self._linger()
        elif not client.keep_alive:
            self.transport.close()
        elif self.waiting:
            self.flow.resume_reading()
            self._run(self.waiting.popleft())
        elif self._refused is not None:
            self._refuse(self._refused)
        else:
            self._arm(self.limits.client_keepalive_s)
            if not self._ahead:
                self.flow.resume_reading()  # paused by an upload that was complete before it could go on
            else:
                data = b"".join(self._ahead)
                self._ahead.clear()
                self._ahead_size = 0
                self._last_ns = monotonic_ns()
                self.loop.call_soon(self._resume, data)

    def _resume(self, data: bytes) -> None:
        self.flow.resume_reading()
        if self.parser is not None and not self.transport.is_closing():
            if self.running is not None and self.running.complete:
                self._ahead.insert(0, data)
                self._ahead_size += len(data)
            else:
                self._parse(data)

    def _refuse(self, code: str) -> None:
        """Answer a request that cannot be served, after those before it, and close."""
        client = self.parsing or Client(self)
        self.parsing = client
        if self.running is client:
            self.transport.close()  # a streamed upload that turned out broken: its answer is not ours to give
            return
        if self.running is not None:
            return  # the answers before it come first; ``answered`` returns here
        self.limits.refuse(client, code)

    def _linger(self) -> None:
        self._discarding = True
        self.flow.resume_reading()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(_LINGER_S, self.transport.close)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def reset_when_drained(self) -> None:
        """Reset the connection as soon as what was written has been delivered."""
        if self.transport.get_write_buffer_size() == 0:
            self._reset(monotonic_ns() + _RESET_WITHIN_NS)
        else:
            self._reset_at_drain = True
            self.transport.set_write_buffer_limits(high=0)

    def _reset(self, until_ns: int) -> None:
        """Send RST.  It overtakes what the kernel still holds, so wait for that, within bounds."""
        raw = self.transport.get_extra_info("socket")
        if raw is None or self.transport.is_closing():
            self.transport.abort()
            return
        (unsent,) = _INT.unpack(fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
        if unsent and monotonic_ns() < until_ns:
            self.loop.call_later(_RESET_POLL_S, self._reset, until_ns)
            return
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.transport.abort()

    # ------------------------------------------------------------------ silence

    def _arm(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        if seconds > 0:
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for too long: between requests we close; within a body silence counts anew."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing() or self.running is not None:
            return
        if self.parsing is not None:
            left = self.limits.client_head_s - (monotonic_ns() - self._last_ns) / 1e9
            if left > 0:
                self._arm(left)
                return
        if self.parsing is None and self._in_head == 0:
            self.transport.close()
        else:
            self._refused = "request_timeout"
            self._refuse("request_timeout")

    def shutdown(self) -> None:
        """The worker drains: idle connections close, busy ones after their answer."""
        if self.running is None and self.parsing is None:
            self.transport.close()
        elif self.running is not None and not self.running.started:
            self.running.keep_alive = False


def _nothing() -> None:
    """The cycle's own notion of a finished response is not used."""


def protocol_class(limits: Limits) -> type[ClientProtocol]:
    """A protocol class that knows its worker; uvicorn makes the instances."""
    return type("LegatoProtocol", (ClientProtocol,), {"limits": limits})
