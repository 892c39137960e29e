"""A shadow backend that hangs: it is connected to, takes requests, and never answers."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.bench.programs import BenchError

_TOLD = re.compile(r'^legato_mirrored_requests_total\{.*result="(\w+)".*\} ([0-9.e+]+)$', re.MULTILINE)


@contextmanager
def hanging() -> Iterator[str]:
    """Its URL.  Nobody accepts: the kernel connects and keeps what is sent, at no processor's cost."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def write_config(path: Path, upstream: str, shadow: str, listen: str, admin: str) -> None:
    """Every request is copied; a copy is given up after a second, so that there are always new ones."""
    path.write_text(
        f"listen: {listen}\nadmin: {{listen: {admin}}}\n"
        f"backends: {{default: {{url: {upstream}}}, shadow: {{url: {shadow}}}}}\n"
        "routes: [{backend: default, mirror: {backend: shadow, share: 100%, timeout: 1s}}]\n"
    )


def check_copies(admin_port: int) -> None:
    """``BenchError`` unless copies were begun: without them nothing was measured."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=5) as answer:
        told = dict(_TOLD.findall(answer.read().decode()))
    if not float(told.get("timeout", 0)):
        raise BenchError(f"no copy reached the shadow that hangs: {told}")
