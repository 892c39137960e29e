"""Whose numbers an answer shows: this host's, or those of all hosts that share a Redis."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from fastapi import Query
from msgspec import Meta, Struct

from proxy.control.core import Controller
from proxy.control.fleet.reader import Reader
from proxy.control.record import iso_time
from proxy.control.schema import ApiError

Scope = Literal["fleet", "host"]


class Degraded(Struct, frozen=True):
    """Redis does not do what it is asked: all hosts cannot be shown, or this one's latest cannot."""

    reason: str
    since: Annotated[str, Meta(description="when this host first noticed")]


class Share(NamedTuple):
    """What an answer says of its scope.  ``instances``: control processes that wrote within the window."""

    scope: Scope = "host"
    instances: int = 1
    degraded: Degraded | None = None


HERE: Final = Share()
DEGRADED: Final = "where all hosts were meant: why these are this host's numbers, or lack its latest"

ScopeQuery = Annotated[
    Scope | None,
    Query(
        description="`fleet`: all hosts that share the configured Redis, up to some seconds ago; `host`: "
        "this one. Without it `fleet` where Redis is configured and a window is given. Where Redis cannot be "
        "asked, the answer is this host's, and says so in `scope` and `degraded`.",
    ),
]


def reader_of(controller: Controller, scope: Scope | None, window: str | None = "") -> Reader | None:
    """Whom to ask for the fleet, ``None``: this host is meant; ``ApiError`` 422 where there is no fleet."""
    reader = controller.reader
    if scope == "fleet" and reader is None:
        raise ApiError(
            422, "scope: 'fleet' needs Redis, and none is configured", "set redis.url, or ask for scope=host"
        )
    if scope == "fleet" and window is None:
        raise ApiError(
            422,
            "scope: 'fleet' needs a window",
            "give a window, for example window=1h, or ask for scope=host",
        )
    return None if scope == "host" or window is None else reader


def of_all(reader: Reader, instances: int = 0) -> Share:
    """The numbers are those of all hosts."""
    return Share("fleet", instances, None if reader.behind is None else _degraded(*reader.behind))


def instead(reader: Reader, reason: str) -> Share:
    """This host's numbers stand in for the fleet's."""
    away = reader.away
    since_ns = reader.now_ns() - reader.offset_ns if away is None else away.since_ns
    return Share("host", 1, _degraded(reason, since_ns))


def _degraded(reason: str, since_ns: int) -> Degraded:
    return Degraded(reason, iso_time(since_ns))
