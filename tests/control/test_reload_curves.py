"""Learned curves and the running process: read at the start, again by a reload, and never half."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.control.test_process import Running
from tests.helpers.curves import learned
from tests.helpers.procs import eventually

MS = 1_000_000
SETTINGS = """
backends: {vllm: {url: http://127.0.0.1:1}}
slos: [{name: chat, ttft: {learned: curves.yaml, slack: 300ms, fallback: 2s}}]
access_log: off
"""


def has_said(running: Running, words: str) -> bool:
    return words in running.said()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    learned(tmp_path / "curves.yaml", ("vllm", "m", 100 * MS))
    process = Running(tmp_path, SETTINGS)
    try:
        yield process
    finally:
        process.close()


def test_curves_are_read_anew_and_a_broken_file_changes_nothing(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "curves.yaml"
    worker = running.connect()
    assert worker.tables[0].slos[0].curves[0].points[0] == (1, 100 * MS)

    learned(file, ("vllm", "m", 200 * MS))
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].slos[0].curves[0].points[0] == (1, 200 * MS))

    for broken, said in (("version: 2\n", "version 1"), (None, "cannot be read")):
        file.unlink() if broken is None else file.write_text(broken)
        running.signal(signal.SIGHUP)
        eventually(partial(has_said, running, said))
        view = running.get("/api/config")
        assert (view["reload_ok"], view["table_version"]) == (False, 2)
        assert "legato freeze" in view["reload_error"]
        assert str(file) in view["reload_error"]

    learned(file, ("vllm", "m", 300 * MS))
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 3)
    assert running.get("/api/config")["reload_ok"] is True


def test_where_all_is_watched_a_new_freeze_is_in_force_by_itself(running: Running, tmp_path: Path) -> None:
    running.file.write_text(SETTINGS + "watch: on\n")
    worker = running.connect()
    running.signal(signal.SIGHUP)
    worker.until(lambda worker: worker.tables[-1].version == 2)
    learned(tmp_path / "curves.yaml", ("vllm", "m", 200 * MS), ("vllm", "n", 5 * MS))
    worker.until(lambda worker: len(worker.tables[-1].slos[0].curves) == 2)


def test_a_missing_file_is_a_start_error_that_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "legato.yaml"
    file.write_text(SETTINGS)
    for command in (["check", str(file)], ["serve", "--config", str(file)]):
        done = subprocess.run(
            [sys.executable, "-m", "proxy.cli", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert (
            f"{file}:3: slos[0].ttft.learned: '{tmp_path}/curves.yaml' cannot be read: "
            "No such file or directory; `legato freeze` writes it, until then: live" in done.stderr
        )
