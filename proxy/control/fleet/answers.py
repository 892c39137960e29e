"""Answers that are kept for a while, and questions that are not asked while Redis is away.

One question is worked on at a time: who asks the same meanwhile gets the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar, cast

from proxy.control.fleet.store import StoreError

_S: Final = 1_000_000_000
#: An answer is kept this long ...
KEPT_NS: Final = 5 * _S
#: ... or so many times as long as it took to make.
KEPT_TIMES: Final = 10
KEPT_MOST: Final = 6
#: After a failure nothing is asked for this long: a page must not wait for each of its parts.
PAUSE_NS: Final = 3 * _S
#: Where the writer is told one of these, reading would fail too.
UNREADABLE: Final = frozenset({"away", "slow", "loading", "auth", "tls", "nonsense", "cluster_down"})
_T = TypeVar("_T")


class Away(NamedTuple):
    """Redis does not do what it is asked; ``since_ns``: of the host's wall clock."""

    reason: str
    since_ns: int


class _Kept(NamedTuple):
    value: Any
    until_ns: int


def fine() -> None:
    """Nothing is wrong."""


class Answers:
    """See the module.  ``trouble``: why this host cannot write, if it cannot."""

    def __init__(
        self,
        unix_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        trouble: Callable[[], Away | None] = fine,
    ) -> None:
        self.trouble = trouble
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self._lock = asyncio.Lock()
        self._answers: dict[Hashable, _Kept] = {}
        self._failed: Away | None = None
        self._again_ns = 0

    @property
    def away(self) -> Away | None:
        """Why questions are not answered; ``None``: they are."""
        trouble = self.trouble()
        return trouble if trouble is not None and trouble.reason in UNREADABLE else self._failed

    async def kept(
        self, question: Hashable, make: Callable[[], Awaitable[_T]], least_ns: int = KEPT_NS
    ) -> _T:
        """The answer to a question, made now or a moment ago; raises what ``make`` raises."""
        async with self._lock:
            kept = self._answers.get(question)
            begun_ns = self._monotonic_ns()
            if kept is not None and begun_ns < kept.until_ns:
                return cast(_T, kept.value)
            with self.asking():
                value = await make()
            now_ns = self._monotonic_ns()
            keep_ns = max(least_ns, KEPT_TIMES * (now_ns - begun_ns))
            fresh = {each: held for each, held in self._answers.items() if now_ns < held.until_ns}
            fresh.pop(question, None)
            fresh[question] = _Kept(value, now_ns + keep_ns)
            while len(fresh) > KEPT_MOST:
                del fresh[next(iter(fresh))]
            self._answers = fresh
            return value

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around questions: ``StoreError`` at once where the last one failed a moment ago."""
        away = self.away
        if away is not None and (away is not self._failed or self._monotonic_ns() < self._again_ns):
            raise StoreError(away.reason)
        try:
            yield
        except StoreError as error:
            since_ns = self._unix_ns() if self._failed is None else self._failed.since_ns
            self._failed = Away(error.reason, since_ns)
            self._again_ns = self._monotonic_ns() + PAUSE_NS
            raise
        self._failed = None
