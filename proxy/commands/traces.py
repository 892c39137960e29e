"""Opening trace files for the commands that read them: what is no trace is refused at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

_LARGE: Final = 8 * 1024 * 1024  # bytes; from here on a progress bar is shown
_PEEKED: Final = 4096  # bytes that tell what a file is
_PACKED: Final = {b"\x1f\x8b": "zcat", b"\x28\xb5\x2f\xfd": "zstdcat"}
#: Of a line of the access log; a line of a trace lacks some of them.
_RECORD: Final = (b'"duration_s"', b'"outcome"', b'"time"')
#: Arrivals.  (The access log has ``events`` too, as a number.)
_ARRIVALS: Final = re.compile(rb'"(events|choices)"\s*:\s*\[')


@contextmanager
def opened(name: str, command: str = "score") -> Iterator[BinaryIO]:
    """The file, or exit status 2 with the reason: every file is opened before any is scored."""
    if name == "-":
        _refuse_others(name, sys.stdin.buffer, command)
        yield sys.stdin.buffer
        return
    try:
        stream = open(name, "rb")  # noqa: SIM115
    except OSError as error:
        mend = "give files that --trace-log wrote, or - for standard input"
        raise typer.BadParameter(f"{name}: {error.strerror or error}; {mend}", param_hint="FILE") from error
    with stream:
        _refuse_others(name, stream, command)
        yield stream


def _refuse_others(name: str, stream: BinaryIO, command: str) -> None:
    """What is surely no trace is said once, not line by line."""
    peek = getattr(stream, "peek", None)
    head = peek(_PEEKED) if peek is not None else b""
    shown = "standard input" if name == "-" else name
    packed = next((tool for magic, tool in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        mend = f"{packed} {'FILE' if name == '-' else name} | legato {command} -"
        raise typer.BadParameter(f"{shown} is compressed: {mend}", param_hint="FILE")
    if all(key in head for key in _RECORD) and not _ARRIVALS.search(head):
        mend = "it does not hold arrivals, --trace-log FILE writes what is needed"
        raise typer.BadParameter(f"{shown} is an access log: {mend}", param_hint="FILE")


@contextmanager
def progress(
    streams: list[tuple[str, BinaryIO]], what: str = "scoring"
) -> Iterator[tuple[Console, Callable[[int], None]]]:
    """A console on standard error and what to tell of the bytes read: a bar for large files on a terminal."""
    from proxy.commands.screen import console as plain_console

    console = plain_console(160, stderr=True)
    sizes = [_size(stream) for _, stream in streams]
    total = sum(size for size in sizes if size is not None)
    if not console.is_terminal or (total < _LARGE and None not in sizes):
        yield console, lambda size: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None if None in sizes else total)
        yield bar.console, lambda size: bar.advance(task, size)


def _size(stream: BinaryIO) -> int | None:
    """Bytes of a regular file; ``None`` for a pipe."""
    try:
        return os.fstat(stream.fileno()).st_size if stream.seekable() else None
    except (OSError, ValueError):
        return None
