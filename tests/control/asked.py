"""The admin application asked in this process: any address, Host and token that a test wants to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from fastapi import APIRouter
from starlette.testclient import TestClient

from proxy.control.api import create_app
from proxy.control.core import Controller
from proxy.control.guard import Changes, Guard
from proxy.control.stages import Stages


class _Parts:
    """Stands in for ``Stages`` where routes are asked for."""

    def __init__(self, routers: Callable[[Guard, Changes], list[APIRouter]]) -> None:
        self.routers = routers


def asking(
    control: Controller,
    routers: Callable[[Guard, Changes], list[APIRouter]],
    *,
    token: str | None = None,
    write_token: str | None = None,
    address: str = "127.0.0.1",
    host: str = "127.0.0.1:9464",
    sends: str | None = None,
) -> TestClient:
    """A client at ``address`` that asks by the name ``host`` and sends that token."""
    app = create_app(
        control,
        config=dict,
        token=lambda: token,
        write_token=lambda: write_token,
        stages=cast(Stages, _Parts(routers)),
    )
    headers = {} if sends is None else {"authorization": f"Bearer {sends}"}
    return TestClient(
        app,
        base_url=f"http://{host}",
        client=(address, 50_000),
        headers=headers,
        raise_server_exceptions=False,
    )


def wrong(answer: Any) -> tuple[int, str, str]:
    """Status, message and mend of a refusal."""
    told = answer.json()["error"]
    assert told["status"] == answer.status_code
    return answer.status_code, told["message"], told["mend"]
