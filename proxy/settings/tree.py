"""Where every value comes from: a YAML file, variables and flags as one tree of texts with their places.

A tree is nested dicts and lists whose leaves are the texts as written (``None`` for YAML's null): the models
read texts, so that ``off``, ``50ms`` and ``1e3`` mean the same in a file, a variable and a flag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import yaml

from proxy.settings.problems import ConfigProblem, mask

Loc = tuple[str | int, ...]
_CORE = "tag:yaml.org,2002:"
_FILES = (
    "cert_file",
    "key_file",
    "ca_file",
    "metrics_ca_file",
    "token_file",
    "write_token_file",
    "url_file",
    "headers_file",
    "secret_file",
)
_WITH_FILES = ("tls", "admin", "backends", "redis", "otel", "alerts")
#: All that may be shown of ``alerts.notify``: anywhere else may be a URL with a key in it.
_PLAIN_OF_NOTIFY = ("name", "timeout", "log", "secret_file", "token_file")


class Tree:
    """``data`` and, for the parts of it that were written somewhere, their ``places``."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.places: dict[Loc, str] = {}
        self.problems: list[ConfigProblem] = []
        self.names: list[str] = []  # of backends, also of those that could not be read
        self.bad: list[Loc] = []  # what could not be read, and counts as not given
        self.notes: list[str] = []  # what is passed over and should be known

    def place(self, loc: Loc) -> str:
        """Where this, the nearest part that holds it, or a part of it was written; ``""`` for a default."""
        for size in range(len(loc), 0, -1):
            if (place := self.places.get(loc[:size])) is not None:
                return place
        return next((place for known, place in self.places.items() if known[: len(loc)] == loc != ()), "")

    def get(self, loc: Loc) -> Any:
        """What stands there, ``None`` if nothing does."""
        at: Any = self.data
        for step in loc:
            try:
                at = at[step]
            except (KeyError, IndexError, TypeError):
                return None
        return at

    def set(self, loc: Loc, value: Any, place: str) -> None:
        """Put a value, replacing what was there or stood in the way."""
        at = self.data
        for step in loc[:-1]:
            if not isinstance(at.get(str(step)), dict):
                at[str(step)] = {}
            at = at[str(step)]
        at[str(loc[-1])] = value
        for known in [known for known in self.places if known[: len(loc)] == loc]:
            del self.places[known]
        self.places[loc] = place

    def drop(self, loc: Loc) -> None:
        """Take a value out; of a list, the whole list."""
        while loc and isinstance(self.get(loc[:-1]), list):
            loc = loc[:-1]
        holder = self.get(loc[:-1])
        if isinstance(holder, dict) and loc:
            holder.pop(loc[-1], None)

    def problem(self, loc: Loc, mend: str, *, value: object = None, place: str | None = None) -> None:
        """Note what is wrong at ``loc``."""
        shown = self.get(loc) if value is None else value
        text = "" if shown is None or isinstance(shown, dict | list) else mask(str(shown))
        if value is None and text and is_secret(loc):
            text = "***"
        self.problems.append(ConfigProblem(self.place(loc) if place is None else place, key(loc), text, mend))


def is_secret(loc: Loc) -> bool:
    """What is written there may hold a secret, whatever it looks like."""
    if loc[:2] == ("alerts", "notify"):
        return loc[-1] not in _PLAIN_OF_NOTIFY
    return (
        loc in (("admin",), ("redis",), ("alerts",))
        or loc[:2] == ("redis", "url")
        or loc[-1:] in (("token",), ("write_token",))
    )


def key(loc: Loc) -> str:
    """``("slos", 0, "tbt")`` -> ``slos[0].tbt``."""
    out = ""
    for step in loc:
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else step
    return out


def read_file(tree: Tree, path: str) -> None:
    """Add a YAML file; what cannot be read becomes a problem with its line."""
    tree.bad.append(("backends",))  # of a file that cannot be read nobody asks what is missing in it
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        tree.problem(
            (), f"cannot be read: {error.strerror}; give the path of a YAML file", value=path, place=path
        )
        return
    except UnicodeDecodeError:
        tree.problem((), "is no UTF-8 text; give the path of a YAML file", value=path, place=path)
        return
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        tree.problem((), f"is no YAML: {what}", value="", place=place)
        return
    tree.bad.clear()
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == f"{_CORE}null"):
        return
    if not isinstance(root, yaml.MappingNode):
        mend = "settings are needed, for example 'backends: {vllm: {url: http://vllm:8000}}'"
        tree.problem((), mend, value="", place=f"{path}:{root.start_mark.line + 1}")
        return
    tree.data = _FileReader(tree, path).mapping(root, ())


class _FileReader:
    """Turns composed nodes into texts; notes lines, duplicate keys, and what settings do not know."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree = tree
        self._path = path
        self._folder = os.path.dirname(path)
        self._open: list[yaml.Node] = []

    def _line(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        if not node.tag.startswith(_CORE):
            self._tree.problem(loc, f"{node.tag}: tags mean nothing here: leave it out", value=node.tag)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, loc)
        if any(node is parent for parent in self._open):
            self._tree.problem(loc, "an alias that holds itself: write the value out", value="")
            return None
        self._open.append(node)
        try:
            return self.mapping(node, loc) if isinstance(node, yaml.MappingNode) else self._items(node, loc)
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> str | None:
        if node.tag == f"{_CORE}null":
            return None
        text = str(node.value)
        secret = loc[-1] in _FILES and loc[0] in _WITH_FILES
        learned = loc[0] == "slos" and loc[-1] == "learned" and text != "live"
        if (secret or learned) and text:
            return os.path.join(self._folder, text)  # files are found from where the configuration is
        return text

    def _items(self, node: yaml.Node, loc: Loc) -> list[Any]:
        out = []
        for index, item in enumerate(node.value):
            self._tree.places[(*loc, index)] = self._line(item)
            out.append(self.value(item, (*loc, index)))
        return out

    def mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        """``loc`` is where the mapping stands; merge keys (``<<``) give what the mapping itself does not."""
        out: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for name, value in self._pairs(node, loc):
            if name.value in seen:
                first = f"'{name.value}' stands twice, first in line {seen[name.value]}: keep one of them"
                self._tree.problem((*loc, name.value), first, value=name.value, place=self._line(name))
                continue
            seen[name.value] = name.start_mark.line + 1
            here = (*loc, name.value)
            self._tree.places[here] = self._line(name)
            out[name.value] = self.value(value, here)
        for base in [value for name, value in node.value if name.tag == f"{_CORE}merge"]:
            for source in base.value if isinstance(base, yaml.SequenceNode) else [base]:
                merged = self.value(source, (*loc, "<<"))
                for step, value in (merged if isinstance(merged, dict) else {}).items():
                    if step not in out:
                        out[step] = value
                        self._tree.places[(*loc, step)] = self._line(source)
        return out

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        for name, value in node.value:
            if name.tag == f"{_CORE}merge":
                continue
            if isinstance(name, yaml.ScalarNode):
                yield name, value
            else:
                mend = "a key is plain text: quote it"
                self._tree.problem(loc, mend, value="", place=self._line(name))
