"""A real supervisor whose children are small scripts that write down what happens to them.

Each script writes one JSON line per event (start, signal) into a file and answers every connection with its
name and pid, so that a test sees who is there.  Modes: "crash" ends at once, "slow" ends by QUIT only, "deaf"
by no signal that can be caught.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.procs import alive, eventually, patience_s

CHILD = """
import json, os, selectors, signal, socket, sys

name, log, mode, fds, link = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5]
me = {"name": name, "pid": os.getpid()}

def write(**event):
    with open(log, "ab", buffering=0) as file:
        file.write(json.dumps({**me, **event}).encode() + b"\\n")

if "crash" in mode:
    write(event="start")
    sys.exit(3)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
    def act(number, frame):
        write(event="signal", number=number)
        ends = number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        if ends and not ("deaf" in mode or ("slow" in mode and number != signal.SIGQUIT)):
            os._exit(0)
    signal.signal(number, act)
select = selectors.DefaultSelector()
wake, woken = socket.socketpair()  # a signal just before select() must not wait for the next connection
wake.setblocking(False)
woken.setblocking(False)
signal.set_wakeup_fd(wake.fileno())
select.register(woken, selectors.EVENT_READ)
for fd in fds:
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    select.register(listener, selectors.EVENT_READ)
if link != "-":
    held = socket.socket(socket.AF_UNIX)
    held.connect(link)
blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
write(event="start", session=os.getsid(0), blocked=blocked)
while True:
    for key, _ in select.select():
        if key.fileobj is woken:
            woken.recv(100)
            continue
        try:
            with key.fileobj.accept()[0] as peer:
                peer.sendall(json.dumps(me).encode())
        except OSError:  # another took it, or the peer is gone
            pass
"""

MAIN = """
import json, sys
from proxy import supervisor

boot, child, log, modes, settings = json.loads(sys.argv[1]), *sys.argv[2:4], *map(json.loads, sys.argv[4:6])
for name, value in settings.items():
    setattr(supervisor, name, value)

def command(name, fds, link):
    mode = modes.get(name, modes.get(name.split()[0], ""))
    return [sys.executable, "-S", "-E", child, name, log, mode, json.dumps(fds), link]

sys.exit(supervisor.run(
    boot,
    control=lambda text, admin, link: command("control", [admin, link], "-"),
    worker=lambda number, fds, link: command(f"worker {number}", fds, link),
))
"""


class Family:
    """A running supervisor and what its children said."""

    def __init__(self, folder: Path, modes: dict[str, str], settings: dict[str, int], **bind: Any) -> None:
        self.log, self.err = folder / "log", folder / "err"
        self.private = Path(
            tempfile.mkdtemp(prefix="legato-test-")
        )  # pytest's own paths are too long for sockets
        self.log.touch()
        (folder / "child.py").write_text(CHILD)
        (folder / "main.py").write_text(MAIN)
        told = {"listen": ["127.0.0.1:0"], "admin": "127.0.0.1:0", "workers": 2}
        told |= {"drain_delay_s": 0, "drain_s": 60, "upstreams": "a http://a", "version": "9", **bind}
        boot = {"file": None, "flags": {}, "bind": told}
        arguments = [
            json.dumps(boot),
            str(folder / "child.py"),
            str(self.log),
            json.dumps(modes),
            json.dumps(settings),
        ]
        with open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "main.py"), *arguments],
                stderr=err,
                env={
                    **os.environ,
                    "TMPDIR": str(self.private),
                    "XDG_RUNTIME_DIR": "",
                    "PYTHONPATH": os.getcwd(),
                },
            )

    @property
    def said(self) -> str:
        return self.err.read_text()

    @property
    def ports(self) -> tuple[int, int]:
        """Of the data and the admin listener, once it has said them."""
        told = eventually(lambda: re.search(r":(\d+) -> .*; admin \S+:(\d+);", self.said), 10, "ports")
        assert told is not None
        return int(told[1]), int(told[2])

    def events(self, **wanted: Any) -> list[dict[str, Any]]:
        lines = [
            json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]
        return [line for line in lines if wanted.items() <= line.items()]

    def starts(self, name: str, count: int = 1) -> list[int]:
        """The pids of this child's starts, once there are ``count``."""
        eventually(
            lambda: len(self.events(name=name, event="start")) >= count, 10, f"{count} starts of {name}"
        )
        return [event["pid"] for event in self.events(name=name, event="start")]

    def signals(self, name: str) -> list[int]:
        return [event["number"] for event in self.events(name=name, event="signal")]

    def hears(self, name: str, number: int) -> None:
        eventually(lambda: number in self.signals(name), 5, f"signal {number} at {name}")

    def ready(self) -> Family:
        for name in ("control", "worker 0", "worker 1"):
            self.starts(name)
        return self

    def ask(self, port: int) -> dict[str, Any]:
        """Who answers there."""
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            return dict(json.loads(sock.recv(1000)))

    def status(self, within_s: float = 10) -> int:
        return self.process.wait(patience_s(within_s))

    def end(self) -> None:
        """Kill whatever is left of it."""
        self.process.kill()
        self.process.wait()
        for event in self.events(event="start"):
            if alive(event["pid"]):
                os.kill(event["pid"], signal.SIGKILL)
        shutil.rmtree(self.private)
