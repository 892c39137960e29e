"""The supervisor, with real processes: small scripts stand in for the control process and the workers."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.supervisor import Child, make_private_folder
from tests.helpers.family import Family
from tests.helpers.procs import alive, eventually

S = 1_000_000_000
T, I, Q, H, U = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)  # noqa: E741


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Family]]:
    """Start a supervisor; whatever is left of it is killed afterwards."""
    familys: list[Family] = []

    def go(
        modes: dict[str, str] | None = None, settings: dict[str, int] | None = None, **bind: Any
    ) -> Family:
        familys.append(Family(tmp_path, modes or {}, settings or {}, **bind))
        return familys[-1]

    yield go
    for family in familys:
        family.end()


# ---------------------------------------------------------------- starting


def test_the_control_process_stands_behind_the_workers_at_the_processor(
    start: Callable[..., Family],
) -> None:
    family = start().ready()
    of = {str(event["name"]): int(event["pid"]) for event in family.events(event="start")}
    control = of.pop("control")
    assert os.sched_getscheduler(control) == os.SCHED_BATCH
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, control) > mine
    for worker in of.values():
        assert os.sched_getscheduler(worker) == os.sched_getscheduler(0)
        assert os.getpriority(os.PRIO_PROCESS, worker) == mine


def test_it_binds_starts_everyone_and_says_what_listens_where(
    start: Callable[..., Family], tmp_path: Path
) -> None:
    family = start().ready()
    data, admin = family.ports

    assert family.ask(data)["name"].startswith("worker")
    assert family.ask(admin)["name"] == "control"
    assert (
        f"9 serves http://127.0.0.1:{data} -> a http://a; admin http://127.0.0.1:{admin}; 2 workers"
        in family.said
    )
    assert "open files" in family.said
    for event in family.events(event="start"):
        assert event["session"] == event["pid"], "its own session: Ctrl-C reaches only the supervisor"
        assert event["blocked"] == []
    (folder,) = family.private.glob("legato-*")
    assert folder.stat().st_mode & 0o777 == 0o700, "the link is private"

    family.process.send_signal(T)
    assert family.status() == 0
    assert list(family.private.iterdir()) == []


def test_unix_sockets_and_ipv6(start: Callable[..., Family], tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # left there by a process that is gone
    family = start(listen=[f"unix:{path}", "[::1]:0"]).ready()
    port = family.ports[0]

    for kind, where in ((socket.AF_UNIX, str(path)), (socket.AF_INET6, ("::1", port))):
        with socket.socket(kind) as sock:
            sock.settimeout(5)
            sock.connect(where)
            assert b"worker" in sock.recv(1000)
    assert f"serves unix:{path}, http://[::1]:{port}" in family.said
    family.process.send_signal(T)
    assert family.status() == 0
    assert not path.exists()


def test_every_interface_is_ipv4_too(start: Callable[..., Family]) -> None:
    family = start(listen=[":0"]).ready()
    assert family.ask(family.ports[0])["name"].startswith("worker")


def test_ports_in_use_are_all_named_with_the_mend(start: Callable[..., Family], tmp_path: Path) -> None:
    path = tmp_path / "taken.sock"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as two:
        two.bind(str(path))
        two.listen()
        port = one.getsockname()[1]
        family = start(listen=[f"127.0.0.1:{port}", f"unix:{path}"])
        assert family.status() == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in family.said
    assert f"ss -ltnp 'sport = :{port}', or change --listen" in family.said
    assert f"cannot listen on unix:{path}: another process listens there" in family.said
    assert path.exists(), "another's socket is left alone"
    assert family.events() == []


@pytest.mark.parametrize(
    ("address", "mend"),
    [("192.0.2.1:80", "no such address; use 0.0.0.0:80"), ("no.such.host.invalid:80", "change --listen")],
)
def test_addresses_that_cannot_be(start: Callable[..., Family], address: str, mend: str) -> None:
    family = start(listen=[address])
    assert family.status(30) == 1
    assert f"cannot listen on {address}" in family.said
    assert mend in family.said


@pytest.mark.parametrize("kind", ["worker", "control"])
def test_what_never_starts_is_given_up(start: Callable[..., Family], kind: str) -> None:
    family = start({kind: "crash"}, {"_BACKOFF_MAX_NS": S // 100})
    assert family.status() == 1
    assert "ended with exit status 3; starting it again in" in family.said
    assert "giving up" in family.said
    assert not any(alive(event["pid"]) for event in family.events(event="start"))


def test_one_worker_that_crashes_does_not_end_the_others(start: Callable[..., Family]) -> None:
    family = start({"worker 1": "crash"}, {"_BACKOFF_MAX_NS": S // 100}).ready()
    family.starts("worker 1", 8)
    assert family.process.poll() is None
    assert len(family.starts("worker 0")) == 1


# ---------------------------------------------------------------- deaths


def test_a_worker_that_is_killed_comes_back_and_the_others_do_not_notice(
    start: Callable[..., Family],
) -> None:
    family = start().ready()
    first, other, control = (family.starts(name)[0] for name in ("worker 0", "worker 1", "control"))
    os.kill(first, signal.SIGKILL)

    assert family.starts("worker 0", 2)[0] == first
    assert (family.starts("worker 1"), family.starts("control")) == ([other], [control])
    assert "worker 0" in family.said
    assert "signal SIGKILL; starting it again in 0.1 s" in family.said


def test_connections_wait_while_the_control_process_is_away(start: Callable[..., Family]) -> None:
    family = start().ready()
    old = family.starts("control")[0]
    os.kill(old, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", family.ports[1]), 5) as sock:
        os.kill(old, signal.SIGKILL)
        answer = json.loads(sock.recv(1000))
    assert answer["pid"] != old, "nobody was refused: the next one answers"
    assert [len(family.starts(name)) for name in ("worker 0", "worker 1")] == [1, 1]


def test_when_the_supervisor_is_killed_workers_drain(start: Callable[..., Family]) -> None:
    family = start().ready()
    family.process.kill()
    for name in ("worker 0", "worker 1"):
        family.hears(name, T)
    assert family.signals("control") == []


def test_backoff_doubles_to_two_seconds_and_starts_over_after_ten() -> None:
    child = Child("worker 0", [], [], 0)
    now, waits = 0, []
    for up_s in (0, 0, 0, 0, 0, 0, 0, 10, 0):
        child.started_ns = now
        now += up_s * S
        child.died(now)
        assert child.start_at_ns is not None
        waits.append((child.start_at_ns - now) / S)
        now = child.start_at_ns
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 0.1, 0.2]


@pytest.mark.parametrize(
    ("up_s", "deaths", "hopeless"), [(1, 4, False), (1, 5, True), (2.4, 5, False), (11, 5, False)]
)
def test_hopeless_is_five_deaths_in_ten_seconds_without_ever_running_well(
    up_s: float, deaths: int, hopeless: bool
) -> None:
    child = Child("worker 0", [], [], 0)
    now = 0
    for _ in range(deaths):
        child.started_ns = now
        now += int(up_s * S)
        child.died(now)
        now += S // 10
    assert child.hopeless() is hopeless


# ---------------------------------------------------------------- signals


def test_hup_reloads_through_the_control_process_only(start: Callable[..., Family]) -> None:
    family = start().ready()
    family.process.send_signal(H)
    family.hears("control", H)
    assert family.signals("worker 0") == []


def test_hup_does_not_kill_a_control_process_that_has_no_handler_yet(start: Callable[..., Family]) -> None:
    family = start()
    while not family.events(name="control", event="start"):
        family.process.send_signal(H) if "serves" in family.said else None
    assert len(family.starts("control")) == 1
    assert "ended" not in family.said


@pytest.mark.parametrize("number", [T, I])
def test_drain_control_is_told_first_and_ends_last(start: Callable[..., Family], number: int) -> None:
    family = start({"worker 1": "slow"}).ready()
    family.process.send_signal(number)
    family.hears("worker 0", number)
    family.hears("worker 1", number)
    family.hears("control", U)
    assert T not in family.signals("control"), "a stream is still open"
    os.kill(family.starts("worker 1")[0], Q)  # the last stream ends

    assert family.status() == 0
    assert T in family.signals("control")
    assert [len(family.starts(name)) for name in ("control", "worker 0", "worker 1")] == [1, 1, 1]
    assert "draining: streams have 60 s to finish" in family.said


def test_the_drain_delay_is_said_for_term_only(start: Callable[..., Family]) -> None:
    family = start(drain_delay_s=15).ready()
    family.process.send_signal(T)
    assert family.status() == 0
    assert "accepting for another 15 s" in family.said


def test_a_control_process_that_dies_in_a_drain_comes_back_and_hears_of_it(
    start: Callable[..., Family],
) -> None:
    family = start({"worker": "slow"}, {"_REMIND_NS": S // 20}).ready()
    family.process.send_signal(T)
    family.hears("control", U)
    old = family.starts("control")[0]
    os.kill(old, signal.SIGKILL)
    new = family.starts("control", 2)[1]
    eventually(lambda: family.events(pid=new, number=U), 5, "USR1 at the new one")


def test_a_second_signal_ends_at_once(start: Callable[..., Family]) -> None:
    family = start({"worker": "slow"}).ready()
    family.process.send_signal(I)
    family.hears("worker 0", I)
    family.process.send_signal(I)
    assert family.status() == 0
    for name in ("worker 0", "worker 1"):
        assert family.signals(name) == [I, Q]
    assert T in family.signals("control")


def test_quit_ends_at_once(start: Callable[..., Family]) -> None:
    family = start({"worker": "slow"}).ready()
    family.process.send_signal(Q)
    assert family.status() == 0
    assert family.signals("worker 0") == [Q]


def test_what_does_not_end_is_killed(start: Callable[..., Family]) -> None:
    family = start({"worker": "deaf", "control": "deaf"}, {"_KILL_NS": S // 5}).ready()
    family.process.send_signal(T)
    family.hears("worker 0", T)
    family.process.send_signal(T)
    assert family.status() == 1
    for name in ("worker 0", "worker 1", "control"):
        assert f"{name} (pid {family.starts(name)[0]}) does not end: killed" in family.said
    assert not any(alive(event["pid"]) for event in family.events(event="start"))


def test_a_drain_does_not_last_for_ever(start: Callable[..., Family]) -> None:
    family = start({"worker": "slow"}, {"_MARGIN_NS": 0}, drain_s=0.2).ready()
    family.process.send_signal(T)
    assert family.status() == 0
    assert family.signals("worker 0") == [T, Q]


def test_a_worker_that_died_before_the_drain_does_not_come_back(start: Callable[..., Family]) -> None:
    family = start({"worker 0": "slow"}, {"_BACKOFF_NS": S // 4, "_REMIND_NS": S // 10}).ready()
    os.kill(family.starts("worker 1")[0], signal.SIGKILL)
    eventually(lambda: "starting it again in 0.25 s" in family.said, 5, "the message")
    family.process.send_signal(T)
    eventually(lambda: family.signals("control").count(U) > 5, 5, "half a second of reminders")
    os.kill(family.starts("worker 0")[0], Q)
    assert family.status() == 0
    assert len(family.starts("worker 1")) == 1


# ---------------------------------------------------------------- weight and limits


def run_python(text: str, **more: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        **more,
    )
    return done.stdout


def test_it_imports_next_to_nothing() -> None:
    said = run_python(
        """
        import sys, proxy.supervisor
        heavy = "asyncio typing dataclasses subprocess tempfile logging argparse threading pydantic msgspec"
        print([name for name in heavy.split() if name in sys.modules])
        print([line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")][0])
        """
    )
    modules, anonymous_kb = said.splitlines()
    assert modules == "[]"
    assert int(anonymous_kb) < 7_000


def test_the_limit_on_open_files_is_raised_and_a_low_one_said() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000))

    said = run_python(
        """
        import socket
        from proxy import supervisor
        supervisor.say = print
        with socket.create_server(("127.0.0.1", 0)) as sock:
            supervisor._greet({"workers": 1}, [sock], sock)
        """,
        preexec_fn=lower,
    )
    assert "1 worker, 1000 open files" in said
    assert "at most 1000 open files: room for about 500 streams; raise the hard limit" in said


def test_the_private_folder_has_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere/at/all")
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 100)))
    folder = make_private_folder()
    try:
        assert folder.startswith("/tmp/legato-")
        assert os.stat(folder).st_mode & 0o777 == 0o700
    finally:
        os.rmdir(folder)
