"""Programs that tests want and Python packages cannot bring: found, or skipped with the reason.

Where everything is supposed to be installed (``CI=true`` in the environment) a missing one is a failure:
a suite that skips in silence has not been run.
"""

from __future__ import annotations

import os
import shutil

import pytest

#: program -> Debian package that brings it (``.ci/debian.sh`` installs them)
PACKAGES = {
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
    "openssl": "openssl",
    "redis-cli": "redis-tools",
}


def need(program: str) -> str:
    """The program's path; skips the test where it is missing, or fails it where ``CI=true``."""
    path = shutil.which(program)
    if path is not None:
        return path
    package = PACKAGES.get(program, program)
    reason = f"{program} is not installed (Debian: apt-get install {package}; or bash .ci/debian.sh)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
