"""Configurations as tests write and read them: one backend, the rest is the test's."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.config import Boot, Config, load

ONE = "backends: {vllm: {url: http://vllm:8000}}\n"


def writer(folder: Path) -> Callable[[str], str]:
    """What writes ``legato.yaml`` behind ``ONE``, and gives its path."""

    def put(text: str) -> str:
        path = folder / "legato.yaml"
        path.write_text(ONE + textwrap.dedent(text))
        return str(path)

    return put


def read(file: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> Config:
    """The configuration of a file, variables and flags."""
    return load(Boot(file=file, flags=flags), env or {})


def bare(env: dict[str, str]) -> Config:
    """The configuration of one backend and these variables."""
    return read(None, env, upstream="http://vllm:8000")
