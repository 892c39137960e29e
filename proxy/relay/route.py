"""``RouteTable``: which backend and which deadlines a call gets.  Pure, built once per table."""

from __future__ import annotations

import random
from collections.abc import Callable
from fnmatch import translate
from re import Pattern
from re import compile as compile_re
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from proxy.link import Assignment, Match, MirrorSpec, PromptModel, PromptModels, SloSpec, Table
from proxy.relay.call import Call
from proxy.relay.headers import Fields, find
from proxy.relay.sticky import Peer, Split, splits_of
from scoring.deadlines import LONGEST_NS, DeadlineCurve, QuadraticDeadline

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
    split: Split | None = None  # what chose the backend, where several share a route
    assignment: Assignment | None = None  # by it
    mirror: MirrorSpec | None = None  # who gets copies

    def instead(self, tried: tuple[str, ...], failed: str) -> Arm | None:
        """The arm of another backend, since none of ``tried`` could be connected to: ``failed`` is why.

        What was promised stays; ``None``: there is none, or the route does not say so.
        """
        if self.split is None or self.assignment is None:
            return None
        backend = self.split.instead(self.assignment, tried)
        if backend is None:
            return None
        return replace(
            self,
            backend=backend,
            assignment=replace(self.assignment, failed=self.assignment.failed or failed),
        )


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


#: An SLO for prompts of the least to the most tokens, with its deadlines for one backend and model.
_Offer = tuple[int, int, SloSpec, DeadlineCurve | QuadraticDeadline]
_Offers = tuple[_Offer, ...]
#: What a matching route says: its backend, dialect, what chooses among several backends, who gets copies.
_Way = tuple[str | None, str | None, Split | None, MirrorSpec | None]
#: What is remembered of a path and model: that, and the SLOs that the prompt's length decides; of a split the
#: SLOs of each backend that it chose so far.
_Known = tuple[_Way, _Offers, dict[str, _Offers]]


class _Promise:
    """One compiled ``SloSpec``."""

    __slots__ = ("_curve", "_learned", "least", "most", "rule", "slo")

    def __init__(self, slo: SloSpec) -> None:
        self.slo = slo
        self.rule = _Rule(slo.match)
        least, most = slo.match.prompt_tokens or (0, None)
        self.least = least
        self.most = LONGEST_NS if most is None else most
        self._curve = (
            DeadlineCurve(slo.ttft_points) if slo.quadratic is None else QuadraticDeadline(*slo.quadratic)
        )
        self._learned = {
            (learned.backend, learned.model): DeadlineCurve(learned.points).later(slo.slack_ns)
            for learned in slo.curves
        }

    @property
    def any_length(self) -> bool:
        """No prompt is too short or too long for it."""
        return self.slo.match.prompt_tokens is None

    def offer(self, backend: str | None, model: str | None) -> _Offer:
        curve = self._learned.get((backend or "", model or ""), self._curve)
        return self.least, self.most, self.slo, curve


class RouteTable:
    """Compiled routes and SLOs of one ``Table``.  ``lengths``: what was learned, and will be.

    ``draw()``: evenly spread in [0, 1).  ``before``: the one that this takes the place of; promises that are
    the same are not compiled anew, so that other weights hold no stream up.  ``keyed``: some route goes by a
    key of the body.
    """

    def __init__(
        self,
        table: Table,
        lengths: PromptLengths | None = None,
        draw: Callable[[], float] = random.random,
        before: RouteTable | None = None,
    ) -> None:
        self._lengths = PromptLengths() if lengths is None else lengths
        self._unlearned = PromptModel(table.bytes_per_token)
        self._default = table.backends[0].name if table.backends else None
        splits = splits_of(table, draw)
        self._routes = [
            (_Rule(route.match), route, split) for route, split in zip(table.routes, splits, strict=True)
        ]
        self.keyed = any(split is not None and split.keyed for split in splits)
        self._promised = table.slos
        self._slos: list[_Promise]
        if before is not None and before._promised == table.slos:
            self._slos = before._slos
        else:
            self._slos = [_Promise(slo) for slo in table.slos]
        self._exclude = [_glob_of(pattern) for pattern in table.exclude]
        rules = [rule for rule, _, _ in self._routes] + [promise.rule for promise in self._slos]
        self._by_header = any(rule.header for rule in rules)
        self._known: dict[tuple[str, str | None], _Known] = {}

    def choose(self, call: Call, fields: Fields, peer: Peer = None) -> Arm | None:
        """The arm for a call; ``None`` where routes are given and none of them matches.

        ``peer``: the other end of the client's connection.
        """
        key = (call.path, call.model)
        found = self._known.get(key)
        if found is None:
            way = self._route(call, fields)
            found = (way, () if way[2] else self._offers(call, fields, way[0]), {})
            if not self._by_header and len(self._known) < _MEMORY:
                self._known[key] = found
        (backend, dialect, split, mirror), offers, by_backend = found
        if backend is None:
            return None
        assignment = None
        if split is not None:
            assignment = split.assign(call, fields, peer)
            backend = assignment.backend
            if (known := by_backend.get(backend)) is None:
                known = by_backend[backend] = self._offers(call, fields, backend)
            offers = known
        prompt_tokens = self._lengths.tokens(call, self._unlearned)
        for least, most, slo, curve in offers:  # noqa: B007 - the last is for every length
            if least <= prompt_tokens <= most:
                break
        ttft_ns = curve.at(prompt_tokens)
        return Arm(backend, slo, ttft_ns, slo.tbt_ns, prompt_tokens, dialect, split, assignment, mirror)

    def excluded(self, path: str) -> bool:
        """True for paths that pass through unmeasured and unrecorded."""
        return any(pattern.match(path) for pattern in self._exclude)

    def _route(self, call: Call, fields: Fields) -> _Way:
        """What the first route that matches says."""
        if not self._routes:
            return self._default, None, None, None
        for rule, route, split in self._routes:
            if rule.fits(call, fields):
                return route.backend, route.dialect, split, route.mirror
        return None, None, None, None

    def _offers(self, call: Call, fields: Fields, backend: str | None) -> tuple[_Offer, ...]:
        """The SLOs that match but for the prompt's length, up to the first that takes any length."""
        offers: list[_Offer] = []
        for promise in self._slos[:-1]:
            if promise.rule.fits(call, fields):
                offers.append(promise.offer(backend, call.model))
                if promise.any_length:
                    return tuple(offers)
        return (*offers, self._slos[-1].offer(backend, call.model))


def _glob_of(pattern: str) -> Pattern[str]:
    return compile_re(translate(pattern))


def _glob(pattern: str | None) -> Callable[[str], object] | None:
    return None if pattern is None or pattern == "*" else _glob_of(pattern).match
