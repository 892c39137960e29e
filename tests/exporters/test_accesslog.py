"""The bounded writer on real files and pipes: it drops and counts, and its caller never waits.

The writer has a thread, so these tests wait for what they expect, with a deadline, by ``until``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from proxy.exporters.accesslog import LineWriter, encode_line
from proxy.exporters.logtarget import LogTarget
from tests.helpers.procs import patience_s


def until(condition: Callable[[], bool], what: str, deadline_s: float = 5.0) -> None:
    end = time.monotonic() + patience_s(deadline_s)
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.001)


def writer_to(
    path: str | Path,
    *,
    max_lines: int = 10_000,
    max_bytes: int = 8 << 20,
    rotate_bytes: int = 0,
    keep: int = 3,
    on_trouble: Callable[[str], None] | None = None,
    linger_s: float = 0.0,
) -> LineWriter:
    return LineWriter(
        LogTarget(str(path), rotate_bytes=rotate_bytes, keep=keep),
        max_lines=max_lines,
        max_bytes=max_bytes,
        backoff_s=(0.001, 0.01),
        linger_s=linger_s,
        on_trouble=on_trouble,
    )


def balanced(writer: LineWriter) -> bool:
    counts = writer.counts()
    return counts.offered == counts.written + counts.dropped + counts.queued


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads, unless the test does."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


# ---------------------------------------------------------------- files


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path)
    writer.start()
    lines = [f'{{"n":{i}}}'.encode() for i in range(5_000)]
    assert all(writer.offer(line) for line in lines)
    counts = writer.flush(5.0)
    assert path.read_bytes().splitlines() == lines
    assert (counts.offered, counts.written, counts.dropped, counts.queued, counts.failures) == (
        5000,
        5000,
        0,
        0,
        0,
    )


def test_the_file_is_there_before_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path)
    writer.start()
    until(path.exists, "opening at the start")
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    writer.flush(1.0)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"before\n")
    writer = writer_to(path)
    writer.start()
    writer.offer(b"after")
    writer.flush(5.0)
    assert path.read_bytes() == b"before\nafter\n"


def test_a_line_that_a_predecessor_left_broken_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b'whole\n{"bro')
    writer = writer_to(path)
    writer.start()
    writer.offer(b"after")
    writer.flush(5.0)
    assert path.read_bytes() == b'whole\n{"bro\nafter\n'


def test_a_line_larger_than_any_chunk_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path)
    writer.start()
    long = b"x" * 1_000_000
    for line in (b"a", long, b"b"):
        writer.offer(line)
    writer.flush(5.0)
    assert path.read_bytes() == b"a\n" + long + b"\nb\n"


def test_lines_offered_from_many_threads_are_all_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path, max_lines=50)
    writer.start()
    threads = [
        threading.Thread(target=lambda n=n: [writer.offer(b"%d-%d" % (n, i)) for i in range(500)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = writer.flush(5.0)
    assert counts.offered == 2_000 == counts.written + counts.dropped
    assert len(path.read_bytes().splitlines()) == counts.written


# ---------------------------------------------------------------- bounds


def test_the_queue_is_bounded_in_lines() -> None:
    writer = writer_to("never-opened", max_lines=3)
    assert [writer.offer(b"x") for _ in range(5)] == [True, True, True, False, False]
    assert writer.counts().dropped == 2
    assert balanced(writer)


def test_the_queue_is_bounded_in_bytes_newlines_included() -> None:
    writer = writer_to("never-opened", max_bytes=10)
    assert writer.offer(b"1234")
    assert not writer.offer(b"12345")
    assert writer.offer(b"1234")
    assert not writer.offer(b"")
    assert balanced(writer)


def test_room_comes_back_as_lines_are_written(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "log", max_bytes=100, max_lines=10)
    writer.start()
    for round_ in range(20):
        assert all(writer.offer(b"123456789") for _ in range(10)), round_
        until(lambda: writer.counts().queued == 0, "writing")
    assert writer.flush(5.0).written == 200


def test_a_writer_that_was_never_started_counts_what_it_lost() -> None:
    writer = writer_to("never-opened")
    writer.offer(b"x")
    counts = writer.flush(1.0)
    assert (counts.offered, counts.written, counts.dropped, counts.queued) == (1, 0, 1, 0)


def test_after_the_flush_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "log")
    writer.start()
    writer.offer(b"x")
    writer.flush(5.0)
    assert not writer.offer(b"late")
    writer.reopen()  # harmless
    counts = writer.flush(5.0)
    assert (counts.offered, counts.written, counts.dropped) == (2, 1, 1)


# ---------------------------------------------------------------- stuck, full, dead


def test_a_stuck_pipe_stops_nothing_and_every_line_is_accounted_for(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    writer = writer_to(f"/proc/self/fd/{write_end}", max_lines=100)
    writer.start()
    line = b"y" * 999
    started = time.monotonic()
    for _ in range(5_000):
        writer.offer(line)
    offering_s = time.monotonic() - started
    until(lambda: writer.counts().written > 0, "filling the pipe")
    assert balanced(writer)
    started = time.monotonic()
    counts = writer.flush(0.2)
    flushing_s = time.monotonic() - started
    assert offering_s < 3.0  # 5,000 lines; a write that waits would take for ever
    assert flushing_s < 3.0
    assert counts.queued == 0
    assert counts.offered == 5_000 == counts.written + counts.dropped
    os.close(write_end)
    with open(read_end, "rb", closefd=False) as end:
        whole = [got for got in end.read().split(b"\n") if got == line]
    assert len(whole) == counts.written


def test_a_pipe_that_is_read_again_goes_on_with_whole_lines(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    writer = writer_to(f"/proc/self/fd/{write_end}", max_lines=5_000)
    writer.start()
    lines = [b"%d %s" % (i, b"z" * (i % 7_000)) for i in range(300)]  # some beyond what a pipe takes at once
    for line in lines:
        assert writer.offer(line)
    got = bytearray()
    while len(got) < sum(map(len, lines)) + len(lines):
        got += os.read(read_end, 1 << 20)
    assert got.splitlines() == lines
    assert writer.flush(5.0).written == 300


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("line_bytes", [999, 19_999])
def test_a_stuck_standard_output_stops_nothing(line_bytes: int, kind: str, pipe: tuple[int, int]) -> None:
    """Its descriptor is shared with others and stays a blocking one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        saved = os.dup(1)
        os.dup2(pipe[1] if kind == "pipe" else ours.fileno(), 1)
        try:
            writer = writer_to("-")
            writer.start()
            for _ in range(3_000):
                writer.offer(b"s" * line_bytes)
            until(lambda: writer.counts().written > 0, "filling it")
            counts = writer.flush(0.2)
            assert os.get_blocking(1)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        assert counts.offered == 3_000 == counts.written + counts.dropped
        assert counts.dropped > 0
        assert not writer.thread_alive


def test_a_full_disk_is_counted_tried_again_and_told_once() -> None:
    told: list[str] = []
    writer = writer_to("/dev/full", max_lines=10, on_trouble=told.append)
    writer.start()
    for _ in range(50):
        writer.offer(b"x")
    until(lambda: writer.counts().failures >= 3, "trying again")
    assert balanced(writer)
    counts = writer.flush(0.05)
    assert (counts.offered, counts.written, counts.dropped, counts.queued) == (50, 0, 50, 0)
    assert len(told) == 1
    assert told[0].startswith("/dev/full: " + os.strerror(errno.ENOSPC))


def test_a_dead_reader_is_a_failure_not_an_end(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    writer = writer_to(f"/proc/self/fd/{write_end}", max_lines=10)
    writer.start()
    until(lambda: not writer.counts().queued, "opening")
    os.close(read_end)
    for _ in range(20):
        writer.offer(b"x")
    until(lambda: writer.counts().failures >= 2, "trying again")
    counts = writer.flush(0.05)
    assert (counts.offered, counts.written, counts.dropped) == (20, 0, 20)


def test_a_directory_that_appears_later_heals_the_writer(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "logs" / "access.log"
    writer = writer_to(path, on_trouble=told.append)
    writer.start()
    writer.offer(b"one")
    until(lambda: writer.counts().failures >= 2, "failing")
    path.parent.mkdir()
    until(lambda: writer.counts().written == 1, "healing")
    writer.offer(b"two")
    writer.flush(5.0)
    assert path.read_bytes() == b"one\ntwo\n"
    assert len(told) == 2
    assert "No such file or directory" in told[0]
    assert told[1] == f"{path}: writing works again"


def test_pauses_between_tries_grow_to_a_bound_and_start_over() -> None:
    pauses: list[float] = []

    class Hasty(LineWriter):
        def _wait_until_woken(self, timeout_s: float) -> None:
            pauses.append(timeout_s)

    writer = Hasty(LogTarget("/dev/full"), backoff_s=(0.02, 0.1), linger_s=0.0)
    writer.start()
    writer.offer(b"x")
    until(lambda: len(pauses) >= 5, "five tries")
    writer.flush(0.0)
    assert pauses[:5] == [0.02, 0.04, 0.08, 0.1, 0.1]


def test_a_thread_that_hangs_in_a_system_call_does_not_hold_up_the_end_nor_the_sums(tmp_path: Path) -> None:
    hanging, release = threading.Event(), threading.Event()

    class Hanging(LineWriter):
        def _advance(self, written: int) -> None:
            hanging.set()
            release.wait(5.0)
            super()._advance(written)

    writer = Hanging(LogTarget(str(tmp_path / "log")), linger_s=0.0)
    writer.start()
    writer.offer(b"x")
    assert hanging.wait(5.0)
    counts = writer.flush(0.01)
    assert (counts.offered, counts.written, counts.dropped) == (1, 0, 1)
    assert writer.thread_alive
    release.set()
    until(lambda: not writer.thread_alive, "the thread's end")
    assert writer.counts() == counts


def test_a_line_cut_short_starts_over_in_the_new_file(pipe: tuple[int, int], tmp_path: Path) -> None:
    link = tmp_path / "log"
    link.symlink_to(f"/proc/self/fd/{pipe[1]}")
    writer = writer_to(link)
    writer.start()
    long = b"q" * 500_000  # more than a pipe holds: it stays half written
    writer.offer(long)
    until(lambda: waiting(pipe[0]) > 0, "the first part")
    link.unlink()
    writer.reopen()
    until(lambda: writer.counts().written == 1, "the whole line in the new file")
    writer.flush(5.0)
    assert link.read_bytes() == long + b"\n"


def waiting(fd: int) -> int:
    """Bytes that wait in a pipe, which keeps them."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4), sys.byteorder)


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused_at_once(path: str) -> None:
    with pytest.raises(ValueError, match="give a file's path"):
        LogTarget(path)


def test_a_burst_is_one_write(tmp_path: Path) -> None:
    writes: list[int] = []

    class Counting(LineWriter):
        def _advance(self, written: int) -> None:
            writes.append(written)
            super()._advance(written)

    path = tmp_path / "log"
    writer = Counting(LogTarget(str(path)), linger_s=60.0)
    writer.start()
    until(path.exists, "opening")
    writer.offer(b"123456789")
    threading.Event().wait(0.02)  # long enough to write it, were it not gathering
    for _ in range(99):
        writer.offer(b"123456789")
    assert writer.flush(5.0).written == 100  # a flush does not linger
    assert writes == [1_000]


def test_an_idle_writer_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = writer_to(path, linger_s=60.0)
    writer.start()
    until(path.exists, "opening")
    writer.flush(5.0)
    assert not writer.thread_alive


class Line(msgspec.Struct):
    text: str


def test_a_line_holds_no_newline_whatever_is_in_it() -> None:
    assert encode_line(Line('a\nb"')) == b'{"text":"a\\nb\\""}'
