"""How each backend does, by the requests that it was asked for; and, where configured, who is taken out.

Nothing is probed: ``Health`` is told of settled requests and of what the workers' pools say.  It shows, and
with ``ejection.enabled`` lowers weights through ``Weights.eject``.  See the README of this folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from msgspec import Struct

from proxy.control.experiments.failures import Recent, judged
from proxy.control.experiments.weights import Weights
from proxy.control.settle import Settled
from proxy.control.snapshot import BackendStats
from proxy.link import Facts
from proxy.settings.experiment import Ejection

_log = logging.getLogger("legato.health")

#: Parts of its weight by which a backend comes back, each for one window.
STEPS: Final = (0.1, 0.3, 1.0)
#: The longest that a backend stays out, unless ``ejection.time`` itself is longer.
LONGEST_NS: Final = 600_000_000_000
#: On its way back so many requests say enough, where ``ejection.requests`` is more.
_AT_ONCE: Final = 3
#: A connection that failed longer ago says nothing: whoever has no traffic for a backend tries no more.
TRIED_NS: Final = 300_000_000_000
#: Ends of requests that were never connected.
_UNREACHED: Final = ("connect_failed", "timeout_connect")


class State(StrEnum):
    """How a backend stands."""

    OK = "ok"
    FAILING = "failing"
    EJECTED = "ejected"
    RETURNING = "returning"


class Down(Struct, frozen=True):
    """A backend to which no worker could connect when it last tried, at ``tried_unix_ns`` or later."""

    backend: str
    since_unix_ns: int
    tried_unix_ns: int


class HealthView(Struct, frozen=True, kw_only=True):
    """One backend as it stands; counts are of the last window, times are of the wall clock."""

    name: str
    state: State
    since_unix_ns: int
    requests: int
    failures: int
    consecutive: int
    last_error: str | None
    last_error_unix_ns: int | None
    factor: float  # of its weight in splits
    until_unix_ns: int | None  # out, or in this step, until then
    kept: str | None  # failing, and why it is not taken out
    pool: BackendStats | None  # as all workers together see it; None: none has told yet
    up_since_unix_ns: int | None


@dataclass(slots=True)
class _Backend:
    """What is known of one backend.  ``until_ns`` is monotonic, ``*_unix_ns`` are not."""

    recent: Recent
    since_unix_ns: int
    state: State = State.OK
    consecutive: int = 0
    last_error: str | None = None
    last_error_unix_ns: int | None = None
    in_row: int = 0  # ejections since it last came back for good
    step: int = 0
    until_ns: int = 0
    counted_from_unix_ns: int = 0  # requests that came before are of what was before
    kept: str | None = None
    pool: BackendStats | None = None
    up_since_unix_ns: int | None = None
    refused_unix_ns: int = 0  # when the last request came that could not be connected
    reached_unix_ns: int = 0  # and the last one that could, be it by a connection that was there

    @property
    def tried_unix_ns(self) -> int:
        """When it was last seen not to be reached."""
        return max(self.refused_unix_ns, self.up_since_unix_ns or self.since_unix_ns)

    @property
    def down(self) -> bool:
        """Pools say so, and no request got through since: a pool learns only by new connections."""
        return self.pool is not None and not self.pool.up and self.reached_unix_ns <= self.tried_unix_ns

    @property
    def factor(self) -> float:
        """Of its weight."""
        if self.state is State.EJECTED:
            return 0.0
        return STEPS[self.step] if self.state is State.RETURNING else 1.0


@dataclass
class Health:
    """See the module.  ``now_ns()`` never jumps, ``unix_ns()`` is for people."""

    settings: Ejection
    weights: Weights
    now_ns: Callable[[], int]
    unix_ns: Callable[[], int]
    _backends: dict[str, _Backend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._meet()

    def configure(self, settings: Ejection) -> None:
        """The configuration was read anew."""
        if settings.window != self.settings.window:
            for backend in self._backends.values():
                backend.recent = Recent(settings.window)
        self.settings = settings
        self._meet()

    # ------------------------------------------------------------ what it is told

    def __call__(self, batch: Sequence[Settled]) -> None:
        """Requests were settled."""
        now_ns = self.now_ns()
        for settled in batch:
            for name, failure in judged(settled.facts):
                backend = self._backends.get(name)
                if backend is not None:
                    _reach(backend, settled.facts, name, failure)
                if backend is None or settled.facts.received_unix_ns < backend.counted_from_unix_ns:
                    continue
                backend.recent.add(now_ns, failure is not None)
                if failure is None:
                    backend.consecutive = 0
                    continue
                backend.consecutive += 1
                backend.last_error = failure
                backend.last_error_unix_ns = self.unix_ns()

    def tick(self, pools: Sequence[BackendStats]) -> None:
        """About once a second: what the pools say, and what follows of all that."""
        self._meet()
        told = {pool.name: pool for pool in pools}
        for name, backend in self._backends.items():
            pool, before = told.get(name), backend.pool
            if pool is not None and (before is None or before.up != pool.up):
                backend.up_since_unix_ns = self.unix_ns()
            backend.pool = pool
        splits = self._splits()
        for name, backend in self._backends.items():
            self._move(name, backend, splits)
        # The worst first: it is the last one that stays.
        failing = [name for name, each in self._backends.items() if each.state is State.FAILING]
        for name in sorted(failing, key=lambda name: (-self._share(self._backends[name]), name)):
            self._act(name, self._backends[name], splits)
        for name, backend in self._backends.items():
            self.weights.eject(name, backend.factor)

    # ------------------------------------------------------------ what readers see

    def views(self) -> list[HealthView]:
        """Every backend, by name."""
        return [self._view(name, self._backends[name]) for name in sorted(self._backends)]

    def down(self) -> list[Down]:
        """Backends that no worker could connect to when it last tried."""
        return [
            Down(name, each.up_since_unix_ns or each.since_unix_ns, each.tried_unix_ns)
            for name, each in sorted(self._backends.items())
            if each.down
        ]

    def not_down(self) -> frozenset[str]:
        """Backends whose pools could not connect, of which that says nothing any more.

        A request got through by a connection that was there, or nobody has tried for ``TRIED_NS``.
        """
        recently_ns = self.unix_ns() - TRIED_NS
        return frozenset(
            name
            for name, each in self._backends.items()
            if each.pool is not None
            and not each.pool.up
            and not (each.down and each.tried_unix_ns >= recently_ns)
        )

    def ejected(self) -> dict[str, bool]:
        """Of the backends of splits: whether it has not all of its weight."""
        named = {name for _, arms in self._splits() for name in arms}
        return {name: self._factor(name) < 1.0 for name in sorted(named)}

    def _view(self, name: str, backend: _Backend) -> HealthView:
        requests, failures = backend.recent.sums(self.now_ns())
        away = backend.state in (State.EJECTED, State.RETURNING)
        left_ns = backend.until_ns - self.now_ns()
        return HealthView(
            name=name,
            state=backend.state,
            since_unix_ns=backend.since_unix_ns,
            requests=requests,
            failures=failures,
            consecutive=backend.consecutive,
            last_error=backend.last_error,
            last_error_unix_ns=backend.last_error_unix_ns,
            factor=backend.factor,
            until_unix_ns=self.unix_ns() + left_ns if away else None,
            kept=backend.kept,
            pool=backend.pool,
            up_since_unix_ns=backend.up_since_unix_ns,
        )

    # ------------------------------------------------------------ what follows

    def _move(self, name: str, backend: _Backend, splits: list[tuple[str, dict[str, int]]]) -> None:
        """From one state to the next, but for being taken out."""
        if backend.state in (State.OK, State.FAILING):
            self._enter(backend, State.FAILING if self._fails(backend) else State.OK)
        elif not self.settings.enabled or not any(name in arms for _, arms in splits):
            self._whole(name, backend, "ejection is switched off, or no split has it any more")
        elif backend.state is State.RETURNING and self._fails_step(backend):
            self._enter(backend, State.FAILING)
        elif self.now_ns() >= backend.until_ns:
            following = 0 if backend.state is State.EJECTED else backend.step + 1
            if following == len(STEPS):
                self._whole(name, backend, "it did well")
            else:
                self._return(name, backend, following)

    def _act(self, name: str, backend: _Backend, splits: list[tuple[str, dict[str, int]]]) -> None:
        """It fails: take it out, where that is wanted and somebody is left."""
        if not self.settings.enabled:
            backend.kept = None
            return
        kept = self._why_kept(name, splits)
        if kept is None:
            self._out(name, backend)
            return
        if kept != backend.kept:
            _log.warning("backend %s is failing (%s), kept: %s", name, self._told(backend), kept)
        backend.kept = kept

    def _out(self, name: str, backend: _Backend) -> None:
        time_ns = min(self.settings.time << min(backend.in_row, 30), max(LONGEST_NS, self.settings.time))
        _log.warning("backend %s is ejected for %.3gs: %s", name, time_ns / 1e9, self._told(backend))
        backend.in_row += 1
        backend.until_ns = self.now_ns() + time_ns
        self._enter(backend, State.EJECTED)
        self._forget(backend)

    def _return(self, name: str, backend: _Backend, step: int) -> None:
        backend.step = step
        backend.until_ns = self.now_ns() + self.settings.window
        self._enter(backend, State.RETURNING)
        self._forget(backend)
        _log.info("backend %s is back with %.0f%% of its weight", name, 100 * STEPS[step])

    def _whole(self, name: str, backend: _Backend, why: str) -> None:
        _log.info("backend %s is back for good: %s", name, why)
        backend.in_row = 0
        self._enter(backend, State.OK)

    def _enter(self, backend: _Backend, state: State) -> None:
        if backend.state is not state:
            backend.state = state
            backend.since_unix_ns = self.unix_ns()
        if state is not State.FAILING:
            backend.kept = None

    def _forget(self, backend: _Backend) -> None:
        """Count anew, and only requests that come from now on."""
        backend.recent = Recent(self.settings.window)
        backend.consecutive = 0
        backend.counted_from_unix_ns = self.unix_ns()

    def _fails(self, backend: _Backend, least: int | None = None) -> bool:
        """``least``: requests that say enough."""
        requests, failures = backend.recent.sums(self.now_ns())
        enough = requests >= (self.settings.requests if least is None else least)
        return enough and failures >= self.settings.failures * requests

    def _fails_step(self, backend: _Backend) -> bool:
        """On its way back few requests are enough, at the step's end any."""
        ends = self.now_ns() >= backend.until_ns
        return self._fails(backend, 1 if ends else min(_AT_ONCE, self.settings.requests))

    def _share(self, backend: _Backend) -> float:
        requests, failures = backend.recent.sums(self.now_ns())
        return failures / requests if requests else 0.0

    def _why_kept(self, name: str, splits: list[tuple[str, dict[str, int]]]) -> str | None:
        """Why it must not be taken out; ``None``: it may."""
        mine = [(split, arms) for split, arms in splits if arms.get(name)]
        if not mine:
            return "no split sends it anything"
        for split, arms in mine:
            others = (other for other, weight in arms.items() if weight and other != name)
            if all(self._factor(other) < 1.0 for other in others):
                return f"the last one of split {split}"
        return None

    def _factor(self, name: str) -> float:
        backend = self._backends.get(name)
        return 1.0 if backend is None else backend.factor

    def _told(self, backend: _Backend) -> str:
        requests, failures = backend.recent.sums(self.now_ns())
        return f"{failures} of {requests} requests failed, the last by {backend.last_error}"

    def _splits(self) -> list[tuple[str, dict[str, int]]]:
        return self.weights.chosen()

    def _meet(self) -> None:
        """The backends of the table, no others."""
        names = [spec.name for spec in self.weights.table.backends]
        for gone in self._backends.keys() - set(names):
            del self._backends[gone]
        for name in names:
            if name not in self._backends:
                self._backends[name] = _Backend(Recent(self.settings.window), self.unix_ns())


def _reach(backend: _Backend, facts: Facts, name: str, failure: str | None) -> None:
    """Whether this request was connected to it; another backend may have stood in."""
    at_ns = facts.received_unix_ns
    if failure is not None and (name != facts.backend or facts.end in _UNREACHED):
        backend.refused_unix_ns = max(backend.refused_unix_ns, at_ns)
    else:
        backend.reached_unix_ns = max(backend.reached_unix_ns, at_ns)
