"""What every notifier is: it tells one receiver one message, once, and says what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from msgspec import Struct

from proxy.control.alerts.notice import Message, Notice

Kind = Literal["webhook", "slack", "alertmanager", "log"]


class Outcome(Struct, frozen=True):
    """What came of one attempt.

    ``said``: our own words for it, never a part of an answer or of a URL; ``again``: another attempt may
    succeed; ``wait_ns``: how long the receiver asked us to leave it alone.
    """

    taken: bool
    said: str
    again: bool = False
    wait_ns: int | None = None


class Origin(Struct, frozen=True):
    """Who tells: the host's name, and Legato's version."""

    instance: str
    version: str


class Notifier(ABC):
    """One who is told.  ``where``: its host, or what stands for one; never a path, a query or a user."""

    kind: ClassVar[Kind]
    #: Whether it forgets what it is not told of again (``remind``).
    forgets: ClassVar[bool] = False

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        self.where = where

    @abstractmethod
    async def tell(self, message: Message) -> Outcome:
        """One attempt, no longer than the notifier's timeout.  Raises nothing but errors of ours."""

    async def remind(self, notices: Sequence[Notice]) -> Outcome:
        """Say again that these fire."""
        raise NotImplementedError
