"""Connections of one backend: every address of its name, least in flight first, last in first out.

Taking and giving back cost O(1) (O(addresses) where a name has several).  Nothing is retried once a
byte of a request was written; a failed *connect* moves on to the next address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from proxy.clock import monotonic_ns
from proxy.errors import UpstreamError
from proxy.link import BackendNow, BackendSpec, Timeouts
from proxy.relay.shelf import Shelf
from proxy.relay.upstream import Connection
from proxy.tasks import spawn

log = logging.getLogger("legato.worker")

#: An address that refused is left alone this long while others answer.
_RETRY_AFTER_NS: Final = 1_000_000_000


class Address:
    """One address: its idle connections and its load.

    Those that carried a chunked response lie apart: llama.cpp closes them and keeps the others.
    """

    __slots__ = ("down_until_ns", "host", "in_flight", "pool", "port", "removed", "shelves")

    def __init__(self, pool: Pool, host: str, port: int) -> None:
        self.pool = pool
        self.host = host
        self.port = port
        self.in_flight = 0
        self.shelves = (Shelf(), Shelf())
        self.down_until_ns = 0
        self.removed = False

    def idle(self, connection: Connection) -> None:
        """A connection finished its exchange and may carry another."""
        pool = self.pool
        self.in_flight -= 1
        pool.active -= 1
        pool.idle += 1
        connection.busy = False
        if self._retires(connection):
            connection.abort()
        else:
            self.shelves[connection.after_chunks].put(connection)

    def _retires(self, connection: Connection) -> bool:
        max_age = self.pool.spec.max_age_ns
        too_old = max_age and monotonic_ns() - connection.born_ns > max_age
        return bool(self.removed or self.pool.closed or too_old)

    def gone(self, connection: Connection) -> None:
        """A connection was lost or closed, busy or idle."""
        if connection.busy:
            self.in_flight -= 1
            self.pool.active -= 1
            connection.busy = False
        elif connection.idle_since_ns > connection.born_ns:  # else its connect was given up
            self.pool.idle -= 1
            if not self._retires(connection):
                self.shelves[connection.after_chunks].lost(connection, monotonic_ns())

    def take(self, now_ns: int, keep_alive_ns: int) -> Connection | None:
        """An idle connection that is still good."""
        for shelf in self.shelves:
            while (connection := shelf.take(now_ns, keep_alive_ns)) is not None:
                if self._retires(connection):
                    connection.abort()
                    continue
                self.pool.idle -= 1
                self.busy(connection)
                return connection
        return None

    def busy(self, connection: Connection) -> None:
        """Account for a connection that begins an exchange."""
        connection.busy = True
        self.in_flight += 1
        self.pool.active += 1

    def sweep(self, now_ns: int, keep_alive_ns: int) -> None:
        """Close what has been idle too long."""
        for shelf in self.shelves:
            shelf.sweep(now_ns, keep_alive_ns)

    def close(self) -> None:
        """Close the idle connections and let the busy ones end by themselves."""
        self.removed = True
        for shelf in self.shelves:
            shelf.close()


class Origin:
    """What a backend's URL and settings say, and how much it carries."""

    def __init__(self, spec: BackendSpec, timeouts: Timeouts) -> None:
        self.spec = spec
        self.timeouts = timeouts
        url = urlsplit(spec.url)
        self.tls = url.scheme == "https"
        self.host = url.hostname or "localhost"
        self.port = url.port or (443 if self.tls else 80)
        self.authority = url.netloc.rpartition("@")[2].encode("ascii")
        self.base = url.path.rstrip("/").encode("ascii")
        self.rewrite_host = spec.host == "upstream" or (spec.host == "auto" and self.tls)
        self.active = self.idle = self.connecting = 0
        self.up = True
        self.closed = False

    @property
    def full(self) -> bool:
        """No further request fits."""
        return self.active + self.connecting >= self.spec.max_connections


class Pool(Origin):
    """See the module.  One per backend and worker; used from the event loop only."""

    def __init__(self, spec: BackendSpec, timeouts: Timeouts) -> None:
        super().__init__(spec, timeouts)
        self._addresses: list[Address] = []
        self._resolve_at_ns = 0
        self._resolving: asyncio.Task[None] | None = None
        self._turn = 0
        self._ssl = tls_context(spec) if self.tls else None
        if spec.uds is not None:
            self._addresses = [Address(self, spec.uds, 0)]
        elif (literal := _literal(self.host)) is not None:
            self._addresses = [Address(self, literal, self.port)]
        self._fixed = bool(self._addresses)

    # ------------------------------------------------------------------ taking

    def take(self) -> Connection | None:
        """An idle connection of the least loaded address, or ``None``: then ``connect``."""
        now_ns = monotonic_ns()
        if not self._fixed and now_ns >= self._resolve_at_ns:
            self._refresh(now_ns)
        addresses = self._addresses
        if len(addresses) == 1:
            return addresses[0].take(now_ns, self.timeouts.upstream_keepalive_ns)
        if not addresses:
            return None
        return self._ranked(now_ns)[0].take(now_ns, self.timeouts.upstream_keepalive_ns)

    async def connect(self) -> Connection:
        """Open a connection to the least loaded address that answers; ``UpstreamError`` where none does."""
        self.connecting += 1
        try:
            async with asyncio.timeout((self.timeouts.connect_ns or 0) / 1e9 or None):
                connection = await self._connect_any()
        except TimeoutError:
            self.up = False
            raise UpstreamError("timeout_connect", "connect_timeout") from None
        except UpstreamError:
            self.up = False
            raise
        finally:
            self.connecting -= 1
        self.up = True
        return connection

    async def _connect_any(self) -> Connection:
        if not self._addresses:
            self._refresh(monotonic_ns())
            if self._resolving is not None:
                await asyncio.shield(self._resolving)
            if not self._addresses:
                raise UpstreamError("connect_failed", "name_not_resolved")
        code = "connect_failed"
        for address in self._ranked(monotonic_ns()):
            try:
                return await self._connect_one(address)
            except ssl.SSLError:
                code = "tls_failed"
            except OSError as error:
                code = "connection_refused" if isinstance(error, ConnectionRefusedError) else "unreachable"
            address.down_until_ns = monotonic_ns() + _RETRY_AFTER_NS
        raise UpstreamError("connect_failed", code)

    async def _connect_one(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(address)
        tls, name = self._ssl, self._server_name()
        try:
            if self.spec.uds is not None:
                await loop.create_unix_connection(
                    lambda: connection, self.spec.uds, ssl=tls, server_hostname=name
                )
            else:
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=tls, server_hostname=name
                )
        except BaseException:  # cancelled, too
            connection.given_up()
            raise
        address.down_until_ns = 0
        address.busy(connection)
        return connection

    def _server_name(self) -> str | None:
        return (self.spec.tls_server_name or self.host) if self.tls else None

    def _ranked(self, now_ns: int) -> list[Address]:
        """Least in flight first; those that just refused last; ties take turns."""
        addresses = self._addresses
        self._turn += 1
        turn = self._turn % len(addresses)
        rotated = addresses[turn:] + addresses[:turn]
        return sorted(rotated, key=lambda a: (a.down_until_ns > now_ns, a.in_flight))

    # ------------------------------------------------------------------ names

    def _refresh(self, now_ns: int) -> None:
        if self._resolving is None:
            self._resolve_at_ns = now_ns + self.spec.resolve_ns
            self._resolving = spawn(self._resolve(), f"resolve {self.spec.name}")

    async def _resolve(self) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            # What was known stays in use: a name server's bad minute is not the backend's.
            self._resolve_at_ns = monotonic_ns() + _RETRY_AFTER_NS
            log.warning("backend %s: the name %s was not resolved: %s", self.spec.name, self.host, error)
            return
        finally:
            self._resolving = None
        wanted = dict.fromkeys(str(item[4][0]) for item in found)
        known = {address.host: address for address in self._addresses}
        for host, address in known.items():
            if host not in wanted:
                address.close()
        self._addresses = [known.get(host) or Address(self, host, self.port) for host in wanted]

    # ------------------------------------------------------------------ upkeep

    def sweep(self, now_ns: int) -> None:
        """Close connections that have been idle for too long; called about once a second."""
        for address in self._addresses:
            address.sweep(now_ns, self.timeouts.upstream_keepalive_ns)

    def close(self) -> None:
        """No new requests; idle connections close now, busy ones when their exchange ends."""
        self.closed = True
        for address in self._addresses:
            address.close()

    def now(self) -> BackendNow:
        """The pool's state for a beat."""
        return BackendNow(
            self.spec.name, self.up, self.active, self.idle, self.connecting, len(self._addresses)
        )


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def tls_context(spec: BackendSpec) -> ssl.SSLContext:
    """System CAs, or the backend's own; a client certificate where one is set."""
    context = ssl.create_default_context(cafile=spec.tls_ca_file)
    if not spec.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if spec.tls_cert_file is not None:
        context.load_cert_chain(spec.tls_cert_file, spec.tls_key_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
