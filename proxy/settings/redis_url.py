"""The URL of Redis, in all the forms that settings take.  No message here ever holds a part of it.

    redis://[user:password@]host[:6379][/db]         rediss:// for TLS
    unix://[user:password@]/path[?db=N]
    redis+sentinel://[user:password@]host[:26379],host[:26379]/SERVICE[/db]         rediss+sentinel://
    redis+cluster://[user:password@]host[:6379],host[:6379]                         rediss+cluster://

User and password are percent-encoded; a password alone is written ``:password@``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

Kind = Literal["standalone", "unix", "sentinel", "cluster"]
_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PORTS: dict[Kind, int] = {"standalone": 6379, "unix": 0, "sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DB = re.compile(r"[0-9]{1,4}", re.ASCII)
_SERVICE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ENCODED = "in a user or password, the characters / ? # % @ and : are written %2F %3F %23 %25 %40 and %3A"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """One URL, taken apart.  ``hosts`` is empty for a socket, ``path`` for everything else."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    user: str | None = None
    password: str | None = None

    @property
    def local(self) -> bool:
        """Nothing of it leaves this host."""
        return all(_is_loopback(host) for host, _ in self.hosts)

    def shown(self) -> str:
        """The URL for people: user and hosts, the password as ``***``."""
        scheme = next(name for name, found in _SCHEMES.items() if found == (self.kind, self.tls))
        secret = "" if self.password is None else ":***"
        who = f"{self.user or ''}{secret}@" if self.user or secret else ""
        if self.kind == "unix":
            return f"{scheme}://{who}{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        tail = (f"/{self.service}" if self.service else "") + (f"/{self.db}" if self.db else "")
        return f"{scheme}://{who}{hosts}{tail}"


def parse_redis_url(text: str) -> RedisUrl:
    """Take a URL apart.  Raises ``ValueError`` with the mend, which shows nothing of the URL."""
    scheme, found, rest = text.strip().partition("://")
    if not found or scheme.lower() not in _SCHEMES:
        raise ValueError(f"the URL begins with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    kind, tls = _SCHEMES[scheme.lower()]
    if re.search(r"\s", rest):
        raise ValueError(f"a URL has no spaces; {_ENCODED}")
    rest, _, query = rest.partition("?")
    if "#" in rest + query or (query and kind != "unix"):
        raise ValueError(f"the URL has no '?' or '#': options are settings of their own; {_ENCODED}")
    authority, _, path = rest.partition("/")
    who, at, where = authority.rpartition("@")
    if "@" in path:
        raise ValueError(f"no '@' stands behind the hosts; {_ENCODED}")
    user, password = _credentials(who) if at else (None, None)
    if kind == "unix":
        if where or not path or path.endswith("/"):
            raise ValueError("a socket's whole path is needed, for example unix:///run/redis/redis.sock")
        return RedisUrl(kind, tls, path=f"/{path}", db=_query_db(query), user=user, password=password)
    hosts = tuple(_host(part, _PORTS[kind]) for part in where.split(","))
    service, db = _service(kind, path)
    if kind == "standalone" and len(hosts) > 1:
        raise ValueError(
            "one host only: several are redis+sentinel://host,host/SERVICE or redis+cluster://host,host"
        )
    return RedisUrl(kind, tls, hosts, service=service, db=db, user=user, password=password)


def _credentials(text: str) -> tuple[str | None, str | None]:
    user, colon, password = text.partition(":")
    if not (user or password):
        raise ValueError("the '@' stands behind a user and a password, user:password@, or behind :password@")
    return unquote(user) or None, unquote(password) if colon and password else None


def _host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"hosts are written host:port, several with commas between them; {_ENCODED}")
    port = int(found[2]) if found[2] else default_port
    if not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return found[1].strip("[]"), port


def _service(kind: Kind, path: str) -> tuple[str, int]:
    """What stands behind the hosts: the sentinels' service and the database."""
    parts = [part for part in path.rstrip("/").split("/") if path]
    if kind == "sentinel":
        if not parts or not _SERVICE.fullmatch(parts[0]):
            raise ValueError(
                "the sentinels' name of the service is needed: redis+sentinel://host,host/mymaster"
            )
        service, parts = parts[0], parts[1:]
    else:
        service = ""
    if not parts or parts == [""]:
        return service, 0
    if len(parts) > 1 or not _DB.fullmatch(parts[0]):
        raise ValueError("behind the hosts stands the database's number at most, /0")
    if kind == "cluster" and int(parts[0]):
        raise ValueError("a cluster has database 0 only: leave the number out")
    return service, int(parts[0])


def _query_db(query: str) -> int:
    name, _, number = query.partition("=")
    if not query:
        return 0
    if name != "db" or not _DB.fullmatch(number):
        raise ValueError(f"behind a socket's path stands ?db=NUMBER at most; {_ENCODED}")
    return int(number)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
