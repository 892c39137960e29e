"""The GenAI conventions' client metrics: names, units and texts, and which of what was counted they show.

All in Development (repository open-telemetry/semantic-conventions-genai): every name stands here and nowhere
else.  The boundaries: ``proxy.control.genai``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from proxy.control.genai import CallSet, CallStats
from proxy.control.snapshot import Hist

Attributes = dict[str, str | int]
Point = tuple[Attributes, Hist]


class Convention(NamedTuple):
    """One histogram."""

    name: str
    unit: str
    help: str


DURATION: Final = Convention(
    "gen_ai.client.operation.duration", "s", "Time from the call of a model to the end of its response."
)
FIRST_CHUNK: Final = Convention(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "Time from the call to the first event of a streamed response.",
)
OUTPUT_CHUNK: Final = Convention(
    "gen_ai.client.operation.time_per_output_chunk",
    "s",
    "Time between two events of a streamed response that carry output.",
)
TOKEN_USAGE: Final = Convention(
    "gen_ai.client.token.usage", "{token}", "Input and output tokens of a call, as the server reported them."
)
CONVENTIONS: Final = (DURATION, FIRST_CHUNK, OUTPUT_CHUNK, TOKEN_USAGE)


def calls(stats: Sequence[CallStats]) -> Iterator[tuple[Convention, list[Point]]]:
    """Each histogram with its points; what was never counted has none."""
    shown: dict[Convention, list[Point]] = {each: [] for each in CONVENTIONS}
    for each in stats:
        base = _attributes(each.attributes)
        for error, hist in each.durations.items():
            shown[DURATION].append((base if error is None else base | {"error.type": error}, hist))
        shown[FIRST_CHUNK].append((base, each.first_chunk))
        shown[OUTPUT_CHUNK].append((base, each.output_chunk))
        shown[TOKEN_USAGE].append((base | {"gen_ai.token.type": "input"}, each.input_tokens))
        shown[TOKEN_USAGE].append((base | {"gen_ai.token.type": "output"}, each.output_tokens))
    for convention, points in shown.items():
        yield convention, [(attributes, hist) for attributes, hist in points if hist.count]


def _attributes(key: CallSet) -> Attributes:
    named: dict[str, str | int | None] = {
        "gen_ai.operation.name": key.operation,
        "gen_ai.provider.name": key.provider,
        "gen_ai.request.model": key.model,
        "server.address": key.address,
        "server.port": key.port,
    }
    return {name: value for name, value in named.items() if value is not None}
