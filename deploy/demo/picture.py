"""The closing report as a picture: an SVG that any page shows, with nothing fetched from elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console, RenderableType

PICTURE_WIDTH = 100
#: rich names web fonts at a host of others; the reader's own monospace font does.
_WEB_FONTS = re.compile(r"@font-face\s*\{[^}]*\}\s*")


def save(report: RenderableType, path: Path) -> None:
    """Write ``report`` to ``path``; ``OSError`` where that cannot be."""
    console = Console(
        record=True, file=io.StringIO(), width=PICTURE_WIDTH, force_terminal=True, color_system="truecolor"
    )
    console.print(report, highlight=False)
    svg = console.export_svg(title="legato demo")
    path.write_text(_WEB_FONTS.sub("", svg).replace("Fira Code, monospace", "monospace"), encoding="utf-8")
