"""Files that a command writes at its end: what speaks against it is told before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.commands.outfile import unwritable


def test_a_place_that_is_there_and_free_is_fine_and_nothing_is_made(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new") is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing/new", "is not there; make it"), ("file/new", "is no folder"), (".", "is a folder")],
)
def test_why_not(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    assert why in (unwritable(tmp_path / name) or "")


# may the file be changed, may the folder -> is it said
RIGHTS = [(True, False, False, True), (False, True, True, False)]


@pytest.mark.parametrize(("file", "folder", "written", "replaced"), RIGHTS)
def test_of_a_file_that_is_replaced_the_folder_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bool, folder: bool, written: bool, replaced: bool
) -> None:
    """Whoever runs the tests may be root, who may everything."""
    held = tmp_path / "held"
    held.touch()
    monkeypatch.setattr(os, "access", lambda path, _: file if Path(path) == held else folder)
    assert (unwritable(held) is not None) is written
    assert (unwritable(held, replaced=True) is not None) is replaced
