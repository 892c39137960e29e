"""Listening sockets: bound once, by the supervisor, and handed down to whoever accepts.

Standard library only: the supervisor imports this and should weigh nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

BACKLOG = 8192


class CannotListen(Exception):
    """An address that cannot be listened on; the message names it and the mend."""


def listen(address: str, setting: str) -> socket.socket:
    """``host:port`` (``:port``: every interface, IPv6 and IPv4) or ``unix:/path`` -> a listening socket.

    ``setting`` is what the user would change (``--listen``).  Raises ``CannotListen``.
    """
    try:
        if address.startswith("unix:"):
            return listen_unix(address[5:])
        host, _, port = address.rpartition(":")
        return _listen_tcp(host.strip("[]"), int(port))
    except socket.gaierror as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}; change {setting}") from error
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {_mend(address, setting, error)}") from error


def _mend(address: str, setting: str, error: OSError) -> str:
    port = address.rpartition(":")[2]
    if error.errno == errno.EADDRINUSE:
        if address.startswith("unix:"):
            return f"another process listens there; end it or change {setting}"
        return f"the port is in use; see who has it with: ss -ltnp 'sport = :{port}', or change {setting}"
    if error.errno == errno.EACCES:
        if address.startswith("unix:"):
            return f"no permission for that folder; change {setting}"
        return f"ports below 1024 need CAP_NET_BIND_SERVICE; change {setting} to a higher one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this host has no such address; use 0.0.0.0:{port} for every interface, or change {setting}"
    return f"{error.strerror}; change {setting}"


def _listen_tcp(host: str, port: int) -> socket.socket:
    if host in ("", "*"):
        try:
            return _bound(socket.AF_INET6, ("::", port))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            return _bound(socket.AF_INET, ("0.0.0.0", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda one: one[0] != socket.AF_INET)  # "localhost" means 127.0.0.1 to most clients
    family, _, _, _, where = found[0]
    return _bound(family, where)


def _bound(family: int, where: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if where[0] == "::" else 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: str) -> socket.socket:
    """Listen on a path; what a dead process left there is taken away.  ``OSError`` if someone listens."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def shown(sock: socket.socket, scheme: str) -> str:
    """Where a socket really listens, as a URL (``http://127.0.0.1:8080``) or ``unix:/path``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{scheme}://{host}:{name[1]}"
