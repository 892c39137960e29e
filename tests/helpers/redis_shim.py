"""A TCP hop in front of Redis that does what networks do: late, cut at the wrong moment, refused, nonsense.

with redis_server() as redis, Shim(redis.address) as shim:
    shim.cut(b"EXEC")     # the next EXEC is carried out, and its answer is lost with the connection
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType

from tests.helpers.procs import free_port

_CHUNK = 65_536


class Commands:
    """Finds where the commands of a client end (RESP: arrays of bulk strings), in any pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The commands that are complete now: (name in capitals, all its bytes)."""
        self._held += data
        found = []
        while (end := self._end()) is not None:
            command, self._held = self._held[:end], self._held[end:]
            found.append((command.split(b"\r\n", 3)[2].upper(), command))
        return found

    def _end(self) -> int | None:
        line = self._held.find(b"\r\n")
        if line < 0:
            return None
        if not self._held.startswith(b"*"):
            raise ValueError(f"not a command: {self._held[:40]!r}")
        at = line + 2
        for _ in range(int(self._held[1:line])):
            line = self._held.find(b"\r\n", at)
            if line < 0:
                return None
            at = line + 2 + int(self._held[at + 1 : line]) + 2
        return at if at <= len(self._held) else None


class Shim:
    """``url`` is what a user would configure.  Every method may be called from any thread."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self.port = free_port()
        self.commands: list[bytes] = []  # names of all that went through, in order
        self.connections = 0
        self.cuts = 0  # carried out
        self._delay_s = 0.0
        self._babble: bytes | None = None
        self._free: asyncio.Event = asyncio.Event()
        self._free.set()
        self._cut: tuple[bytes | None, int, bool] | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shim", daemon=True)

    @property
    def url(self) -> str:
        """As of one Redis."""
        return f"redis://127.0.0.1:{self.port}"

    # ------------------------------------------------------------ what it shall do

    def forward(self) -> None:
        """As if it were not there: from now on, and listening again."""
        self._delay_s, self._babble, self._cut = 0.0, None, None
        self._run(self._free.set)
        self._run(self._listen)

    def delay(self, seconds: float) -> None:
        """Every piece towards the client takes this long."""
        self._delay_s = seconds

    def cut(self, command: bytes | None = None, nth: int = 1, *, through: bool = True) -> None:
        """Cut the connection of the n-th such command from now on (``None``: any).

        ``through``: Redis has carried it out, its answer never comes; else it never gets there.
        """
        self._cut = None if command is None else command.upper(), nth, through

    def hold(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self._run(self._free.clear)

    def babble(self, nonsense: bytes | None) -> None:
        """Answer every piece with this, and nothing gets to Redis; ``None``: no more."""
        self._babble = nonsense

    def refuse(self) -> None:
        """Cut what is open and refuse what comes."""
        self._run(self._shut)

    def drop(self) -> None:
        """Cut what is open; who comes again is let in."""
        self._run(self._drop)

    # ------------------------------------------------------------ how

    def __enter__(self) -> Shim:
        self._thread.start()
        self._run(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._shut)
        self._run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, what: Callable[[], object]) -> None:
        async def call() -> None:
            result = what()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._drop()

    def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up_writer}
        cut = asyncio.Event()
        back = asyncio.create_task(self._back(up_reader, writer, cut))
        there = asyncio.create_task(self._there(reader, up_writer, writer, cut))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            if not there.done():
                return  # Redis closed it
            there.result()
            # Redis carries out what it has before it sees the end; then it closes.
            with contextlib.suppress(OSError):
                up_writer.write_eof()
            await back
        except OSError:
            pass  # cut, by either side
        finally:
            back.cancel()
            there.cancel()
            self._open -= {writer, up_writer}
            for each in (writer, up_writer):
                each.transport.abort()

    async def _there(
        self,
        reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        cut: asyncio.Event,
    ) -> None:
        commands = Commands()
        while data := await reader.read(_CHUNK):
            if self._babble is not None:
                client.write(self._babble)
                continue
            await self._free.wait()
            for name, whole in commands.feed(data):
                ends, through = self._ends(name)
                if ends:
                    cut.set()
                    self.cuts += 1
                if not ends or through:
                    self.commands.append(name)
                    upstream.write(whole)
                if ends:
                    return
            await upstream.drain()

    def _ends(self, name: bytes) -> tuple[bool, bool]:
        if self._cut is None or self._cut[0] not in (None, name):
            return False, False
        wanted, nth, through = self._cut
        self._cut = None if nth == 1 else (wanted, nth - 1, through)
        return nth == 1, through

    async def _back(
        self, upstream: asyncio.StreamReader, client: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        while data := await upstream.read(_CHUNK):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._free.wait()
            if cut.is_set():
                continue
            client.write(data)
            await client.drain()
