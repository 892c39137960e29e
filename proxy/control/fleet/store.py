"""How a store says that it could not; who reads or writes needs to know no more of Redis than this."""

from __future__ import annotations


class StoreError(Exception):
    """Redis did not do what it was asked; ``reason`` is one word (``redis_store.REASONS``), never data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
