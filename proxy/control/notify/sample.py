"""The sample by which people try a notifier: an alert that fires, marked as a test, and its end."""

from __future__ import annotations

import uuid
from typing import Final

from msgspec import structs

from proxy.control.alerts.notice import Message, Notice, Severity
from proxy.control.notify.base import Notifier, Origin, Outcome

RULE: Final = "test"
SUMMARY: Final = "This is a test of Legato's alerts: nothing is wrong, and nothing is to be done."


def sample(origin: Origin, at_unix_ns: int, severity: Severity) -> tuple[Message, Message]:
    """That it fires, and that it is over."""
    incident = uuid.uuid4().hex
    notice = Notice(
        key=f"test|{incident}",
        incident=incident,
        number=0,
        state="firing",
        rule=RULE,
        severity=severity,
        labels={"test": "true"},
        summary=SUMMARY,
        value=1.0,
        threshold=0.0,
        figures={},
        since_unix_ns=at_unix_ns,
        fired_unix_ns=at_unix_ns,
        resolved_unix_ns=None,
        at_unix_ns=at_unix_ns,
        host=origin.instance,
    )
    over = structs.replace(notice, state="resolved", value=0.0, resolved_unix_ns=at_unix_ns + 1_000_000)
    return (
        Message(f"{incident}-firing", RULE, "firing", (notice,)),
        Message(f"{incident}-resolved", RULE, "resolved", (over,)),
    )


async def rehearse(
    notifier: Notifier, origin: Origin, at_unix_ns: int, severity: Severity = "ticket"
) -> tuple[Outcome, ...]:
    """Tell a notifier the sample, once: what came of each message.

    What resolves by itself is not told the end: Alertmanager waits a while (``group_wait``) before it tells
    anybody, and what is over by then it tells nobody.
    """
    firing, over = sample(origin, at_unix_ns, severity)
    first = await notifier.tell(firing)
    if not first.taken or notifier.forgets:
        return (first,)
    return (first, await notifier.tell(over))
