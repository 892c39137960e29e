"""What the commands print to: text as it is, and tables that stay legible on a narrow terminal.

Nobody else's text is markup here: ``[red]`` and ``:100:`` are what they are, in a file's name or a model's.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

#: A name folds where it is wider (an id of UUID's length), and is at least so wide where space is short.
_NAME: Final = 36
_LEAST: Final = 20
#: From here on sentences stand in a column of their own, beside moments and states.
_ROOM: Final = 132
_INDENT: Final = 2

Row = Sequence[Text]


def console(piped: int, *, stderr: bool = False) -> Console:
    """A console of plain text; ``piped`` columns where no terminal sets the width."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stderr or stream.isatty() else piped
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=width)


def fitted(columns: Sequence[str], rows: Sequence[Row], names: int, width: int) -> RenderableType:
    """A table of which the first ``names`` columns are names and the others figures, in ``width`` columns.

    Where it has no room the heads of figures wrap, then the lines go, then names fold; and where even that is
    too much, a row's names stand on a line of their own above its figures.  No figure is ever cut.
    """
    cells = [[len(head), *(row[place].cell_len for row in rows)] for place, head in enumerate(columns)]
    whole = [min(max(held), _NAME) if place < names else max(held) for place, held in enumerate(cells)]
    heads = [max(map(len, head.split()), default=0) for head in columns]
    wrapped = [max(head, *held[1:], 0) for head, held in zip(heads, cells, strict=True)]
    wrapped[:names] = whole[:names]
    count = len(columns)
    for widths, lines in ((whole, True), (wrapped, True), (wrapped, False)):
        if sum(widths) + (3 * count + 1 if lines else 2 * (count - 1)) <= width:
            return _table(columns, rows, widths, names, lines=lines)
    left = width - 2 * (count - 1) - sum(wrapped[names:])
    if names and left >= sum(min(name, _LEAST) for name in whole[:names]):
        return _table(columns, rows, _shrunk(whole[:names], left) + wrapped[names:], names, lines=False)
    return Group(*_stacked(columns, rows, names, wrapped[names:], width))


def stories(heads: Sequence[str], rows: Sequence[tuple[Row, str, str]], width: int) -> RenderableType:
    """Rows of short cells with a sentence and the id of a request: beside them, or under them.

    ``rows``: the cells that ``heads`` name, the sentence, the id (empty where there is none).
    """
    if width < _ROOM:
        parts: list[RenderableType] = []
        for cells, told, worst in rows:
            parts.append(_headed(heads, cells))
            parts += [_inset(line) for line in told.split("\n")]
            parts += [_inset(f"worst request: {worst}")] if worst else []
        return Group(*parts)
    table = Table()
    for head in heads:
        table.add_column(head, no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("worst request", overflow="fold", max_width=_NAME)
    for cells, told, worst in rows:
        table.add_row(*cells, Text(told), Text(worst))
    return table


def _headed(heads: Sequence[str], cells: Row) -> Text:
    out = cells[0].copy()
    for head, cell in zip(heads[1:], cells[1:], strict=True):
        out.append(f"  {head} ").append_text(Text(" ").join(cell.split("\n")))
    return out


def _table(
    columns: Sequence[str], rows: Sequence[Row], widths: Sequence[int], names: int, *, lines: bool
) -> Table:
    table = Table() if lines else Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, (head, width) in enumerate(zip(columns, widths, strict=True)):
        justify: JustifyMethod = "left" if place < names else "right"
        table.add_column(Text(head), width=width, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*row)
    return table


def _shrunk(widths: Sequence[int], left: int) -> list[int]:
    """The widest gives way first, none below ``_LEAST``."""
    out = list(widths)
    while sum(out) > left:
        out[out.index(max(out))] -= 1
    return out


def _stacked(
    columns: Sequence[str], rows: Sequence[Row], names: int, widths: Sequence[int], width: int
) -> Iterator[RenderableType]:
    """Names on a line, figures under it: below their heads if they have room, else each beside its own."""
    heads, figures = columns[:names], columns[names:]
    least = sum(widths) + _INDENT
    gap = next((gap for gap in (2, 1) if least + gap * (len(widths) - 1) <= width), 0)
    yield Text(" / ".join(heads), style="bold", overflow="fold")
    if gap:
        yield from (
            _aligned([Text(word) for word in line], widths, gap, "bold") for line in _over(figures, widths)
        )
    for row in rows:
        line = Text(" / ").join(name for name in row[:names] if name.plain)
        line.overflow = "fold"
        yield line
        if gap:
            yield _aligned(row[names:], widths, gap)
        else:
            held = zip(figures, row[names:], strict=True)
            yield _inset(", ".join(f"{head} {cell.plain}" for head, cell in held if cell.plain))


def _over(heads: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """Heads in lines, each at most as wide as its column, the last line full."""
    wrapped = [textwrap.wrap(head, width) for head, width in zip(heads, widths, strict=True)]
    most = max(map(len, wrapped), default=0)
    for line in range(most):
        at = [line - most + len(words) for words in wrapped]
        yield [words[place] if place >= 0 else "" for words, place in zip(wrapped, at, strict=True)]


def _aligned(cells: Sequence[Text], widths: Sequence[int], gap: int, style: str = "") -> Text:
    out = Text(" " * (_INDENT - gap), style=style)
    for cell, width in zip(cells, widths, strict=True):
        out.append(" " * (gap + width - cell.cell_len))
        out.append_text(cell)
    return out


def _inset(text: str) -> RenderableType:
    return Padding(Text(text, overflow="fold"), (0, 0, 0, _INDENT), expand=False)
