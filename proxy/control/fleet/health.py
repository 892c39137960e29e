"""Whether Redis does what it is asked, told once per change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal

_log = logging.getLogger("legato.fleet")

Status = Literal["starting", "ok", "degraded"]
#: The first wait after a failure; each further one is twice as long, up to the last: Redis is written to
#: within seconds of its return.
BACKOFF_NS: Final = 200_000_000
BACKOFF_MOST_NS: Final = 2_000_000_000
#: Another reason for the same trouble is told no sooner than this after the last.
_TOLD_NS: Final = 30_000_000_000

_MEANINGS: Final = {
    "away": "it cannot be reached",
    "slow": "it does not answer in time",
    "full": "its memory is full and its policy evicts nothing",
    "read_only": "it is a replica, or refuses writes",
    "loading": "it is busy",
    "no_replicas": "too few of its replicas are there",
    "misconfigured": "it refuses writes since it cannot save to its disk",
    "auth": "it does not accept the user or the password",
    "forbidden": "its user may not do what is needed",
    "wrong_type": "something else stands at one of our keys",
    "cluster_down": "the cluster does not serve all of its slots",
    "tls": "TLS failed: certificate, name or version",
    "nonsense": "what it says is not Redis's protocol",
    "refused": "it refuses a command",
}


class Health:
    """Status, reason and since when; and when to try again."""

    def __init__(self, unix_ns: Callable[[], int], monotonic_ns: Callable[[], int]) -> None:
        self._unix_ns = unix_ns
        self._monotonic_ns = monotonic_ns
        self.status: Status = "starting"
        self.reason: str | None = None
        self.since_unix_ns = unix_ns()
        self.failures = 0
        self.try_at_ns = 0  # monotonic
        self._wait_ns = BACKOFF_NS
        self._told: str | None = None
        self._told_at_ns = 0

    @property
    def waiting(self) -> bool:
        """Whether it is too early to try again."""
        return self._monotonic_ns() < self.try_at_ns

    def failed(self, reason: str) -> None:
        """It did not work."""
        now_ns = self._monotonic_ns()
        self.failures += 1
        self.try_at_ns = now_ns + self._wait_ns
        self._wait_ns = min(2 * self._wait_ns, BACKOFF_MOST_NS)
        began = self.status != "degraded"
        if began:
            self.status, self.since_unix_ns = "degraded", self._unix_ns()
        self.reason = reason
        if began or (reason != self._told and now_ns - self._told_at_ns >= _TOLD_NS):
            self._told, self._told_at_ns = reason, now_ns
            meaning = _MEANINGS.get(reason, "an error of ours")
            _log.warning("Redis: %s (%s); what is settled waits here", reason, meaning)

    def worked(self) -> None:
        """It did."""
        self._wait_ns = BACKOFF_NS
        self.try_at_ns = 0
        if self.status == "degraded":
            lasted_s = (self._unix_ns() - self.since_unix_ns) / 1e9
            _log.info("Redis is back after %.1f s: all that waited is written", lasted_s)
        if self.status != "ok":
            self.status, self.since_unix_ns = "ok", self._unix_ns()
        self.reason = self._told = None
