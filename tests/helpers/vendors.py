"""The vendors' own client libraries, towards a scripted server and towards Legato in front of it.

What a library yields must not depend on which of the two it talks to; ``record_of`` is what Legato noted.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

from tests.helpers.procs import Legato, eventually

#: A request with this header is found again by it.
REQUEST_ID = "x-request-id"


def library(name: str) -> Any:
    """The module of that name; without it the test module is skipped, or fails where ``CI=true``."""
    try:
        return importlib.import_module(name)
    except ImportError:
        reason = f"{name} is not installed (pip install -e .[dev])"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)


def record_of(legato: Legato, request_id: str) -> dict[str, Any]:
    """The one record of the request with that id, from the admin API; waits for it."""

    def look() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = legato.json(f"/api/requests?request_id={request_id}")["requests"]
        return found

    (record,) = eventually(look, what=f"the record of {request_id}", every_s=0.02)
    return record
