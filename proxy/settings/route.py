"""Which backend serves what: routes, splits over several backends, copies for a shadow."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from proxy.settings.base import Match, Settings
from proxy.settings.types import (
    DialectName,
    Header,
    Name,
    PositiveDuration,
    Ratio,
    Size,
    Switch,
    Weight,
)

_S = 1_000_000_000
_MIB = 2**20


class Sticky(Settings):
    """How a session is told, whose requests shall all go to one backend: by one of these."""

    header: Header = Field(default=None, description="By this header's value.")
    cookie: str | None = Field(default=None, description="By the value of the cookie of this name.")
    field: Literal["user", "safety_identifier", "prompt_cache_key"] | None = Field(
        default=None,
        description="By this key of the JSON body, a text or whole number. Bodies over 512 KiB are looked "
        "at near their two ends, compressed ones (`Content-Encoding`) not at all: such requests are drawn.",
    )
    client: Literal["address"] | None = Field(
        default=None,
        description="By the client's address; behind `trusted_proxies` by the last one in "
        "`X-Forwarded-For` that is none of theirs.",
    )

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """All that are given, as (kind, name)."""
        given = ((kind, getattr(self, kind)) for kind in ("header", "cookie", "field", "client"))
        return tuple((kind, name) for kind, name in given if name is not None)


class Force(Settings):
    """Who may choose the backend of a request."""

    header: Header = Field(
        default=None,
        description="A header whose value names one of the split's backends (`x-legato-backend`), of "
        "weight 0 too; other values mean nothing. Such requests are no part of the split's statistics, and "
        "never fail over.",
    )


class Mirror(Settings):
    """Copies of requests for a shadow backend, whose answers are measured and thrown away.

    They are the same requests: what one of them changes on a server (`POST`, tools), its copy changes too.
    """

    backend: Name | None = Field(
        default=None, description="The shadow backend; without it nothing is copied."
    )
    share: Ratio = Field(default=1.0, description="Of this route's requests, drawn at random.")
    most: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Copies in flight at once in each worker; beyond them requests are not copied.",
    )
    body_limit: Size = Field(default=_MIB, description="A request with a larger body is not copied.")
    timeout: PositiveDuration = Field(
        default=300 * _S, description="A copy that takes longer is given up; at most 15m."
    )
    credentials: Literal["keep", "drop"] = Field(
        default="keep",
        description="`keep`: copies carry `Authorization`, cookies and API keys as the requests do; `drop`: "
        "these headers are left out of copies (a key in the query string stays).",
    )


class Route(Settings):
    """Which backend serves what; the first match wins."""

    match: Match = Field(default=Match(), description="What this route is for; without it, everything.")
    backend: Name | None = Field(default=None, description="The backend's name.")
    split: dict[Name, Weight] | None = Field(
        default=None,
        description="Instead of `backend`: several of them with weights, whole numbers. Each gets its "
        "weight's share of their sum, which need not be 100; weight 0 gets nothing but what is forced. "
        "Raising one weight moves sessions to that backend only.",
    )
    sticky: Sticky = Field(
        default=Sticky(),
        description="With a `split`: requests of one session go to one backend, on every worker and host. "
        "Without it, or where a request has no key (of at most 4 KiB), each request is drawn at random. Of "
        "keys only keyed 64-bit hashes are kept.",
    )
    force: Force = Field(default=Force(), description="With a `split`: the client may choose the backend.")
    failover: Switch = Field(
        default=False,
        description="With a `split`: where no connection to the backend is made, another one of the split is "
        "taken (none of weight 0, and nothing was sent yet). The request stays assigned to the first.",
    )
    seed: SecretStr | None = Field(
        default=None,
        description="With a `split`: what the hash is keyed by, the same on all hosts. Without it the names "
        "of the split's backends: naming other backends then deals all sessions anew. Whoever knows it can "
        "try out which session a guessed key would be: the API does not show it.",
    )
    name: Name | None = Field(
        default=None,
        description="With a `split`: what its assignments are counted under. Without it the names of the "
        "backends, joined by `+`.",
    )
    mirror: Mirror = Field(
        default=Mirror(),
        description="Send copies to a shadow backend too; no client waits for it, and copies are in no SLO.",
    )
    dialect: DialectName | None = Field(
        default=None,
        description="What the streams of this route speak; without it the path and the first event tell.",
    )

    @property
    def arms(self) -> tuple[tuple[str, int], ...]:
        """(backend, weight), by name: one of weight 1 where there is no split."""
        return tuple(sorted((self.split or {self.backend or "": 1}).items()))

    @property
    def target(self) -> str:
        """The backend's name, by either way of saying it; of several the one with the most weight."""
        return max(self.arms, key=lambda arm: arm[1])[0]

    @property
    def all_names(self) -> str:
        """The split's backends in one word."""
        return "+".join(name for name, _ in self.arms)
