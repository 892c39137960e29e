"""What a PromQL query reads: each selector with its matchers, its window, and the calls around it.

    (selector,) = selectors('sum by (le) (rate(legato_ttft_seconds_bucket{slo="chat"}[5m]))')
    selector.name, selector.matchers, selector.window, [call.name for call in selector.inside]

A scanner for the queries of this project: an unknown function, ``by`` behind the parentheses, or a selector
without a name is a ``ValueError``, so nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

AGGREGATIONS: Final = frozenset({"sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile"})
#: Functions of a counter over a window, and of a gauge over one.
OF_COUNTERS: Final = frozenset({"rate", "irate", "increase", "resets"})
OF_GAUGES: Final = frozenset(
    {"changes", "delta", "deriv", "max_over_time", "min_over_time", "avg_over_time"}
) | {
    "quantile_over_time",
    "count_over_time",
    "last_over_time",
}
_PLAIN: Final = frozenset(
    {"histogram_quantile", "clamp_min", "clamp_max", "abs", "time", "vector", "scalar"}
) | {"absent", "sort", "sort_desc"}
_MATCHING: Final = frozenset({"on", "ignoring", "group_left", "group_right"})
_WORDS: Final = frozenset({"and", "or", "unless", "bool", "offset"})

_TOKEN: Final = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<window>\[[^\]]*\])|(?P<number>\d[\d.]*(?:[a-z]+)?)"""
    r"""|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},])"""
)


@dataclass(frozen=True)
class Call:
    """A function or an aggregation; ``by`` or ``without``: an aggregation's labels, in the order given."""

    name: str
    by: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selector:
    """One metric's name in a query; ``inside`` are the calls around it, the outermost first."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value
    window: str | None
    inside: tuple[Call, ...]


@dataclass
class Read:
    """All that a query names."""

    selectors: list[Selector] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)  # labels of on, ignoring, group_left and group_right


def read(query: str) -> Read:
    """Everything that ``query`` names."""
    scanner = _Scanner(list(_tokens(query)))
    scanner.expression(())
    scanner.expect_end()
    return scanner.found


def selectors(query: str) -> list[Selector]:
    """Its selectors."""
    return read(query).selectors


def _tokens(query: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(query):
        found = _TOKEN.match(query, at)
        if found is None:
            raise ValueError(f"what is {query[at : at + 10]!r}?")
        at = found.end()
        if found.lastgroup is not None:
            yield found.lastgroup, found[found.lastgroup]


class _Scanner:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self.found = Read()

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise ValueError("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, sign: str) -> None:
        kind, text = self._next()
        if text != sign:
            raise ValueError(f"{kind} {text} where {sign} should be")

    def expect_end(self) -> None:
        """Nothing may be left."""
        if self._at < len(self._tokens):
            raise ValueError(f"{self._peek()} too much")

    def expression(self, inside: tuple[Call, ...]) -> None:
        """Read until the end, or the parenthesis that closes what was opened before."""
        while self._at < len(self._tokens) and self._peek() != ")":
            kind, text = self._next()
            if text == "(":
                self.expression(inside)
                self._expect(")")
            elif kind == "name":
                self._named(text, inside)
            elif kind == "window" or text in "{}":
                raise ValueError(f"{text} without a name before it")

    def _named(self, name: str, inside: tuple[Call, ...]) -> None:
        if name in _WORDS:
            return
        if name in _MATCHING:
            self.found.matched.update(self._labels())
        elif name in AGGREGATIONS:
            how: dict[str, tuple[str, ...]] = {}
            if self._peek() in {"by", "without"}:
                _, word = self._next()
                how[word] = self._labels()
            self._arguments(inside, Call(name, **how))
        elif name in OF_COUNTERS | OF_GAUGES | _PLAIN:
            self._arguments(inside, Call(name))
        elif self._peek() == "(":
            raise ValueError(f"{name} is no function that is known here")
        else:
            self.found.selectors.append(self._selector(name, inside))

    def _arguments(self, inside: tuple[Call, ...], call: Call) -> None:
        self._expect("(")
        self.expression((*inside, call))
        self._expect(")")
        if self._peek() in {"by", "without"}:
            raise ValueError(f"write {self._peek()} before the parentheses of {call.name}")

    def _labels(self) -> tuple[str, ...]:
        self._expect("(")
        labels: list[str] = []
        while (token := self._next())[1] != ")":
            if token[0] == "name":
                labels.append(token[1])
        return tuple(labels)

    def _selector(self, name: str, inside: tuple[Call, ...]) -> Selector:
        matchers: list[tuple[str, str, str]] = []
        if self._peek() == "{":
            self._next()
            while self._peek() != "}":
                (_, label), (_, operator), (kind, value) = self._next(), self._next(), self._next()
                if kind != "string":
                    raise ValueError(f"{value} is no string")
                matchers.append((label, operator, value[1:-1]))
                if self._peek() == ",":
                    self._next()
            self._next()
        window = None
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "window":
            window = self._next()[1][1:-1]
        return Selector(name, tuple(matchers), window, inside)
