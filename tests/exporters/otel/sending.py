"""An exporter of spans, and requests to give to it."""

from __future__ import annotations

import time
from typing import Any

from proxy.config import Otel
from proxy.exporters.otel.traces import Traces
from tests.exporters.otel.asked import chat, ids


def make(endpoint: str, **fields: Any) -> Traces:
    """Of one host; ``timeout`` in seconds."""
    seconds = fields.pop("timeout", 5.0)
    made_table = fields.pop("table", None)
    otel = Otel.model_construct(
        **(Otel(endpoint=endpoint).__dict__ | {"timeout": int(seconds * 1e9)} | fields)
    )
    return of(otel, table=made_table)


def of(otel: Otel, table: Any = None) -> Traces:
    """By these settings."""
    return Traces(
        otel, instance="host-1", version="9", unix_ns=time.time_ns, monotonic_ns=lambda: 0, table=table
    )


def numbered(count: int, first: int = 1) -> list[Any]:
    """So many requests, each in a trace of its own: two spans each."""
    return [
        chat(trace_id=f"{number:032x}", trace=ids(server=f"{number:016x}", client=f"{number + 2**40:016x}"))
        for number in range(first, first + count)
    ]
