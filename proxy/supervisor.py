"""Starts the processes, passes signals on, restarts what dies, drains.  Imports next to nothing.

It binds every listening socket and hands it down, so that a process that dies leaves connections waiting
instead of refused.  Signals: HUP reloads (the control process does it).  TERM drains: not ready, still
accepting for ``drain_delay``, then streams finish; INT the same without the delay; a second one of them, or
QUIT, ends at once.  The control process outlives the workers.

Exit status: 0 after a drain; 1 if something could not start or had to be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys

from proxy.clock import monotonic_ns
from proxy.listeners import CannotListen, listen, listen_unix, shown
from proxy.parent import die_with_parent, step_back
from proxy.tally import make_tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from typing import Any

    ControlCommand = Callable[[str, int, int], list[str]]
    WorkerCommand = Callable[[int, list[int], str], list[str]]

_S = 1_000_000_000
_SIGNALS = {
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGCHLD,
}
_BACKOFF_NS, _BACKOFF_MAX_NS, _STEADY_NS = _S // 10, 2 * _S, 10 * _S
_GIVE_UP = 5  # deaths within _STEADY_NS of a kind of process that never ran steadily
_KILL_NS, _MARGIN_NS, _REMIND_NS = 5 * _S, 10 * _S, _S
_FILES_LOW, _FILES_MAX = (
    20_000,
    1 << 20,
)  # two descriptors per stream; more than a million slows some libraries


def control_command(boot: str, admin_fd: int, link_fd: int) -> list[str]:
    """How the control process is started; both descriptors are listening sockets it inherits."""
    module = ["-P", "-m", "proxy.control.controller"]  # -P: not what lies in the working directory
    return [sys.executable, *module, "--boot", boot, "--admin-fd", str(admin_fd), "--link-fd", str(link_fd)]


def worker_command(number: int, listen_fds: list[int], link: str) -> list[str]:
    """How a worker is started; ``--listen-fd`` is repeated for each listening socket."""
    fds = [text for fd in listen_fds for text in ("--listen-fd", str(fd))]
    return [sys.executable, "-P", "-m", "proxy.relay.worker", "--id", str(number), *fds, "--link", link]


def say(message: str) -> None:
    """One line for humans; a closed standard error stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(f"legato: {message}", file=sys.stderr, flush=True)


class Child:
    """One process that should run: its command, and what became of it so far."""

    def __init__(
        self, name: str, command: list[str], fds: list[int], death_signal: int, *, behind: bool = False
    ) -> None:
        self.name = name
        self.command = command
        self.fds = fds
        self.behind = behind  # it has the processor when the others leave it
        self.death_signal = death_signal  # sent by the kernel when the supervisor dies; 0: none
        self.pid = 0  # 0: not running
        self.started_ns = 0
        self.start_at_ns: int | None = 0  # when to start it next; None: not meant to run
        self.backoff_ns = _BACKOFF_NS
        self.deaths: list[int] = []
        self.steady = False  # it once ran for _STEADY_NS

    def start(self, now_ns: int) -> None:
        """Fork and exec; the child has its own session, no signal blocked, and only its own sockets."""
        self.started_ns = now_ns
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid:
            self.start_at_ns = None
            return
        try:
            os.setsid()
            if self.death_signal:
                die_with_parent(self.death_signal)
                if os.getppid() != supervisor:
                    os._exit(1)
            if self.behind:
                step_back()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)  # until it has its own handlers
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for fd in self.fds:
                os.set_inheritable(fd, True)
            os.execv(self.command[0], self.command)
        except BaseException as error:
            say(f"{self.name} cannot start: {error}")
        finally:
            os._exit(127)

    def died(self, now_ns: int) -> None:
        """Remember the death and when to start again."""
        self.pid = 0
        if now_ns - self.started_ns >= _STEADY_NS:
            self.steady = True
            self.backoff_ns = _BACKOFF_NS
            self.deaths.clear()
        self.deaths = [*self.deaths[1 - _GIVE_UP :], now_ns]
        self.start_at_ns = now_ns + self.backoff_ns
        self.backoff_ns = min(2 * self.backoff_ns, _BACKOFF_MAX_NS)

    def hopeless(self) -> bool:
        """It never ran steadily and died five times within ten seconds."""
        return (
            not self.steady and len(self.deaths) >= _GIVE_UP and self.deaths[-1] - self.deaths[0] < _STEADY_NS
        )

    def send(self, number: int) -> None:
        """A signal, if it runs."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Supervisor:
    """``run()`` until everything has ended; returns the exit status."""

    def __init__(
        self,
        control: Child,
        workers: list[Child],
        data: list[socket.socket],
        drain_delay_ns: int,
        drain_ns: int,
    ) -> None:
        self._control = control
        self._workers = workers
        self._data = data
        self._drain_delay_ns = drain_delay_ns
        self._drain_ns = drain_ns
        self._phase = "run"  # run -> drain -> cut -> last
        self._deadline_ns: int | None = None
        self._remind_ns = 0
        self._status = 0

    def run(self) -> int:
        """Start everything; wait for signals, deaths and deadlines."""
        while not (self._phase == "last" and not self._control.pid):
            now_ns = monotonic_ns()
            self._start_due(now_ns)
            found = signal.sigtimedwait(_SIGNALS, self._wait_s(now_ns))
            now_ns = monotonic_ns()
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._signal(found.si_signo, now_ns)
            self._reap(now_ns)
            self._step(now_ns)
        return self._status

    def _children(self) -> list[Child]:
        return [self._control, *self._workers]

    def _start_due(self, now_ns: int) -> None:
        for child in self._children():
            if not child.pid and child.start_at_ns is not None and child.start_at_ns <= now_ns:
                try:
                    child.start(now_ns)
                except OSError as error:
                    say(f"{child.name} cannot start: {error.strerror}")
                    child.died(now_ns)

    def _wait_s(self, now_ns: int) -> float:
        times = [child.start_at_ns for child in self._children() if child.start_at_ns is not None]
        times += [time for time in (self._deadline_ns,) if time is not None]
        if self._phase == "drain":
            times.append(self._remind_ns)
        return max(0, min(times, default=now_ns + 3600 * _S) - now_ns) / _S

    def _signal(self, number: int, now_ns: int) -> None:
        if number == signal.SIGHUP:
            self._control.send(signal.SIGHUP)
        elif number == signal.SIGQUIT or self._phase != "run":
            self._cut(now_ns)
        else:
            self._drain(number, now_ns)

    def _drain(self, number: int, now_ns: int) -> None:
        delay_ns = self._drain_delay_ns if number == signal.SIGTERM else 0
        delay = f"accepting for another {delay_ns / _S:g} s, " if delay_ns else ""
        say(
            f"draining: {delay}streams have {self._drain_ns / _S:g} s to finish; a second signal ends at once"
        )
        self._phase = "drain"
        self._deadline_ns = now_ns + delay_ns + self._drain_ns + _MARGIN_NS
        for worker in self._workers:
            worker.start_at_ns = None
            worker.send(number)
        self._stop_listening()

    def _stop_listening(self) -> None:
        """Give our copies of the data sockets up: when the workers have closed theirs, connections are
        refused instead of left waiting for nobody."""
        for sock in self._data:
            sock.close()

    def _cut(self, now_ns: int) -> None:
        """End at once: streams are cut, and still reported."""
        if self._phase in ("run", "drain"):
            say("ending at once: streams are cut")
            self._phase = "cut"
            self._deadline_ns = now_ns + _KILL_NS
            for worker in self._workers:
                worker.start_at_ns = None
                worker.send(signal.SIGQUIT)
            self._stop_listening()

    def _reap(self, now_ns: int) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in self._children():
                if child.pid == pid:
                    self._buried(child, os.waitstatus_to_exitcode(status), now_ns)

    def _buried(self, child: Child, code: int, now_ns: int) -> None:
        pid = child.pid
        child.died(now_ns)
        meant = self._phase == "last" if child is self._control else self._phase != "run"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if meant:
            child.start_at_ns = None
            if code not in (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGQUIT):
                say(f"{child.name} (pid {pid}) ended with {how}")
            return
        if self._phase == "run" and self._hopeless():
            say(f"{child.name} (pid {pid}) ended with {how}")
            say("giving up: it died five times within ten seconds of starting; its own message stands above")
            self._status = 1
            self._cut(now_ns)
            return
        wait = f"{((child.start_at_ns or now_ns) - now_ns) / _S:g}"
        say(f"{child.name} (pid {pid}) ended with {how}; starting it again in {wait} s")

    def _hopeless(self) -> bool:
        return self._control.hopeless() or all(worker.hopeless() for worker in self._workers)

    def _step(self, now_ns: int) -> None:
        """Carry a drain on: remind, lose patience, end with the control process."""
        if self._phase == "drain" and now_ns >= self._remind_ns:
            # Again and again, since a control process that was restarted meanwhile has not heard it.
            self._control.send(signal.SIGUSR1)
            self._remind_ns = now_ns + _REMIND_NS
        if self._phase in ("drain", "cut") and not any(worker.pid for worker in self._workers):
            self._phase = "last"
            self._control.start_at_ns = None
            self._control.send(signal.SIGTERM)
            self._deadline_ns = now_ns + _KILL_NS
        if self._deadline_ns is None or now_ns < self._deadline_ns:
            return
        if self._phase == "drain":
            self._cut(now_ns)
            return
        for child in self._children():
            if child.pid:
                say(f"{child.name} (pid {child.pid}) does not end: killed")
                self._status = 1
                child.send(signal.SIGKILL)
        self._deadline_ns = now_ns + _KILL_NS


def raise_files_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return int(soft) if soft != resource.RLIM_INFINITY else _FILES_MAX
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def make_private_folder() -> str:
    """A new folder that only this user can enter, with a short path (a socket goes into it)."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", "/dev/shm", "."):
        if base and len(base) <= 60:
            path = os.path.join(os.path.abspath(base), f"legato-{os.urandom(6).hex()}")
            with contextlib.suppress(OSError):
                os.mkdir(path, 0o700)
                return path
    raise CannotListen("no folder for a socket: /tmp cannot be written; set TMPDIR to one that can")


def _bind(bind: dict[str, Any]) -> tuple[list[socket.socket], socket.socket]:
    """Every data listener and the admin one; all that fails is said before giving up."""
    made: list[socket.socket] = []
    failures: list[str] = []
    wanted = [(address, "--listen") for address in bind["listen"]]
    for address, setting in [*wanted, (bind["admin"], "--admin")]:
        try:
            made.append(listen(address, setting))
        except CannotListen as error:
            failures.append(str(error))
    if failures:
        raise CannotListen("\nlegato: ".join(failures))
    return made[:-1], made[-1]


def _greet(bind: dict[str, Any], data: Iterable[socket.socket], admin: socket.socket) -> None:
    files = raise_files_limit()
    scheme = "https" if bind.get("tls") else "http"
    where = ", ".join(shown(sock, scheme) for sock in data)
    workers = f"{bind['workers']} worker{'s' if bind['workers'] != 1 else ''}"
    say(
        f"{bind.get('version', '')} serves {where} -> {bind.get('upstreams', '')}; "
        f"admin {shown(admin, 'http')}; {workers}, {files} open files"
    )
    if files < _FILES_LOW:
        say(
            f"at most {files} open files: room for about {files // 2} streams; raise the hard limit "
            "(ulimit -Hn, LimitNOFILE=, --ulimit nofile=)"
        )


def run(
    boot: dict[str, Any],
    control: ControlCommand = control_command,
    worker: WorkerCommand = worker_command,
) -> int:
    """Bind, start, and supervise until the end; returns the exit status.

    ``boot``: ``{"file", "flags", "bind": {"listen": [address...], "admin", "workers", "drain_delay_s",
    "drain_s", "upstreams", "version", "tls"}}``; the last three are only shown.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    bind = boot["bind"]
    sockets: list[socket.socket] = []
    paths: list[str] = []
    folder = None
    tally = make_tally(bind["workers"])
    kept, told = ([], []) if tally is None else ([tally], ["--tally-fd", str(tally)])
    try:
        data, admin = _bind(bind)
        sockets += [*data, admin]
        paths += [path for sock in sockets if isinstance(path := sock.getsockname(), str)]
        folder = make_private_folder()
        link = listen_unix(os.path.join(folder, "link"))
        sockets.append(link)
        paths.append(link.getsockname())
        _greet(bind, data, admin)
        text = json.dumps(boot)
        fds = [sock.fileno() for sock in data]
        path = os.path.join(folder, "link")
        of_control = [admin.fileno(), link.fileno()]
        controller = Child("control", [*control(text, *of_control), *told], of_control + kept, 0, behind=True)
        workers = [
            Child(f"worker {number}", [*worker(number, fds, path), *told], fds + kept, signal.SIGTERM)
            for number in range(bind["workers"])
        ]
        drains = (int(bind["drain_delay_s"] * _S), int(bind["drain_s"] * _S))
        return Supervisor(controller, workers, data, *drains).run()
    except CannotListen as error:
        say(str(error))
        return 1
    finally:
        _clean(sockets, paths, folder)
        for fd in kept:
            os.close(fd)


def _clean(sockets: list[socket.socket], paths: list[str], folder: str | None) -> None:
    for sock in sockets:
        sock.close()
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
    if folder is not None:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def main() -> int:
    """``python -m proxy.supervisor --boot JSON``; ``legato serve`` is what people start."""
    if len(sys.argv) != 3 or sys.argv[1] != "--boot":
        say("start this with: legato serve")
        return 2
    return run(json.loads(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
