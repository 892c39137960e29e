"""The tokens of the admin API: what is none keeps nobody out.  No message holds a part of one."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.settings.files import readable
from proxy.settings.models import Admin
from proxy.settings.tree import Loc, Tree


def token_findings(admin: Admin, tree: Tree) -> Iterator[tuple[Loc, str]]:
    """From a file or a variable: a word, of what a header can carry."""
    for name in ("token", "write_token"):
        loc: Loc = ("admin", f"{name}_file")
        path = getattr(admin, f"{name}_file")
        if path is not None:
            missing = list(readable(loc, path))
            yield from missing
            if not missing:
                yield from _token(
                    loc, _held(path), f"{path!r} holds no token: write one there", f"{path!r}: "
                )
        loc = ("admin", name)
        if loc in tree.places and not tree.place(loc).startswith("LEGATO_"):
            mend = f"put it into a file and name that with {name}_file"
            yield loc, f"a secret does not belong here: {mend}"
        elif (given := getattr(admin, name)) is not None:
            yield from _token(loc, given.get_secret_value(), "it is empty: give it a token, or unset it")


def _held(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _token(loc: Loc, text: str, empty: str, where: str = "") -> Iterator[tuple[Loc, str]]:
    token = text.strip()
    if not token:
        yield loc, empty
    elif not (token.isascii() and token.isprintable()):
        yield loc, f"{where}a bearer token is one line of plain ASCII"
