"""Short turns: asked for by both kinds of process, without losing their class or nice value."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from proxy import turns
from proxy.turns import SLICE_NS

ASK = """
import os
from proxy.parent import step_back
from proxy.turns import ask_for_short_turns
for _ in (1, 2):
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    print(ask_for_short_turns(), before == (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)))
    step_back()
"""


def test_it_is_asked_for_in_any_class_and_changes_nothing_else() -> None:
    told = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True).stdout
    assert told.split() == ["True", "True"] * 2


def test_the_kernel_takes_it() -> None:
    script = (
        "from proxy.turns import ask_for_short_turns as ask; ask(); print(open('/proc/self/sched').read())"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    slices = [line.split()[-1] for line in told.splitlines() if line.startswith("se.slice")]
    release = tuple(int(part) for part in platform.release().split(".")[:2])
    # Before 6.12 nobody has a slice of one's own; not every kernel tells of them.
    assert slices == ([str(SLICE_NS)] if slices and release >= (6, 12) else slices)


def test_nothing_happens_where_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert turns.ask_for_short_turns() is False
