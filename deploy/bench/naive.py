"""What one writes first: FastAPI, httpx and a StreamingResponse.  The bench's yardstick, no recommendation.

python -m deploy.bench.naive PORT UPSTREAM_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

SKIPPED = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"}


def create_app(upstream: str) -> FastAPI:
    """The whole proxy."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=upstream, timeout=None, limits=limits) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(path: str, request: Request) -> StreamingResponse:
        client: httpx.AsyncClient = request.app.state.client
        headers = [(name, value) for name, value in request.headers.items() if name not in SKIPPED]
        body = await request.body()
        asked = client.build_request(request.method, "/" + path, headers=headers, content=body)
        answer = await client.send(asked, stream=True)
        kept = {
            name: value for name, value in answer.headers.items() if name not in {*SKIPPED, "date", "server"}
        }
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers=kept, background=BackgroundTask(answer.aclose)
        )

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        backlog=8192,
        timeout_keep_alive=120,
    )
