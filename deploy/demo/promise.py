"""What the demo promises its readers: one SLO, by which both schedulers are judged alike.

25 tokens per second, several times faster than people read, and a first token after the time that a prompt
of its length takes plus about a second of slack for scheduling: Metron's shape of a deadline (arXiv
2407.07000), since no constant fits both a greeting and a document.
"""

from __future__ import annotations

from typing import Final

from scoring.deadlines import DeadlineCurve, Deadlines

TBT_NS: Final = 40_000_000
TTFT: Final = DeadlineCurve([(0, 1_200_000_000), (1000, 1_500_000_000), (4000, 2_300_000_000)])
TARGET: Final = 0.9  # fluidity that a request needs
OBJECTIVE: Final = 0.99  # share of requests that should reach it


def deadlines(prompt_tokens: int) -> Deadlines:
    """The deadlines of a request with a prompt of that length."""
    return Deadlines(TTFT.at(prompt_tokens), TBT_NS)
