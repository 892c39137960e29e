"""The load without an end: as many requests as the demo's, no two alike, bounded when nobody answers."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections import Counter

import pytest

from deploy.demo import load, steady
from deploy.demo.load import Progress, prompt_text
from deploy.demo.workload import Mix, Request, draw
from tests.helpers.procs import eventually, free_port


def test_every_minute_is_the_demos_load_with_another_seed() -> None:
    first, second = 156, 156  # 2.6 a second
    found = list(itertools.islice(steady.requests(7), first + second))
    assert [each.at_ns for each in found] == sorted(each.at_ns for each in found)
    assert [each.prompt_tokens for each in found[:first]] == [each.prompt_tokens for each in draw(7, 60)]
    assert [each.prompt_tokens for each in found[first:]] == [each.prompt_tokens for each in draw(8, 60)]
    assert 60 <= found[first].at_ns / 1e9 < 61.5
    assert len({prompt_text(each, 7)[:60] for each in found}) == first + second
    assert list(itertools.islice(steady.requests(7), 200)) == found[:200]


async def _sent(running: steady.Steady, enough: int) -> None:
    task = asyncio.ensure_future(running.run())
    async with asyncio.timeout(20):
        while running.progress.sent + running.left_out < enough:  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_urls_take_turns_and_every_model_gets_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, str]] = Counter()

    async def send(url: str, request: Request, model: str, seed: int, state: Progress) -> None:
        state.sent += 1
        state.done += 1
        seen[url, model] += 1

    monkeypatch.setattr(load, "send", send)
    asyncio.run(_sent(steady.Steady(["a", "b"], ["x", "y"], mix=Mix(rate=300)), 60))
    assert {model for _, model in seen} == {"x", "y"}
    assert abs(sum(count for (url, _), count in seen.items() if url == "a") - seen.total() / 2) <= 1


def test_what_is_not_answered_is_bounded_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []

    async def send(url: str, request: Request, model: str, seed: int, state: Progress) -> None:
        state.sent += 1
        try:
            await asyncio.Event().wait()
        finally:
            left.append(True)

    monkeypatch.setattr(load, "send", send)
    running = steady.Steady(["a"], ["x"], most=5, mix=Mix(rate=300))
    asyncio.run(_sent(running, 40))
    assert (running.progress.sent, len(left)) == (5, 5)
    assert running.left_out >= 35
    assert running.line().startswith("0 answered (0 tokens), 5 in flight, ")


def test_a_signal_ends_it_with_what_it_did() -> None:
    command = [sys.executable, "-m", "deploy.demo.steady", "--url", f"http://127.0.0.1:{free_port()}"]
    process = subprocess.Popen([*command, "--model", "x"], stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: _catches_term(process.pid), 30)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "answered (0 tokens)" in told


def _catches_term(pid: int) -> bool:
    """Its handler is there (a bit of the kernel's mask of caught signals)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (mask,) = [line.split()[1] for line in file if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
