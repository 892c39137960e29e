"""Where log lines go: standard output, a pipe, or a file that may be rotated by others or by size.

A ``LogTarget`` does single system calls and keeps no lines; ``accesslog.LineWriter`` decides when and what.
A file is opened for appending and opened again when its name no longer leads to it (logrotate's rename).
With ``rotate_bytes`` it rotates itself between two lines: FILE -> FILE.1 -> ... -> FILE.keep.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from typing import Final

STDOUT: Final = "-"
#: Bytes of one write to a file; a pipe gets what it takes atomically and without blocking.
FILE_CHUNK: Final = 64 * 1024
PIPE_CHUNK: Final = select.PIPE_BUF

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogTarget:
    """One target; used by one thread.  Every method may raise ``OSError`` and can then be called again.

    ``generation`` grows with every opening: a line that was cut short by it belongs to an older file.
    """

    __slots__ = ("_fd", "_path", "_regular", "generation", "keep", "rotate_bytes")

    def __init__(self, path: str, *, rotate_bytes: int = 0, keep: int = 3) -> None:
        if not path or "\0" in path:
            raise ValueError(f"log target {path!r}: give a file's path, or - for standard output")
        if keep < 1 or rotate_bytes < 0:
            raise ValueError(f"log target {path}: keep {keep} must be >= 1, rotate_bytes {rotate_bytes} >= 0")
        self._path = path
        self._fd: int | None = None
        self._regular = False
        self.rotate_bytes = 0 if path == STDOUT else rotate_bytes
        self.keep = keep
        self.generation = 0

    @property
    def name(self) -> str:
        """As people should read it."""
        return "standard output" if self._path == STDOUT else self._path

    def ready(self, line_bytes: int, *, between_lines: bool) -> tuple[int, int]:
        """Open, open again or rotate as needed; the descriptor and how many bytes one write may have.

        ``line_bytes`` is the size of the next line (0: there is none); it decides on rotation, and only
        ``between_lines``.
        """
        fd = self._fd
        if fd is not None and self._path != STDOUT and self._moved(fd):
            self.close()
            fd = None
        if fd is None:
            fd = self._open()
        if not self._regular:
            return fd, PIPE_CHUNK
        if not self.rotate_bytes:
            return fd, max(FILE_CHUNK, line_bytes)
        if not between_lines:
            return fd, line_bytes
        size = os.fstat(fd).st_size
        if size and size + line_bytes > self.rotate_bytes:
            self._rotate()
            fd, size = self._open(), 0
        return fd, max(min(FILE_CHUNK, self.rotate_bytes - size), line_bytes)

    @property
    def blocks(self) -> bool:
        """Whether a write may have to wait for a reader (a pipe, a terminal, a socket)."""
        return not self._regular

    def close(self) -> None:
        """Let go of the file; standard output is not ours to close."""
        fd, self._fd = self._fd, None
        if fd is not None and self._path != STDOUT:
            os.close(fd)

    def _open(self) -> int:
        if self._path == STDOUT:
            fd = 1
            self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        else:
            fd = os.open(self._path, _FLAGS, 0o640)
            try:
                self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
                if self._regular and self._ends_within_a_line():
                    os.write(fd, b"\n")  # one broken line, not two
            except OSError:
                os.close(fd)
                raise
        self._fd = fd
        self.generation += 1
        return fd

    def _moved(self, fd: int) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        here = os.fstat(fd)
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)

    def _ends_within_a_line(self) -> bool:
        """Whether a predecessor was stopped in the middle of a line."""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        return False

    def _rotate(self) -> None:
        """FILE.1 becomes FILE.2 and so on, the oldest is replaced; FILE is then to be opened anew."""
        for number in range(self.keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        self.close()
