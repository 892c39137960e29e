"""``RouteTable``: which backend and which deadlines a call gets.  Pure, built once per table."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import translate
from re import Pattern
from re import compile as compile_re
from typing import Final

from msgspec import Struct

from proxy.link import Match, PromptModel, PromptModels, SloSpec, Table
from proxy.relay.call import Call
from proxy.relay.headers import Fields, find
from scoring.deadlines import DeadlineCurve

#: Answers kept for calls that no header decides; models are clients' text, so the number is bounded.
_MEMORY: Final = 1024
#: Models whose prompts' lengths are kept.
_LENGTHS: Final = 256


class Arm(Struct, frozen=True):
    """Where a call goes and what it is promised: fixed at its start, never revised."""

    backend: str
    slo: SloSpec
    ttft_ns: int
    tbt_ns: int
    prompt_tokens: int  # estimated
    dialect: str | None = None  # set by the route


class PromptLengths:
    """What was learned of prompt lengths, by model.  It outlives tables, and the process that told it."""

    def __init__(self) -> None:
        self._models: dict[str, PromptModel] = {}

    def learn(self, learned: PromptModels) -> None:
        """Take what is new; past the bound those go that were not told anew for longest."""
        for name, model in learned.models.items():
            self._models.pop(name, None)
            self._models[name] = model
        for name in list(self._models)[:-_LENGTHS]:
            del self._models[name]

    def tokens(self, call: Call, otherwise: PromptModel) -> int:
        """The prompt's tokens: those that were given as ids, and an estimate of the text's."""
        return call.tokens + self._models.get(call.model or "", otherwise).tokens(call.text_bytes)


class _Rule:
    """One compiled ``Match``."""

    __slots__ = ("header", "model", "path")

    def __init__(self, match: Match) -> None:
        self.path = _glob(match.path)
        self.model = _glob(match.model)
        self.header = [(name.lower().encode(), _glob_of(value)) for name, value in match.header.items()]

    def fits(self, call: Call, fields: Fields) -> bool:
        if self.path is not None and not self.path(call.path):
            return False
        if self.model is not None and not (call.model is not None and self.model(call.model)):
            return False
        for name, pattern in self.header:
            value = find(fields, name)
            if value is None or not pattern.match(value.decode("latin-1").strip()):
                return False
        return True


class RouteTable:
    """Compiled routes and SLOs of one ``Table``.  ``lengths``: what was learned, and will be."""

    def __init__(self, table: Table, lengths: PromptLengths | None = None) -> None:
        self._lengths = PromptLengths() if lengths is None else lengths
        self._unlearned = PromptModel(table.bytes_per_token)
        self._default = table.backends[0].name if table.backends else None
        self._routes = [(_Rule(route.match), route) for route in table.routes]
        self._slos = [(_Rule(s.match), s, DeadlineCurve(s.ttft_points)) for s in table.slos]
        self._exclude = [_glob_of(pattern) for pattern in table.exclude]
        rules = [rule for rule, _ in self._routes] + [rule for rule, _, _ in self._slos]
        self._by_header = any(rule.header for rule in rules)
        self._known: dict[tuple[str, str | None], tuple[str | None, str | None, SloSpec, DeadlineCurve]] = {}

    def choose(self, call: Call, fields: Fields) -> Arm | None:
        """The arm for a call; ``None`` where routes are given and none of them matches."""
        key = (call.path, call.model)
        found = self._known.get(key)
        if found is None:
            found = (*self._route(call, fields), *self._slo(call, fields))
            if not self._by_header and len(self._known) < _MEMORY:
                self._known[key] = found
        backend, dialect, slo, curve = found
        if backend is None:
            return None
        prompt_tokens = self._lengths.tokens(call, self._unlearned)
        return Arm(backend, slo, curve.at(prompt_tokens), slo.tbt_ns, prompt_tokens, dialect)

    def excluded(self, path: str) -> bool:
        """True for paths that pass through unmeasured and unrecorded."""
        return any(pattern.match(path) for pattern in self._exclude)

    def _route(self, call: Call, fields: Fields) -> tuple[str | None, str | None]:
        """The backend, and the dialect if the route sets one."""
        if not self._routes:
            return self._default, None
        for rule, route in self._routes:
            if rule.fits(call, fields):
                return route.backend, route.dialect
        return None, None

    def _slo(self, call: Call, fields: Fields) -> tuple[SloSpec, DeadlineCurve]:
        for rule, slo, curve in self._slos[:-1]:
            if rule.fits(call, fields):
                return slo, curve
        return self._slos[-1][1:]


def _glob_of(pattern: str) -> Pattern[str]:
    return compile_re(translate(pattern))


def _glob(pattern: str | None) -> Callable[[str], object] | None:
    return None if pattern is None or pattern == "*" else _glob_of(pattern).match
