"""Clients of Redis: alone, at a socket, behind Sentinels, a Cluster; the only module that builds them.

No client tries anything again by itself: who writes backs off and writes the same once more, who reads has
an older answer.  RESP2, which every server from 5.0 on speaks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis as Client
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from proxy.settings.redis_url import RedisUrl, parse_redis_url
from proxy.settings.telemetry import Redis

#: Connections of one control process to one server: its writer's, and those of readers of the admin API.
CONNECTIONS_MOST: Final = 16


@dataclass(frozen=True, slots=True)
class Connected:
    """One client; it connects with its first command.  ``close`` ends its connections."""

    client: Client | RedisCluster
    close: Callable[[], Awaitable[None]]

    @property
    def cluster(self) -> bool:
        """Whether keys are spread over several servers."""
        return isinstance(self.client, RedisCluster)


def connect(settings: Redis, name: str) -> Connected:
    """A client for these settings; ``name``: what ``CLIENT LIST`` shows.

    ``ValueError`` for a missing or a bad URL; its text holds nothing of the URL.
    """
    if settings.url is None:
        raise ValueError("redis has no URL")
    url = parse_redis_url(settings.url.get_secret_value())
    options = _options(settings, url, name)
    if url.kind == "cluster":
        return _cluster(url, options)
    if url.kind == "sentinel":
        return _sentinel(url, options)
    options |= {"db": url.db, "max_connections": CONNECTIONS_MOST}
    if url.kind == "unix":
        client = Client(unix_socket_path=url.path, **options)
    else:
        host, port = url.hosts[0]
        client = Client(host=host, port=port, **options)
    return Connected(client, client.aclose)


def _options(settings: Redis, url: RedisUrl, name: str) -> dict[str, Any]:
    """What connections of every kind are made with."""
    timeout_s = settings.timeout / 1e9
    options: dict[str, Any] = {
        "username": url.user,
        "password": url.password,
        "client_name": name,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
    }
    if url.kind != "unix":
        options["socket_keepalive"] = True
    if url.tls:
        tls = settings.tls
        options |= {
            "ssl": True,
            "ssl_ca_certs": tls.ca_file,
            "ssl_certfile": tls.cert_file,
            "ssl_keyfile": tls.key_file,
            "ssl_cert_reqs": "required" if tls.verify else "none",
            "ssl_check_hostname": tls.verify,
        }
    return options


def _cluster(url: RedisUrl, options: dict[str, Any]) -> Connected:
    nodes = [ClusterNode(host, port) for host, port in url.hosts]
    client = RedisCluster(
        startup_nodes=nodes, require_full_coverage=False, max_connections=CONNECTIONS_MOST, **options
    )
    return Connected(client, client.aclose)


def _sentinel(url: RedisUrl, options: dict[str, Any]) -> Connected:
    """User and password are those of Redis; Sentinels are asked without, over TLS where Redis is."""
    plain = {
        name: value
        for name, value in options.items()
        if name.startswith(("socket_", "ssl")) or name in ("retry", "protocol")
    }
    sentinel = Sentinel(url.hosts, sentinel_kwargs=plain)  # type: ignore[no-untyped-call]
    client: Client = sentinel.master_for(url.service, db=url.db, max_connections=CONNECTIONS_MOST, **options)

    async def close() -> None:
        await client.aclose()
        for each in sentinel.sentinels:
            await each.aclose()

    return Connected(client, close)
