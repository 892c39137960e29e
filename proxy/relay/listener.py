"""The data listener's sockets: opened on inherited descriptors, TLS with certificates that can change."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.link import Table

if TYPE_CHECKING:
    from uvicorn.config import Config

    from proxy.relay.downstream import ClientProtocol
    from proxy.relay.worker import Worker

log = logging.getLogger("legato.worker")

_BACKLOG: Final = 8192
#: What ``downstream.py`` takes from uvicorn beside its public face.
_SEAMS: Final = (
    "connection_made",
    "pause_writing",
    "resume_writing",
    "_start_asgi_task",
    "_unset_keepalive_if_required",
)
_CYCLE: Final = frozenset(
    (
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    )
)


def check_seams() -> None:
    """Refuse to start on a uvicorn whose inside is another one than it was written for: ``RuntimeError``."""
    missing = [name for name in _SEAMS if not hasattr(HttpToolsProtocol, name)]
    missing += sorted(_CYCLE ^ (inspect.signature(RequestResponseCycle).parameters.keys()))
    if missing:
        raise RuntimeError(
            f"uvicorn {uvicorn.__version__} is built differently ({', '.join(missing)}): "
            "install the one that Legato pins, pip install 'uvicorn[standard]~=0.54.0'"
        )


_Seen = tuple[int, int, int]


class Listeners:
    """Accepts for one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._servers: list[asyncio.Server] = []
        self._tls: ssl.SSLContext | None = None
        self._decided = False
        self._files: tuple[str, str | None] | None = None  # the certificate that is loaded
        self._seen: tuple[_Seen, _Seen] | None = None  # its files as they were then

    def certificates(self, table: Table) -> None:
        """Load the listener's certificate, anew where it was written anew: handshakes from now on use it.

        One that cannot be read any more stays as it was loaded: tables come with each change of weights, and
        these must not wait for it.  Raises ``OSError`` (``ssl.SSLError`` included) where the table names
        other files that cannot be used.
        """
        if table.tls_cert_file is None:
            return
        if self._tls is None:
            if self._decided:
                raise ValueError("TLS cannot be switched on by a reload: restart")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls.set_alpn_protocols(["http/1.1"])
        cert, key = files = (table.tls_cert_file, table.tls_key_file)
        try:
            seen = (_seen(cert), _seen(key or cert))
            if (files, seen) == (self._files, self._seen):
                return
            # Tried aside first: a half-replaced pair must not spoil the context that serves.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
            self._tls.load_cert_chain(cert, key)
        except OSError as error:
            if files != self._files:
                raise
            log.error("worker %d: the certificate of before stays: %s", self._worker.number, error)
        else:
            self._files, self._seen = files, seen

    async def open(
        self, config: Config, protocol: type[ClientProtocol], sockets: list[socket.socket]
    ) -> None:
        """Accept on every socket."""
        self._decided = True
        loop = asyncio.get_running_loop()
        state = self._worker.state

        def make() -> Any:
            return protocol(config=config, server_state=state, app_state={})

        for sock in sockets:
            sock.setblocking(False)
            self._servers.append(
                await loop.create_server(make, sock=sock, ssl=self._tls, backlog=_BACKLOG)
                if sock.family != socket.AF_UNIX
                else await loop.create_unix_server(make, sock=sock, ssl=self._tls, backlog=_BACKLOG)
            )

    def close(self) -> None:
        """Accept nothing more."""
        for server in self._servers:
            server.close()


def _seen(path: str) -> _Seen:
    """What tells that a file was replaced or written: time, size, inode."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
