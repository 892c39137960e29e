"""The data listener's sockets: opened on inherited descriptors, TLS with certificates that can change."""

from __future__ import annotations

import asyncio
import inspect
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


class Listeners:
    """Accepts for one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._servers: list[asyncio.Server] = []
        self._tls: ssl.SSLContext | None = None
        self._decided = False

    def certificates(self, table: Table) -> None:
        """Load the listener's certificate, or load it anew: handshakes from now on use it.

        Raises ``OSError`` (``ssl.SSLError`` included) where the files cannot be used.
        """
        if table.tls_cert_file is None:
            return
        if self._tls is None:
            if self._decided:
                raise ValueError("TLS cannot be switched on by a reload: restart")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
            self._tls.set_alpn_protocols(["http/1.1"])
        # Tried aside first: a half-replaced pair must not spoil the context that serves.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(table.tls_cert_file, table.tls_key_file)
        self._tls.load_cert_chain(table.tls_cert_file, table.tls_key_file)

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
