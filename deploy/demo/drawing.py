"""One request drawn: tokens that arrived against tokens that were due, over time.  Pure.

Two staircases.  ``arrived(t)``: how many tokens the reader has.  ``due(t)``: how many were promised by then;
it climbs by one every TBT deadline, goes on climbing through a stall (those are the missed deadlines), and
starts afresh from the token that ends it.  Where arrivals are ahead, the space between the two is slack;
where the promise is ahead, it is what the reader waits for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, floor

from rich.text import Text

from deploy.demo.view import Arrival, RequestView

ARRIVED, SLACK, WAITING, DUE = "●", "·", "█", "─"
_STYLES = {ARRIVED: "bold green", SLACK: "green", WAITING: "bold red", DUE: "dim", " ": ""}
_LABEL = 7  # columns of the token axis


class Staircases:
    """``arrived`` and ``due`` of one request as functions of time."""

    def __init__(self, arrivals: Sequence[Arrival], tbt_s: float, ttft_s: float) -> None:
        self._at = [arrival.at_s for arrival in arrivals]
        self._before = [0]
        for arrival in arrivals:
            self._before.append(self._before[-1] + arrival.tokens)
        self._due = [arrival.due_s for arrival in arrivals]
        last = arrivals[-1] if arrivals else None
        # What would be due after the last token: only used where the request was cut while one was due.
        self._due.append(
            ttft_s if last is None else max(last.due_s, last.at_s if last.missed else 0) + last.tokens * tbt_s
        )
        self._tbt_s = tbt_s

    def arrived(self, at_s: float) -> int:
        """Tokens that had arrived by then."""
        return self._before[bisect_right(self._at, at_s)]

    def due(self, at_s: float, *, after_last: bool = False) -> int:
        """Tokens that were due by then; after the last one nothing is awaited any more."""
        index = bisect_right(self._at, at_s)
        if index == len(self._at) and not after_last:
            return min(self._before[-1], self._promised(index, at_s))
        return self._promised(index, at_s)

    def _promised(self, index: int, at_s: float) -> int:
        return max(0, self._before[index] + floor((at_s - self._due[index]) / self._tbt_s) + 1)


def draw(request: RequestView, width: int, height: int = 14) -> list[Text]:
    """The picture, line by line: the chart, the time axis.  ``width`` in columns, at least 30."""
    columns = max(20, width - _LABEL - 1)
    stairs = Staircases(request.arrivals, request.tbt_target_s, request.ttft_target_s)
    end_s = max(request.end_s, request.tbt_target_s)
    seconds = end_s / columns
    cut = request.outcome != "completed"
    heights: list[tuple[int, int]] = []
    for column in range(columns):
        at_s = (column + 1) * seconds  # the end of the column, so that the last shows the end
        heights.append((stairs.arrived(at_s), stairs.due(at_s, after_last=cut)))
    top = max(1, *(max(pair) for pair in heights))
    return [*_chart(heights, top, height), *_axis(end_s, columns)]


def _chart(heights: list[tuple[int, int]], top: int, rows: int) -> list[Text]:
    lines: list[Text] = []
    levels = [(_level(arrived, top, rows), _level(due, top, rows)) for arrived, due in heights]
    for row in range(rows, 0, -1):
        label = round(top * row / rows) if row in (rows, (rows + 1) // 2) else None
        line = Text(f"{'' if label is None else label:>{_LABEL - 1}} ", style="dim")
        line.append("│", style="dim")
        for (arrived, due), (level, due_level) in zip(heights, levels, strict=True):
            glyph = _glyph(row, level, due_level, behind=due > arrived)
            line.append(glyph, style=_STYLES[glyph])
        lines.append(line)
    return lines


def _level(value: int, top: int, rows: int) -> int:
    return ceil(value * rows / top)


def _glyph(row: int, level: int, due_level: int, *, behind: bool) -> str:
    """The cell in ``row``, given the levels of the two staircases in its column."""
    if behind and level < row <= max(due_level, level + 1):
        return WAITING
    if row == level:
        return ARRIVED
    if row == due_level:
        return DUE
    if due_level < row < level:
        return SLACK
    return " "


def _axis(end_s: float, columns: int) -> list[Text]:
    step_s = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60) if end_s / step <= 8), end_s)
    ticks, labels = ["─"] * columns, [" "] * (columns + 8)
    for number in range(floor(end_s / step_s) + 1):
        column = min(columns - 1, round(number * step_s / end_s * columns))
        ticks[column] = "┬"
        text = f"{number * step_s:g}s"
        labels[column : column + len(text)] = text
    indent = " " * _LABEL
    return [
        Text(f"{'0':>{_LABEL - 1}} └" + "".join(ticks), style="dim"),
        Text(f"{indent} {''.join(labels).rstrip()}", style="dim"),
    ]
