"""Who speaks: the SDK's ``Resource`` of one host, the same for spans and metrics.

By the conventions: ``service.name``, ``service.instance.id`` (the host, as in the records),
``service.version``, and ``telemetry.sdk.*`` from the SDK.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from proxy.config import Otel

#: The name of the scope under which all spans and metrics stand.
SCOPE_NAME: Final = "legato"


def resource_of(otel: Otel, *, instance: str, version: str) -> Resource:
    """The resource.  Later goes before earlier: the host and the version; ``OTEL_RESOURCE_ATTRIBUTES``; the
    configured ``attributes``; the configured ``service_name`` (which the variables fill in).
    """
    host = Resource({"service.instance.id": instance, "service.version": version})
    name = Resource({**otel.attributes, "service.name": otel.service_name})
    # ``create`` first: it brings what OTEL_EXPERIMENTAL_RESOURCE_DETECTORS asks for, and a made-up instance.
    return Resource.create().merge(host).merge(OTELResourceDetector().detect()).merge(name)


def scope_of(version: str) -> InstrumentationScope:
    """The instrumentation scope: this program."""
    return InstrumentationScope(SCOPE_NAME, version)
