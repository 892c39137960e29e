"""Which (backend, model, slo) become labels: a client's text never does without a cap.

A model's name becomes a label once a backend took a request for it (a name that is only ever rejected
stands under ``other``), as long as there is room.  Room is kept for ``other`` of each (backend, slo) seen
and for one group of all that fits nowhere, so that the limit holds whatever comes.
"""

from __future__ import annotations

from typing import Final

from proxy.control.settle import GroupKey
from proxy.exporters.catalog import GROUP_LIMIT, OTHER

#: A model's name that is longer or holds unprintable characters is no label.
MODEL_LABEL_MAX: Final = 128
_OVERFLOW: Final = GroupKey(OTHER, OTHER, OTHER)


class GroupCap:
    """Maps keys to the labels under which they are booked; at most ``limit`` different ones ever."""

    def __init__(self, limit: int = GROUP_LIMIT) -> None:
        if limit < 2:
            raise ValueError(f"limit={limit}: at least 2 groups are needed, one of them for {OTHER!r}")
        self._limit = limit
        self._groups: set[GroupKey] = set()
        self._pairs: set[tuple[str, str]] = set()  # (backend, slo) that have or may need an ``other``

    def __len__(self) -> int:
        return len(self._groups)

    def admit(self, key: GroupKey, *, new: bool = True) -> GroupKey:
        """The group under which to book ``key``; with ``new`` false an unknown model is ``other``."""
        if key in self._groups:
            return key
        if new and _is_label(key.model) and self._has_room(key):
            self._groups.add(key)
            self._pairs.add((key.backend, key.slo))
            return key
        return self._other(key)

    def copy(self) -> GroupCap:
        """One to try names on: a picture of the moment must not take places for good."""
        twin = GroupCap(self._limit)
        twin._groups = set(self._groups)
        twin._pairs = set(self._pairs)
        return twin

    def _other(self, key: GroupKey) -> GroupKey:
        other = GroupKey(key.backend, OTHER, key.slo)
        if other not in self._groups and not self._has_room(other):
            other = _OVERFLOW
        self._groups.add(other)
        if other != _OVERFLOW:
            self._pairs.add((other.backend, other.slo))
        return other

    def _has_room(self, key: GroupKey) -> bool:
        """Whether ``key`` fits while every pair can still get its ``other``, and the overflow its place."""
        if key.model == OTHER and (key.backend, key.slo) in self._pairs:
            return True  # its place was kept
        pairs = self._pairs | {(key.backend, key.slo)}
        reserved = sum(GroupKey(backend, OTHER, slo) not in self._groups for backend, slo in pairs)
        if key.model == OTHER:
            reserved -= 1
        if _OVERFLOW not in self._groups:
            reserved += 1
        return len(self._groups) + 1 + reserved <= self._limit


def _is_label(model: str) -> bool:
    return len(model) <= MODEL_LABEL_MAX and model.isprintable()
