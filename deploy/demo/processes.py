"""The demo's processes: started, watched, and ended whatever happens.

Each runs in its own session, so that Ctrl-C reaches the demo alone, which then ends them in order; each
writes into a file, whose end is shown when the process dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.demo import client

_STOP_S = 8.0


class DemoError(Exception):
    """The demo cannot go on; the message says what failed and, if known, the mend."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """One running process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    def tail(self, lines: int = 12) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def check(self) -> None:
        """Raise ``DemoError`` if it has ended."""
        if self.process.returncode is not None:
            raise DemoError(f"{self.name} ended with status {self.process.returncode}:\n{self.tail()}")

    async def ready(self, url: str, within_s: float) -> None:
        """Wait until a GET of ``url`` answers 200.  Raises ``DemoError`` if it ends or takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not (reply := await client.get(url, within_s=2.0)).ok:
            self.check()
            if loop.time() > deadline:
                last = f"status {reply.status}, {reply.end}"
                raise DemoError(f"{self.name} is not ready after {within_s:g} s ({last}):\n{self.tail()}")
            await asyncio.sleep(0.05)


class Family:
    """All of them; ``async with`` ends them in reverse order of their start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []

    async def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Start one process.  Raises ``DemoError`` if that is not possible."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as out:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=asyncio.subprocess.STDOUT,
                    env=_environment() | dict(env or {}),
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"{name} cannot start: {command[0]}: {error.strerror}") from error
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raise ``DemoError`` if one of them has ended."""
        for child in self._children:
            child.check()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In a task of its own: a second Ctrl-C cancels the demo once more, not the ending of its processes.
        ending = asyncio.ensure_future(self._end_all())
        while not ending.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ending)

    async def _end_all(self) -> None:
        for child in reversed(self._children):
            await _end(child.process)


def _environment() -> dict[str, str]:
    """Ours, but for what would change Legato's configuration behind the demo's back."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}


async def _end(process: asyncio.subprocess.Process) -> None:
    for number, within_s in ((signal.SIGINT, _STOP_S), (signal.SIGKILL, _STOP_S)):
        if process.returncode is not None:
            break
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await process.wait()
