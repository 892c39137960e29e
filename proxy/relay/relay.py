"""The data plane's application: every request becomes an ``Exchange``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from proxy.relay.call import read_call
from proxy.relay.exchange import Exchange
from proxy.relay.forward import target_path
from proxy.tasks import report

if TYPE_CHECKING:
    from proxy.relay.client import Client
    from proxy.relay.worker import Worker


class Relay:
    """Serves every request of the data listener."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI entry.  Bytes travel by the client's extension, not by ``receive`` and ``send``."""
        client: Client = scope["extensions"]["legato.client"]
        worker = self.worker
        path = target_path(client.target)
        method, asks = client.method.decode("ascii"), worker.traces.asks
        routes = worker.routes
        call = read_call(method, path, client.fields, client.body, asks, routes.keyed)
        arm = routes.choose(call, client.fields, client.peer)
        if arm is None:
            worker.refuse(client, "no_backend")
            return
        recorded = not routes.excluded(path)
        if arm.assignment is not None and recorded:
            worker.assigned.add(arm.assignment)
        exchange = Exchange(worker, client, call, arm, recorded=recorded)
        client.listener = exchange
        worker.exchanges.add(exchange)
        if recorded:
            worker.begun.count()
        try:
            await exchange.run()
        except Exception as error:
            exchange.abandon("self")
            worker.count("relay_error")
            report("a request", error)
        finally:
            client.listener = None
            worker.exchanges.discard(exchange)
            if exchange.end is None:
                exchange.abandon("self")
            worker.ended(exchange)


class DataApp(FastAPI):
    """FastAPI, with the data path answered ahead of its middleware."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(openapi_url=None)
        self.relay = relay

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self.relay(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
