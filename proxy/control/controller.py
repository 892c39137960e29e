"""The control process: ``python -m proxy.control.controller --boot JSON --admin-fd N --link-fd M``.

Composition root: configuration -> table, link server, books, logs, admin API; signals and reload.
HUP reads the configuration again, USR1 says that draining has begun, TERM and INT end the process within
``END_S``.  Both listening sockets are inherited and outlive it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import uvicorn
import uvloop

from proxy import clock
from proxy.config import (
    Boot,
    Config,
    ConfigErrors,
    in_force,
    load,
    redacted,
    restart_needed,
    watched_files,
)
from proxy.control.api import create_app
from proxy.control.core import Controller
from proxy.control.exports import Exports
from proxy.control.linkserver import LinkServer
from proxy.control.logs import Logs, Target
from proxy.control.stages import Stages
from proxy.link import Table
from proxy.parent import ParentWatch
from proxy.tables import build_table
from proxy.tally import Tally
from proxy.tasks import child, spawn
from proxy.turns import ask_for_short_turns

__all__ = ["Controller", "Process", "main"]

_log = logging.getLogger("legato.control")

#: From the order to end until the process is gone.
END_S: Final = 2.0
_TICK_S: Final = 1.0
#: A worker that is alive has a second to connect again before control ends for want of a parent.
_ORPHAN_TICKS: Final = 3


class Process:
    """Everything that the control process holds.  ``run`` returns when it was told to end."""

    def __init__(
        self,
        boot: Boot,
        config: Config,
        admin: socket.socket,
        link: socket.socket,
        tally: Tally | None = None,
    ) -> None:
        self.boot = boot
        self.config = config
        self.reload_error: str | None = None
        self.logs = Logs(lambda sentence: _log.warning("%s", sentence))
        self.controller = Controller(
            build_table(config, 1),
            instance=socket.gethostname(),
            version=version(),
            unix_ns=clock.unix_ns,
            monotonic_ns=clock.monotonic_ns,
            sinks=[self.logs],
            tally=tally,
        )
        self.controller.prefills.freeze(config.slos)
        self.controller.ledger.rate_quantile = config.fluid_rate.quantile
        self.controller.watch_exporter(self.logs.failures, self.logs.dropped)
        self.exports = Exports(config, self.controller)
        self.link = LinkServer(self.controller, clock.monotonic_ns)
        self.stages = Stages(config, self.controller, self.exports, self._publish)
        self._admin, self._link_socket = admin, link
        self._server = _server(self)
        self._end = asyncio.Event()
        self._parent = ParentWatch()
        self._orphan_ticks = 0
        self._marks = self._look()

    # ------------------------------------------------------------ running

    async def run(self) -> int:
        """Serve until told to end, then flush; 0, or 1 if something ended that should not have."""
        loop = asyncio.get_running_loop()
        for number, act in (
            (signal.SIGHUP, self.reload),
            (signal.SIGUSR1, self.drain),
            (signal.SIGTERM, self._end.set),
            (signal.SIGINT, self._end.set),
        ):
            loop.add_signal_handler(number, act)
        self._configure_logs()
        workers = await loop.create_unix_server(self.link.protocol, sock=self._link_socket)
        jobs = {
            child(self.link.run()): "fold",
            child(self._tick()): "tick",
            child(self._server.serve(sockets=[self._admin])): "admin",
        }
        # Nothing that only looks on may end the process: their failures are reported, not waited for.
        exporting = [spawn(job, name) for name, job in [*self.exports.jobs(), *self.stages.jobs()]]
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not look at it
        ended = child(self._end.wait())
        done, _ = await asyncio.wait([*jobs, ended], return_when=asyncio.FIRST_COMPLETED)
        for task, name in jobs.items():
            if task in done:
                _log.error("the %s task ended: %r", name, task.exception() or "too early")
        workers.close()
        for task in exporting:
            task.cancel()
        await self._finish(jobs)
        return 0 if ended in done else 1

    async def _finish(self, jobs: Mapping[asyncio.Task[None], str]) -> None:
        """Book what has arrived, hand out what is left, let the admin API finish; all within ``END_S``."""
        self._server.should_exit = True
        self.link.fold_for(int(END_S * 0.25e9))
        if self._end.is_set():  # else another one takes this one's place, and finds them
            self.controller.look_for_dead(self.link.read_ns, last=True)
        admin = [task for task, name in jobs.items() if name == "admin"]
        for task in jobs.keys() - set(admin):
            task.cancel()
        ends = await asyncio.gather(
            asyncio.to_thread(self.logs.close, END_S * 0.5),
            self._hand_out(END_S * 0.5),
            asyncio.wait(admin, timeout=END_S * 0.55),  # beside them: the interpreter needs a while too
            return_exceptions=True,
        )
        for failed in ends:
            if isinstance(failed, BaseException):
                _log.error("at the end: %r", failed)
        for task in admin:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _hand_out(self, deadline_s: float) -> None:
        """First what needs the connections that the exports close."""
        await self.stages.close(deadline_s * 0.4)
        await self.exports.close(deadline_s * 0.6)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.controller.sweep()
            self.controller.look_for_dead(self.link.read_ns)
            self.stages.tick()
            self._watch()
            await self.controller.prefills.refresh()
            self._orphaned()

    def _orphaned(self) -> None:
        """A supervisor that was killed leaves us behind: end once its workers have."""
        alone = self._parent.gone() and self.controller.workers.connected == 0
        self._orphan_ticks = self._orphan_ticks + 1 if alone else 0
        if self._orphan_ticks >= _ORPHAN_TICKS:
            _log.warning("the supervisor is gone and no worker is connected: ending")
            self._end.set()

    # ------------------------------------------------------------ draining and reloading

    def drain(self) -> None:
        """The host stops taking traffic: not ready from now on, everything else goes on."""
        if not self.controller.draining:  # the supervisor says it again and again
            _log.info("not ready any more")
        self.controller.draining = True

    def reload(self) -> None:
        """Read the configuration again; a bad one changes nothing."""
        self._marks = self._look()
        try:
            read = load(self.boot)
            config = in_force(self.config, read)
            table = build_table(config, self.controller.table.version + 1)
        except Exception as error:  # whatever is wrong with a file must not end the process
            self.reload_error = str(error)
            self.controller.reload_ok = False
            _log.error("the configuration was not reloaded, the old one stays in force: %s", error)
            return
        for name in restart_needed(self.config, read):
            _log.warning("the change of %s takes a restart of Legato", name)
        self.config = config
        self.reload_error = None
        self.controller.reload_ok = True
        self.controller.prefills.freeze(config.slos)
        self.controller.ledger.rate_quantile = config.fluid_rate.quantile
        self.stages.reload(config, table)
        self._configure_logs()
        # Marks taken before the reading stay: what changed since then has not been read.
        self._marks = {path: self._marks.get(path, mark) for path, mark in self._look().items()}
        _log.info("the configuration was reloaded: table %d is in force", self.controller.table.version)

    def _watch(self) -> None:
        """Reload when a watched file changed; certificates are read again whether or not ``watch`` is on."""
        marks = self._look()
        if marks == self._marks:
            return
        changed = [path for path in marks if marks[path] != self._marks.get(path)]
        self._marks = marks
        if self.config.watch:
            _log.info("changed: %s", ", ".join(changed) or "the list of files")
            self.reload()
            return
        admin = self.config.admin
        certificates = set(changed) - {self.boot["file"], admin.token_file, admin.write_token_file}
        if certificates:
            _log.info("changed: %s; workers read their certificates again", ", ".join(sorted(certificates)))
            self.stages.renew()

    def _look(self) -> dict[str, tuple[int, int, int]]:
        """What tells that a file was replaced or written: time, size, inode."""
        marks: dict[str, tuple[int, int, int]] = {}
        for path in watched_files(self.boot, self.config):
            with contextlib.suppress(OSError):
                found = os.stat(path)
                marks[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
        return marks

    def _configure_logs(self) -> None:
        config = self.config
        self.logs.configure(Target(config.access_log), Target(config.trace_log, config.trace_log_max))

    def _publish(self, table: Table) -> None:
        """A table is in force from now on."""
        self.controller.set_table(table)
        self.link.send_table()

    # ------------------------------------------------------------ what the admin API asks

    def show_config(self) -> dict[str, Any]:
        """The configuration in force, without secrets."""
        return redacted(self.config)

    def token(self) -> str | None:
        """What readers of the admin API must send."""
        token = self.config.admin.token
        return None if token is None else token.get_secret_value()

    def write_token(self) -> str | None:
        """What those must send who change something, where it is another one."""
        token = self.config.admin.write_token
        return None if token is None else token.get_secret_value()


class AdminServer(uvicorn.Server):
    """uvicorn that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ``Process.run``'s."""
        yield


def _server(process: Process) -> AdminServer:
    app = create_app(
        process.controller,
        config=process.show_config,
        token=process.token,
        write_token=process.write_token,
        stages=process.stages,
        reload_error=lambda: process.reload_error,
    )
    return AdminServer(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,  # X-Forwarded-For must make nobody local
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
            limit_concurrency=256,
        )
    )


def _tally(fd: int | None) -> Tally | None:
    """What workers begin, as they count it; ``None``: it cannot be read, losses are estimated."""
    try:
        return None if fd is None else Tally(fd)
    except (OSError, ValueError) as error:
        _log.warning("what a killed worker takes along will be estimated: descriptor %d: %s", fd, error)
        return None


def version() -> str:
    """The installed version, ``0`` for a tree that is not installed."""
    try:
        return metadata.version("legato")
    except metadata.PackageNotFoundError:
        return "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the control process; 0 after a clean end, 1 if it could not start, 2 for a bad configuration."""
    parser = argparse.ArgumentParser(prog="legato-control")
    parser.add_argument("--boot", required=True, help="JSON: {file, flags}")
    parser.add_argument("--admin-fd", required=True, type=int, help="listening socket of the admin API")
    parser.add_argument("--link-fd", required=True, type=int, help="listening Unix socket for the workers")
    parser.add_argument("--tally-fd", type=int, help="memory in which workers count what they begin")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="legato control: %(message)s", stream=sys.stderr, force=True
    )
    ask_for_short_turns()
    boot: Boot = json.loads(given.boot)
    boot = {"file": boot.get("file"), "flags": boot.get("flags") or {}}
    try:
        config = load(boot)
        admin, link = socket.socket(fileno=given.admin_fd), socket.socket(fileno=given.link_fd)
    except (ConfigErrors, OSError) as error:
        _log.error("%s", error)
        return 2 if isinstance(error, ConfigErrors) else 1

    async def run() -> int:
        return await Process(boot, config, admin, link, _tally(given.tally_fd)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
