"""How a store says that it could not; who reads or writes needs to know no more of Redis than this."""

from __future__ import annotations

from proxy.control.shared import Unshared


class StoreError(Unshared):
    """Redis did not do what it was asked; ``reason`` is one word (``redis_store.REASONS``), never data."""
