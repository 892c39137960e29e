"""The memory in which workers count what they begin: rings, claims, and what a death leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from proxy.tally import ENTRIES, Tally, claim, make_tally
from tests.helpers.procs import alive, eventually


@pytest.fixture
def fd() -> Iterator[int]:
    made = make_tally(workers=3)
    assert made is not None
    yield made
    os.close(made)


def name(number: int) -> str:
    return f"{number:016x}"


def everybody_lives(pid: int) -> bool:
    return True


def begun(fd: int) -> dict[str, int]:
    return {entry.incarnation: entry.begun for entry in Tally(fd, everybody_lives).entries()}


def test_each_worker_counts_in_an_entry_of_its_own(fd: int) -> None:
    workers = [claim(fd, number, name(0xF000000000000000 + number), 70 + number) for number in range(3)]
    for number, worker in enumerate(workers):
        for _ in range(1_000 * number):
            worker.count()
        assert worker.counted == 1_000 * number
    tally = Tally(fd, everybody_lives)
    found = [(entry.worker, entry.incarnation, entry.pid, entry.begun) for entry in tally.entries()]
    assert found == [(n, f"f00000000000000{n}", 70 + n, 1_000 * n) for n in range(3)]
    assert tally.find(1, "f000000000000001") is not None
    assert tally.find(2, "f000000000000001") is None
    assert tally.find(9, "f000000000000001") is None


def test_dead_is_who_has_a_successor_or_no_process(fd: int) -> None:
    for number in (1, 2):
        claim(fd, 0, name(number), pid=number)
    claim(fd, 1, name(3), pid=3)
    dead = {entry.incarnation: entry.dead for entry in Tally(fd, lambda pid: pid != 3).entries()}
    assert dead == {name(1): True, name(2): False, name(3): True}


def test_what_was_counted_is_told_no_more_and_its_place_is_taken_first(fd: int) -> None:
    tally = Tally(fd, everybody_lives)
    for number in range(1, ENTRIES + 1):
        claim(fd, 0, name(number), number).count()
    counted = tally.find(0, name(5))
    assert counted is not None
    tally.counted(counted)
    assert name(5) not in begun(fd)
    claim(fd, 0, name(99), 99)
    assert tally.find(0, name(99)) == counted
    assert begun(fd) == {name(n): 1 for n in range(1, ENTRIES + 1) if n != 5} | {name(99): 0}
    claim(fd, 0, name(100), 100)  # nobody looked for so long: the oldest is given up
    assert tally.find(0, name(1)) is None
    assert [entry.incarnation for entry in tally.entries() if not entry.dead] == [name(100)]


def test_what_is_settled_only_grows_and_is_nobody_elses(fd: int) -> None:
    tally = Tally(fd, everybody_lives)
    claim(fd, 0, name(1), 1)
    at = tally.find(0, name(1))
    assert at is not None
    for number in (7, 3):
        tally.settled(at, name(1), number)
    tally.settled(at, name(2), 50)
    assert [entry.settled for entry in tally.entries()] == [7]


@pytest.mark.parametrize("what", ["none", "closed", "empty", "too small"])
def test_without_memory_a_worker_counts_for_nobody(what: str) -> None:
    fd: int | None = None
    if what != "none":
        fd = os.memfd_create("test") if what != "too small" else make_tally(1)
        assert fd is not None
    if what == "closed":
        os.close(fd or 0)
    worker = claim(fd, 1, name(1), 1)
    worker.count()
    assert worker.counted == 1
    if fd is not None and what != "closed":
        if what == "too small":
            assert begun(fd) == {}
        else:
            with pytest.raises(ValueError, match="empty"):
                Tally(fd)
        os.close(fd)


def test_where_the_kernel_gives_no_memory_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert make_tally(1) is None


def test_a_count_survives_kill_9(fd: int) -> None:
    code = """
import os, sys
from proxy.tally import claim
worker = claim(int(sys.argv[1]), 2, "00000000000000aa", os.getpid())
for _ in range(12_345):
    worker.count()
print("counted", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(fd)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"counted\n"
        (entry,) = Tally(fd).entries()
        assert (entry.pid, entry.dead) == (process.pid, False)
        process.send_signal(signal.SIGKILL)
    eventually(lambda: not alive(process.pid), 5, "a death")
    (entry,) = Tally(fd).entries()
    assert (entry.worker, entry.incarnation, entry.begun, entry.dead) == (2, name(0xAA), 12_345, True)
