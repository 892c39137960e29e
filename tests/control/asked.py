"""The admin application asked in this process: any address, Host and token that a test wants to be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from proxy.control.api import create_app
from proxy.control.core import Controller
from proxy.control.guard import Changes, Guard
from proxy.control.stages import Stages
from tests.helpers.procs import eventually


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
    app = _app(control, routers, token, write_token)
    headers = {} if sends is None else {"authorization": f"Bearer {sends}"}
    return TestClient(
        app,
        base_url=f"http://{host}",
        client=(address, 50_000),
        headers=headers,
        raise_server_exceptions=False,
    )


def _app(
    control: Controller,
    routers: Callable[[Guard, Changes], list[APIRouter]],
    token: str | None,
    write_token: str | None,
) -> FastAPI:
    return create_app(
        control,
        config=dict,
        token=lambda: token,
        write_token=lambda: write_token,
        stages=cast(Stages, _Parts(routers)),
    )


@contextmanager
def listening(
    control: Controller,
    routers: Callable[[Guard, Changes], list[APIRouter]],
    *,
    token: str | None = None,
    write_token: str | None = None,
) -> Iterator[str]:
    """The same served over HTTP in a thread, for commands; its URL."""
    app = _app(control, routers, token, write_token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", proxy_headers=False))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(5)


def wrong(answer: Any) -> tuple[int, str, str]:
    """Status, message and mend of a refusal."""
    told = answer.json()["error"]
    assert told["status"] == answer.status_code
    return answer.status_code, told["message"], told["mend"]
