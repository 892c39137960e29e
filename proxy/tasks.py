"""The one place where tasks are started.

A task that nobody holds may be collected, and one that fails would fail in silence: here both are
impossible.  Failures go to the operator's log (never with a request's content).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger("legato")

_running: set[asyncio.Task[Any]] = set()


def spawn(coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Start a supervised task on the running loop."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def child(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that its maker holds and awaits: failures are the maker's to see."""
    return asyncio.get_running_loop().create_task(coroutine)


def running() -> int:
    """How many supervised tasks are alive."""
    return len(_running)


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s failed: %s: %s", task.get_name(), type(error).__name__, error)
