"""The one place where tasks are started, and where failures of ours are told.

A task that nobody holds may be collected, and one that fails would fail in silence: here both are
impossible.  Failures go to the operator's log: what kind and where, never an exception's own text, which
may hold what a request held.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
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
        report(f"task {task.get_name()}", error)


def report(what: str, error: BaseException) -> None:
    """Log a failure of ours: its kind and its frames."""
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("%s failed: %s; Traceback (most recent call last):\n%s", what, type(error).__name__, frames)


def report_from_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler: as ``report``."""
    error = context.get("exception")
    if isinstance(error, BaseException):
        report("a callback", error)
    else:
        log.error("the event loop says: %s", context.get("message"))
