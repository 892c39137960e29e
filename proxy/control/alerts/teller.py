"""Handing what is due to those who tell people, and in a fleet noting what they took.

A message counts as told once it was handed over; that a notifier took it is written for the other hosts when
the notifier says so.  A host that takes over tells each notifier what is not written: what was on its way
when the other died is told again, nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from proxy.control.alerts.exchange import sent_field, sent_fields
from proxy.control.alerts.life import Alert, Life, Said, message_id
from proxy.control.alerts.notice import Message, Notice

if TYPE_CHECKING:
    from proxy.control.notify.sender import NotifierState

#: Where there is no notifier: the message counts as taken by it.
NOBODY: Final = ""
_NEWS_MOST: Final = 10_000


class Outbox(Protocol):
    """Those who tell people (``notify.sender.Sender``); nothing here waits."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def send(self, message: Message, only: Iterable[str] | None = None) -> None: ...
    def hold(self, notices: Iterable[Notice]) -> None: ...
    def states(self) -> list[NotifierState]: ...
    @property
    def refused_ns(self) -> int: ...


class Teller:
    """See the module.  ``names``: of the notifiers; ``outbox``: ``None`` where nobody is told."""

    def __init__(self, outbox: Outbox | None, unix_ns: Callable[[], int]) -> None:
        self.outbox = outbox
        self.holding = False  # this host tells
        self._unix_ns = unix_ns
        self._news: dict[str, bytes] = {}
        self._sent: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Of those who are told, or ``NOBODY``."""
        names = () if self.outbox is None else self.outbox.names
        return names or (NOBODY,)

    @property
    def refused_ns(self) -> int:
        """How long the oldest message that was tried in vain has waited."""
        return 0 if self.outbox is None else self.outbox.refused_ns

    # ------------------------------------------------------------ telling

    def tell(self, life: Life, now_ns: int, repeat_ns: int, said: Said, *, alone: bool = False) -> None:
        """Hand over everything that is due."""
        for message in life.due(now_ns, repeat_ns, said):
            self._hand_over(message)
            life.told(message, now_ns)
            if alone:
                for notice in message.notices:
                    if (alert := life.find(notice.incident)) is not None:
                        alert.alone = True
        self._hold(life, now_ns, said)

    def tell_ends(self, life: Life, now_ns: int, said: Said) -> None:
        """The same of the ends of what this host told while it was alone: nobody else knows of it."""
        for message in life.due(now_ns, 0, said):
            own = [notice for notice in message.notices if _alone(life.find(notice.incident))]
            if message.state == "resolved" and own:
                part = replace(message, id=message_id(own), notices=tuple(own))
                self._hand_over(part)
                life.told(part, now_ns)

    def release(self) -> None:
        """Another host tells from now on."""
        if self.holding and self.outbox is not None:
            self.outbox.hold(())
        self.holding = False

    def _hold(self, life: Life, now_ns: int, said: Said) -> None:
        self.holding = True
        if self.outbox is not None:
            # What was told before something explained it fires on all the same.
            told = [alert for alert in life.firing() if alert.number]
            self.outbox.hold(life.notice(alert, now_ns, said) for alert in told)

    def _hand_over(self, message: Message) -> None:
        if self.outbox is None or self.names == (NOBODY,):
            self.taken(NOBODY, message)
            return
        wanted: dict[tuple[int, ...], list[str]] = {}
        for name in self.names:
            left = tuple(
                at for at, each in enumerate(message.notices) if _field(each, name) not in self._sent
            )
            if left:
                wanted.setdefault(left, []).append(name)
        for left, names in wanted.items():
            if len(left) == len(message.notices) and len(names) == len(self.names):
                self.outbox.send(message)
            else:
                notices = tuple(message.notices[at] for at in left)
                self.outbox.send(replace(message, id=message_id(notices), notices=notices), names)

    # ------------------------------------------------------------ what was taken

    def taken(self, name: str, message: Message) -> None:
        """A notifier took it."""
        now = str(self._unix_ns()).encode()
        if len(self._news) < _NEWS_MOST:
            self._news |= dict.fromkeys(sent_fields(message, name), now)

    def told(self, name: str, message: Message) -> bool:
        """Whether this notifier took all of it from another host: who waited for it need not tell it."""
        return all(_field(notice, name) in self._sent for notice in message.notices)

    def news(self) -> dict[str, bytes]:
        """What is to be written for the others; ``written`` when it was."""
        return dict(self._news)

    def written(self, news: Mapping[str, bytes]) -> None:
        """The others know."""
        for field in news:
            self._news.pop(field, None)

    def forget_news(self) -> None:
        """There is nobody to know."""
        self._news.clear()

    def note(self, life: Life, sent: Mapping[str, bytes]) -> set[str]:
        """What any host has told, as it is written; the incidents that are told to be over."""
        self._sent, over = set(), set()
        times: dict[tuple[str, str, int], dict[str, int]] = {}
        known = {alert.incident for alert in (*life.alerts.values(), *life.over.values())}
        for field, value in {**sent, **self._news}.items():
            incident, state, digits, name = [*field.split(" ", 3), "", "", ""][:4]
            if not digits.isdecimal() or not value.isdigit():
                continue
            if state == "resolved":
                over.add(incident)
            if incident in known:
                self._sent.add(field)
                times.setdefault((incident, state, int(digits)), {})[name] = int(value)
        for (incident, state, number), by_name in times.items():
            alert = life.find(incident)
            # Told to all who are told here, or to whomever, where nobody is.
            if alert is None or not (self.names == (NOBODY,) or set(self.names) <= by_name.keys()):
                continue
            if state == "resolved":
                alert.told_end = True
            elif number >= alert.number:
                alert.number, alert.told_ns = number + 1, max(by_name.values())
        return over


def _alone(alert: Alert | None) -> bool:
    return alert is not None and alert.alone


def _field(notice: Notice, name: str) -> str:
    return sent_field(notice.incident, notice.state, notice.number, name)
