"""Failures of exports: counted each time, told in the log once per change of state.

The SDK's exporters log each failed attempt: a collector that is away for a night would fill the log.  Some of
the SDK's messages also show values of variables (headers with keys).  So its loggers are silenced: what the
exporters said last is kept, per thread, as the reason in our own sentence; nothing else is shown.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

_log = logging.getLogger("legato.control")
_SDK: Final = "opentelemetry"
#: Loggers whose words may be shown: they name the status, the reason, the collector's address.
_SHOWN: Final = ("opentelemetry.exporter.otlp.proto.", "opentelemetry.exporter.otlp.common.")
_REASON_LIMIT: Final = 300


class _LastWords(logging.Handler):
    """Keeps the first and the last message of each thread, of the loggers that may be shown."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.by_thread: dict[int, tuple[str, ...]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_SHOWN):
            return
        if len(self.by_thread) > 64:  # threads that are gone
            self.by_thread.clear()
        try:
            said = _said(record)[:_REASON_LIMIT]
        except (TypeError, ValueError):  # a message that does not fit its arguments is nobody's reason
            return
        thread = threading.get_ident()
        before = self.by_thread.get(thread, ())
        # The first says why, the last what came of it: that retries were in vain.
        self.by_thread[thread] = (*before[:1], said)


def _said(record: logging.LogRecord) -> str:
    """The message.  Of errors in it only the words of the network's: others quote what they cannot use, as
    ``InvalidHeader`` does a header's value (it is an ``OSError`` too, in ``requests``)."""
    given = record.args
    if not given or not isinstance(given, tuple):
        return record.getMessage()
    return str(record.msg) % tuple(
        type(each).__name__
        if isinstance(each, BaseException) and (isinstance(each, ValueError) or not isinstance(each, OSError))
        else each
        for each in given
    )


_words = _LastWords()


def silence_sdk() -> None:
    """From now on nothing of the SDK reaches the log by itself.  To be called before an exporter is built."""
    sdk = logging.getLogger(_SDK)
    if _words not in sdk.handlers:
        sdk.handlers = [_words]
        sdk.propagate = False


def last_words() -> str | None:
    """What the SDK has said in this thread since it was last asked; one line."""
    said = _words.by_thread.pop(threading.get_ident(), ())
    return " ".join(" / ".join(said).split()) or None


class Trouble:
    """One exporter's failures.  ``failed`` and ``worked`` may be called from any thread."""

    def __init__(self, what: str) -> None:
        self.failures = 0
        self._what = what
        self._failing = False
        self._lock = threading.Lock()

    def failed(self, reason: str | None) -> None:
        """Count one; say it if the one before it did not fail."""
        with self._lock:
            self.failures += 1
            told, self._failing = self._failing, True
        if not told:
            _log.warning("%s cannot be exported (told once): %s", self._what, reason or "no reason given")

    def worked(self) -> None:
        """It works; say so if it did not."""
        with self._lock:
            told, self._failing = self._failing, False
        if told:
            _log.info("%s are exported again; %d exports have failed so far", self._what, self.failures)

    def left(self, count: int) -> None:
        """The process ends, and so many were not taken: say it."""
        _log.warning("%s: %d had not been taken at the end", self._what, count)
