"""A real Alertmanager for tests, which tells one webhook of everything, at once.

with receiver() as pager, alertmanager(pager.url) as server:
    ... server.url is what a notifier is given; server.alerts() what it knows; pager.received what it told ...
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.procs import eventually, free_port, running
from tests.helpers.tools import need

START_S = 20.0


@dataclass(frozen=True)
class Alertmanager:
    """A running server; ``url`` is its base, without a slash at the end."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    def alerts(self) -> list[dict[str, Any]]:
        """What fires, by its API v2."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")


@contextmanager
def alertmanager(
    webhook: str,
    *,
    prefix: str = "",
    resolve_timeout: str = "5m",
    group_wait: str = "0s",
    config: Mapping[str, Any] | None = None,
) -> Iterator[Alertmanager]:
    """An Alertmanager on a free port; skips where there is none installed.  ``prefix``: its path, ``/am``.

    ``config``: its whole configuration, in place of one receiver for everything.
    """
    program = need("prometheus-alertmanager")
    given = config or {
        "global": {"resolve_timeout": resolve_timeout},
        "route": {
            "receiver": "pager",
            "group_by": ["..."],
            "group_wait": group_wait,
            "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "pager", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
    with tempfile.TemporaryDirectory(prefix="legato-alertmanager-") as name:
        folder, port = Path(name), free_port()
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(dict(given)), encoding="utf-8")
        url = f"http://127.0.0.1:{port}{prefix}"
        command = [
            program,
            f"--config.file={folder / 'alertmanager.yaml'}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--web.external-url={url}",
            "--cluster.listen-address=",
            "--log.level=debug",
        ]
        with running(command, folder / "log") as process:
            server = Alertmanager(process, url, folder)
            eventually(lambda: _ready(server), START_S, "Alertmanager", every_s=0.05)
            yield server


def _ready(server: Alertmanager) -> bool:
    assert server.process.poll() is None, server.log
    with urllib.request.urlopen(f"{server.url}/-/ready", timeout=2) as answer:
        return bool(answer.status == 200)
