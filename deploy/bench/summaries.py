"""What is read from the admin listener beside the load ``paced summaries``."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Final

from deploy.bench.backing import repeatedly

WINDOWS: Final = ("1m", "5m", "15m", "47m", "1h", "7h", "1d")
MODELS: Final = 200
_EACH: Final = 5
_EVERY_S: Final = 1.0


@contextmanager
def summaries(port: int, admin_port: int) -> Iterator[None]:
    """Streams of 200 models first, so that the books hold all groups that there may be; then, meanwhile,
    the summary of one window after another, one a second, as scrapes come."""
    for number in range(MODELS * _EACH):
        _stream(port, f"m{number % MODELS}")
    turn = cycle(WINDOWS)

    def read() -> None:
        url = f"http://127.0.0.1:{admin_port}/api/summary?window={next(turn)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            answer.read()

    with repeatedly(read, _EVERY_S):
        yield


def _stream(port: int, model: str) -> None:
    wish = "bench:n=3,interval_us=1000,delay_us=0,lockstep=0,slot=0000 "
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": wish}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body, separators=(",", ":")).encode(),
        headers={"content-type": "application/json"},
    )
    with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()
