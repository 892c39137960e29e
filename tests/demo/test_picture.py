"""The report as a picture: it stands alone, and says what the report says."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from rich.text import Text

from deploy.demo.picture import save


def test_it_is_an_image_that_fetches_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.svg"
    save(Text("fluidity 0.714", style="bold"), file)
    svg = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "fluidity" in "".join(root.itertext())
    assert "@font-face" not in svg
    assert svg.count("http") == svg.count("http://www.w3.org/") + svg.count("https://www.textualize.io")
