"""Whether this host wants to be the one who tells.

A host may reach the store and not the people: one node's way out is closed, its resolver is broken.  Were it
to keep the lease, nobody would be told though others could.  So who has been refused for a minute stands back
for a while, as long as there is another host that was not; where all are refused, it is not the host, and the
lease stays where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

_log = logging.getLogger("legato.alerts")

#: Refused for so long, a host stands back.
REFUSED_NS: Final = 60_000_000_000
#: And for so long after it was last seen to be refused.
BACK_NS: Final = 600_000_000_000


class Yielding:
    """See the module.  ``yields``: this host was refused lately, and says so to the others."""

    def __init__(self) -> None:
        self.yields = False
        self._until_ns: int | None = None

    def wants(self, now_ns: int, refused_ns: int, others: Iterable[bool]) -> bool:
        """Whether to take the lease, or renew it.

        ``refused_ns``: how long the oldest message that was tried in vain has waited; ``others``: of each
        other host that was heard lately, whether it yields.
        """
        if refused_ns >= REFUSED_NS:
            self._until_ns = now_ns + BACK_NS
        until_ns, before = self._until_ns, self.yields
        # A clock that was set back must not make it longer.
        self.yields = until_ns is not None and 0 < until_ns - now_ns <= BACK_NS
        wants = not self.yields or all(others)
        if self.yields and not before and not wants:
            _log.warning("people could not be told from here for a minute: another host may tell them")
        return wants
