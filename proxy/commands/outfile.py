"""Files that a command writes when it is done: looked at before it begins."""

from __future__ import annotations

import os
from pathlib import Path


def unwritable(path: Path | str, *, replaced: bool = False) -> str | None:
    """Why nothing can be written there, with the mend; ``None`` where nothing speaks against it.

    Nothing is created: what is there stays whole until there is something to write.  ``replaced``: what is
    there is replaced by a new file beside it, so that the folder decides.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        return f"{path} is a folder: give the path of a file in it"
    if not folder.is_dir():
        why = "is no folder" if folder.exists() else "is not there"
        return f"{path} cannot be written: the folder {folder} {why}; make it, or give another path"
    held = path if path.exists() and not replaced else folder
    if not os.access(held, os.W_OK):
        return f"{path} cannot be written: {held} may not be changed by this user; give another path"
    return None
