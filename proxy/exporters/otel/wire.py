"""Where exports go and how: from the settings, for spans and for metrics, over HTTP and over gRPC.

The SDK reads most of the ``OTEL_EXPORTER_OTLP_*`` variables itself (headers, compression, client
certificates; also with the signal's name in them).  What stands in the settings goes before them, but for an
endpoint or a protocol of one signal alone, which no setting can say (``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``,
taken as it is).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proxy.config import Otel

Signal = Literal["traces", "metrics"]


class WireError(Exception):
    """The settings cannot be used; the message names no secret."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One signal's way to the collector.  ``endpoint``: over HTTP with the signal's path; ``timeout_s``: for
    one export, retries included.  ``headers`` hold keys: never log them.
    """

    endpoint: str
    grpc: bool
    timeout_s: float
    headers: dict[str, str]
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"Wire({self.endpoint!r}, grpc={self.grpc})"

    def http_options(self) -> dict[str, Any]:
        """Keyword arguments of the SDK's exporters over HTTP."""
        return {
            "endpoint": self.endpoint,
            "certificate_file": self.ca_file,
            "headers": self.headers or None,
            "timeout": self.timeout_s,
        }

    def grpc_options(self) -> dict[str, Any]:
        """The same over gRPC.  Raises ``ImportError`` without it, ``WireError`` for a bad CA file."""
        options: dict[str, Any] = {
            "endpoint": self.endpoint,
            "headers": tuple(self.headers.items()) or None,
            "timeout": self.timeout_s,
        }
        if self.ca_file is not None:
            import grpc  # type: ignore[import-untyped]

            options["credentials"] = grpc.ssl_channel_credentials(
                root_certificates=_read(self.ca_file, "ca_file")
            )
        return options


def wire_of(otel: Otel, signal: Signal, environ: Mapping[str, str] | None = None) -> Wire:
    """How this signal is exported.  Reads the headers' file; raises ``WireError``.

    ``environ``: the variables; ``None``: the process's own, as the SDK's.
    """
    variables = os.environ if environ is None else environ
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_"
    grpc = (variables.get(f"{own}PROTOCOL") or otel.protocol or "").strip() == "grpc"
    endpoint = variables.get(f"{own}ENDPOINT", "").strip()
    if not endpoint:
        if otel.endpoint is None:
            raise WireError("no endpoint is configured")
        endpoint = otel.endpoint if grpc else f"{otel.endpoint.rstrip('/')}/v1/{signal}"
    return Wire(endpoint, grpc, otel.timeout / 1e9, read_headers(otel.headers_file), otel.ca_file)


def read_headers(path: str | None) -> dict[str, str]:
    """Headers of a file, ``name: value`` a line, names in lower case; empty lines and ``#`` are skipped."""
    if path is None:
        return {}
    headers: dict[str, str] = {}
    text = _read(path, "headers_file").decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or not (name + value).strip().isprintable() or not line.isascii():
            raise WireError(f"otel.headers_file {path!r}: line {number} is not 'name: value'")
        headers[name.strip().lower()] = value.strip()
    return headers


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WireError(f"otel.{key} {path!r} cannot be read: {error.strerror}") from error
