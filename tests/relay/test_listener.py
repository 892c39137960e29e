"""What is taken from uvicorn's inside is checked before anything listens."""

from __future__ import annotations

import pytest

from proxy.relay import listener


def test_the_pinned_uvicorn_fits() -> None:
    listener.check_seams()


def test_another_one_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_SEAMS", ("_start_asgi_task", "_gone_in_1_0"))
    with pytest.raises(RuntimeError, match=r"_gone_in_1_0.*pip install 'uvicorn\[standard\]~=0\.54\.0'"):
        listener.check_seams()
