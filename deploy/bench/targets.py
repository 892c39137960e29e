"""What is measured: no proxy, Legato, Legato again, the plain proxy, and nginx where it is installed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: port, admin port, upstream's URL, a folder of this run -> the command
Command = Callable[[int, int, str, Path], Sequence[str]]


@dataclass(frozen=True)
class Target:
    """One contender.  ``saturated_events``: events per stream that fill about two seconds at saturation."""

    name: str
    command: Command | None  # None: the load goes straight to the upstream
    saturated_events: int
    admin: bool = False  # has an admin listener that can be scraped
    tls: bool = False  # can listen on TLS
    backed: bool = False  # Redis, a collector and scrapes beside it: everything on
    redis_away: bool = False  # ... and Redis stops answering before the load comes
    shadow: bool = False  # every request is copied to a backend that hangs

    @property
    def asked(self) -> bool:
        """Only where it is named."""
        return self.backed or self.shadow


def _legato(port: int, admin: int, upstream: str, folder: Path) -> Sequence[str]:
    base = [sys.executable, "-m", "proxy.cli", "serve", "--upstream", upstream]
    return [*base, "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]


def _configured(port: int, admin: int, upstream: str, folder: Path) -> Sequence[str]:
    file = folder / f"{port}.yaml"  # written by who starts what stands in it
    return [sys.executable, "-m", "proxy.cli", "serve", "--config", str(file)]


def legato_tls(cert: Path, key: Path) -> Command:
    """Legato with TLS on its data listener."""

    def command(port: int, admin: int, upstream: str, folder: Path) -> Sequence[str]:
        plain = _legato(port, admin, upstream, folder)
        return [*plain, "--tls-cert", str(cert), "--tls-key", str(key)]

    return command


def _naive(port: int, admin: int, upstream: str, folder: Path) -> Sequence[str]:
    return [sys.executable, "-m", "deploy.bench.naive", str(port), upstream]


NGINX_CONF = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 16m; keepalive_requests 1000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream behind {{ server {server}; keepalive 2048; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{
      proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


def _nginx(port: int, admin: int, upstream: str, folder: Path) -> Sequence[str]:
    conf = folder / f"nginx-{port}.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, port=port, server=upstream.removeprefix("http://")))
    return [shutil.which("nginx") or "nginx", "-c", str(conf)]


DIRECT = Target("direct", None, 4000)
LEGATO = Target("legato", _legato, 2000, admin=True, tls=True)
AGAIN = Target("legato again", _legato, 2000, admin=True, tls=True)
NAIVE = Target("naive", _naive, 400)
NGINX = Target("nginx", _nginx, 4000)
EVERYTHING = Target("everything", _configured, 2000, admin=True, backed=True)
REDIS_AWAY = Target("redis away", _configured, 2000, admin=True, backed=True, redis_away=True)
MIRRORED = Target("mirrored", _configured, 2000, admin=True, shadow=True)


def available() -> list[Target]:
    """Every target that can run here."""
    nginx = [NGINX] if shutil.which("nginx") else []
    backed = [EVERYTHING, REDIS_AWAY] if shutil.which("redis-server") else []
    return [DIRECT, LEGATO, AGAIN, NAIVE, *nginx, *backed, MIRRORED]


def usual() -> list[Target]:
    """Those that are measured where nobody says which."""
    return [target for target in available() if not target.asked]
