"""A missing program skips a test, and fails it where everything is supposed to be installed."""

from __future__ import annotations

import pytest
from _pytest.outcomes import Failed, Skipped

from tests.helpers.tools import need


def test_a_program_that_is_there_is_found() -> None:
    assert need("sh").endswith("/sh")


def test_a_missing_program_skips_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "false")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Skipped, match=r"promtool is not installed .*apt-get install prometheus"):
        need("promtool")


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Failed, match="openssl is not installed"):
        need("openssl")
