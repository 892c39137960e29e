"""One request drawn over time: when its tokens came, and how far ahead of its deadlines it was.  Pure.

The chart shows the slack: the time left at each moment until the next token is due.  Every token adds one
TBT deadline to it, silence uses it up; below zero the reader waits, and when the token comes at last
deadlines start afresh from it.  That is Metron's slack, looked at continuously.  Each column shows the worst
moment of its span.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import floor

from rich.text import Text

from deploy.demo.view import RequestView

_UP = " ▁▂▃▄▅▆▇█"  # eighths of a cell, from its floor
_HALF_DOWN, _FULL, _STALL = "▀", "█", "▼"
_LABEL = 9  # columns left of the chart
AHEAD, BEHIND, TOKENS = "green", "bold red", "cyan"


def slack(request: RequestView, columns: int) -> list[float]:
    """Per column the least time left until the next token was due, in seconds; negative: overdue by that.

    After the last token nothing is awaited: the slack stays where it was, unless the request was cut while
    a token was due.
    """
    span_s = request.end_s / columns
    dues = [arrival.due_s for arrival in request.arrivals]
    at = [arrival.at_s for arrival in request.arrivals]
    cut_due_s = _next_due(request) if request.outcome != "completed" else None
    out: list[float] = []
    for column in range(columns):
        start_s, end_s = column * span_s, (column + 1) * span_s
        first, behind = bisect_left(at, start_s), bisect_left(at, end_s)
        # The slack is least just before a token arrives, or at the end of the span if none does.
        lows = [dues[index] - at[index] for index in range(first, behind)]
        if behind < len(at):
            lows.append(dues[behind] - end_s)
        elif cut_due_s is not None:
            lows.append(cut_due_s - end_s)
        out.append(min(lows) if lows else (out[-1] if out else 0.0))
    return out


def _next_due(request: RequestView) -> float:
    """When the token after the last one was due."""
    if not request.arrivals:
        return request.ttft_target_s
    last = request.arrivals[-1]
    return (last.at_s if last.missed else last.due_s) + last.tokens * request.tbt_target_s


def draw(request: RequestView, width: int, rows: int = 13) -> list[Text]:
    """The picture, line by line: tokens, slack above and below zero, time.  ``width`` in columns."""
    columns = max(20, width - _LABEL - 1)
    left = slack(request, columns)
    highest, lowest = max(0.0, *left), min(0.0, *left)
    row_s = max(highest - lowest, request.tbt_target_s) / rows
    above = max(1, -floor(-highest / row_s)) if highest else 0
    below = max(1, -floor(lowest / row_s)) if lowest else 0
    return [
        _tokens(request, columns),
        *(_above(left, row, row_s, label=row == above) for row in range(above, 0, -1)),
        _zero(request, columns),
        *(_below(left, row, row_s, label=row == below) for row in range(1, below + 1)),
        *_axis(request.end_s, columns),
    ]


def _line(label: str, edge: str) -> Text:
    return Text(f"{label:>{_LABEL - 1}} {edge}", style="dim")


def _tokens(request: RequestView, columns: int) -> Text:
    """Tokens that arrived in each column, as bars."""
    counts = [0] * columns
    for arrival in request.arrivals:
        counts[min(columns - 1, floor(arrival.at_s / request.end_s * columns))] += arrival.tokens
    most = max(1, *counts)
    line = _line("tokens", " ")
    line.append("".join(_UP[-(-count * 8 // most)] for count in counts), style=TOKENS)
    return line


def _above(left: Sequence[float], row: int, row_s: float, *, label: bool) -> Text:
    line = _line(f"{row * row_s:+.2f} s" if label else "", "│")
    for value in left:
        line.append(_UP[max(0, min(8, round((value / row_s - (row - 1)) * 8)))], style=AHEAD)
    return line


def _below(left: Sequence[float], row: int, row_s: float, *, label: bool) -> Text:
    line = _line(f"{-row * row_s:+.2f} s" if label else "", "│")
    for value in left:
        halves = round((-value / row_s - (row - 1)) * 2)
        line.append(_FULL if halves > 1 else _HALF_DOWN if halves == 1 else " ", style=BEHIND)
    return line


def _zero(request: RequestView, columns: int) -> Text:
    """The deadline itself, with a mark where each stall began."""
    cells = ["─"] * columns
    for stall in request.stalls:
        cells[min(columns - 1, floor(stall.at_s / request.end_s * columns))] = _STALL
    line = _line("due", "┼")
    for cell in cells:
        line.append(cell, style=BEHIND if cell == _STALL else "dim")
    return line


def _axis(end_s: float, columns: int) -> list[Text]:
    step_s = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60) if end_s / step <= 8), end_s)
    ticks, labels = ["─"] * columns, [" "] * columns
    for index in range(floor(end_s / step_s) + 1):
        column = min(columns - 1, floor(index * step_s / end_s * columns))
        ticks[column] = "┬"
        text = f"{index * step_s:g} s"
        if column + len(text) <= columns:
            labels[column : column + len(text)] = text
    return [
        _line("", "└").append("".join(ticks)),
        Text(" " * (_LABEL + 1) + "".join(labels).rstrip(), style="dim"),
    ]
