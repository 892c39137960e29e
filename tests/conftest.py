"""What holds for every test."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

# How long one example takes says how busy the machine is, and nothing about the code.
settings.register_profile("legato", deadline=None)
# New examples are searched for where somebody can look into what they find, not where a change is judged.
settings.register_profile("legato-ci", settings.get_profile("legato"), derandomize=True)
settings.load_profile("legato-ci" if os.environ.get("CI") == "true" else "legato")


def pytest_collection_finish() -> None:
    """What thousands of tests hold is looked at by no collection that a test has to wait for."""
    gc.collect()
    gc.freeze()
