"""Where exports go and how: from the settings, for spans and for metrics, over HTTP and over gRPC.

What the settings do not say the SDK takes from its own variables: headers, compression, client certificates
(``OTEL_EXPORTER_OTLP_HEADERS`` and so on, also with the signal's name in them).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.config import Otel, Signal
from proxy.settings.outside import read_headers


class WireError(Exception):
    """The settings cannot be used; the message names no secret."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One signal's way to the collector.  ``endpoint``: over HTTP with the signal's path; ``timeout_s``: for
    one export, retries included.  ``headers`` hold keys, and so are in no ``repr``.
    """

    endpoint: str
    grpc: bool
    timeout_s: float
    headers: dict[str, str] = field(repr=False)
    ca_file: str | None = None

    def http_options(self) -> dict[str, Any]:
        """Keyword arguments of the SDK's exporters over HTTP."""
        return {
            "endpoint": self.endpoint,
            "certificate_file": self.ca_file,
            "headers": self.headers or None,
            "timeout": self.timeout_s,
            "session": self._session(),
        }

    def _session(self) -> Any:
        """What the SDK sends with, freed of three habits: ``~/.netrc`` replaces a configured
        ``Authorization``, ``REQUESTS_CA_BUNDLE`` a configured CA, and a redirect, not followed, is a success.
        """
        import requests

        session = requests.Session()
        session.auth = _as_it_is
        session.hooks["response"].append(_no_redirect)
        if self.ca_file is not None:
            session.trust_env = False
            session.proxies = requests.utils.get_environ_proxies(self.endpoint)
        return session

    def grpc_options(self) -> dict[str, Any]:
        """The same over gRPC.  Raises ``ImportError`` without it, ``WireError`` for a bad CA file."""
        options: dict[str, Any] = {
            "endpoint": self.endpoint,
            "headers": tuple(self.headers.items()) or None,
            "timeout": self.timeout_s,
        }
        if self.ca_file is not None:
            import grpc  # type: ignore[import-untyped]

            try:
                options["credentials"] = grpc.ssl_channel_credentials(Path(self.ca_file).read_bytes())
            except OSError as error:
                raise WireError(f"the CA file {self.ca_file!r} cannot be read: {error.strerror}") from error
        return options


def wire_of(otel: Otel, signal: Signal, environ: Mapping[str, str] | None = None) -> Wire:
    """How this signal is exported.  Reads the file of headers; raises ``WireError``.

    ``environ``: the variables; ``None``: the process's own, as the SDK reads them.
    """
    endpoint = otel.traces_url if signal == "traces" else otel.metrics_url
    if endpoint is None:
        raise WireError(f"no endpoint is configured for {signal}")
    grpc = otel.protocol_of(signal) == "grpc"
    headers = _headers_of(otel)
    if headers:  # the SDK takes headers from us or from the variables, by its version and the protocol
        headers = _variable_headers(os.environ if environ is None else environ, signal) | headers
    return Wire(endpoint, grpc, otel.timeout_of(signal) / 1e9, headers, otel.ca_file_of(signal))


def _as_it_is(request: Any) -> Any:
    return request


def _no_redirect(response: Any, *_: Any, **__: Any) -> None:
    import requests

    if 300 <= response.status_code < 400:
        raise requests.RequestException(f"{response.status_code}, a redirect: configure where it leads")


def _headers_of(otel: Otel) -> dict[str, str]:
    path = otel.headers_file
    if path is None:
        return {}
    try:
        return read_headers(path)
    except OSError as error:
        raise WireError(f"otel.headers_file {path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WireError(f"otel.headers_file {path!r}: {error}") from error


def _variable_headers(environ: Mapping[str, str], signal: Signal) -> dict[str, str]:
    from opentelemetry.util.re import parse_env_headers

    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS"
    text = environ.get(own) or environ.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
    return dict(parse_env_headers(text, liberal=True))
