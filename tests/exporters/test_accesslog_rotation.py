"""Log files are rotated by size, and opened anew when somebody else moved them."""

from __future__ import annotations

from pathlib import Path

from proxy.exporters.accesslog import LineWriter
from proxy.exporters.logtarget import LogTarget
from tests.exporters.test_accesslog import until, writer_to


def test_rotation_by_size_keeps_lines_whole_and_three_files(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = writer_to(path, rotate_bytes=1_000)
    writer.start()
    lines = [b"%04d" % i + b"." * 45 for i in range(100)]  # 50 bytes each, 20 to a file
    for line in lines:
        writer.offer(line)
    assert writer.flush(5.0).written == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "trace.jsonl",
        "trace.jsonl.1",
        "trace.jsonl.2",
        "trace.jsonl.3",
    ]
    files = [path, *(tmp_path / f"trace.jsonl.{i}" for i in (1, 2, 3))]
    assert [p.stat().st_size for p in files] == [1_000] * 4
    kept = b"".join(p.read_bytes() for p in reversed(files)).splitlines()
    assert kept == lines[20:]  # the oldest file is gone, nothing else is


def test_a_line_longer_than_the_limit_has_a_file_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = writer_to(path, rotate_bytes=100)
    writer.start()
    for line in (b"a", b"L" * 500, b"b"):
        writer.offer(line)
    writer.flush(5.0)
    assert path.read_bytes() == b"b\n"
    assert (tmp_path / "trace.jsonl.1").read_bytes() == b"L" * 500 + b"\n"
    assert (tmp_path / "trace.jsonl.2").read_bytes() == b"a\n"


def test_an_empty_file_is_not_rotated(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = writer_to(path, rotate_bytes=100)
    writer.start()
    writer.offer(b"L" * 500)
    writer.flush(5.0)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.jsonl"]


def test_rotation_counts_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"o" * 89 + b"\n")
    writer = writer_to(path, rotate_bytes=100, keep=1)
    writer.start()
    writer.offer(b"0123456789")
    writer.flush(5.0)
    assert path.read_bytes() == b"0123456789\n"
    assert (tmp_path / "trace.jsonl.1").stat().st_size == 90
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_was_renamed_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path)
    writer.start()
    writer.offer(b"old")
    until(lambda: writer.counts().written == 1, "writing")
    path.rename(tmp_path / "access.log.1")
    writer.offer(b"new")
    writer.flush(5.0)
    assert (tmp_path / "access.log.1").read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"


def test_reopen_makes_the_new_file_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = writer_to(path)
    writer.start()
    until(path.exists, "opening")
    path.rename(tmp_path / "access.log.1")
    writer.reopen()
    until(path.exists, "opening anew")
    writer.flush(5.0)


def test_reopen_reaches_a_writer_that_pauses_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    writer = LineWriter(LogTarget(str(path)), backoff_s=(60.0, 60.0), linger_s=0.0)
    writer.start()
    writer.offer(b"x")
    until(lambda: writer.counts().failures >= 1, "failing")
    path.parent.mkdir()
    writer.reopen()
    until(lambda: writer.counts().written == 1, "writing at once")
    writer.flush(5.0)
