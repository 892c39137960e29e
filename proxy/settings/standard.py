"""OpenTelemetry's standard variables: a layer below the file, for what is given nowhere else.

The specification asks that a bad value be passed over with a warning, not that the program end: what is wrong
here becomes a note (``tree.notes``), never a problem.  Headers, compression, the batch processor's sizes and
the resource's attributes are read by OpenTelemetry's own library.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from proxy.settings.problems import mask
from proxy.settings.telemetry import collector_url, signal_url
from proxy.settings.tree import Loc, Tree
from proxy.settings.types import OFF

GRPC_PACKAGE = "opentelemetry.exporter.otlp.proto.grpc"
#: As ``otel.timeout`` and ``otel.every`` take: what is more must be passed over here, not refused there.
_TIMEOUT_MS = (10, 600_000)
_EVERY_MS = (1_000, 3_600_000)
Take = Callable[[str], str | None]


def add_off(tree: Tree) -> None:
    """``redis: off`` and ``otel: off``: as if the first were not given; nothing exported by the second."""
    off = {"redis": {}, "otel": {"traces": {"export": "off"}, "metrics": "off"}}
    for name, instead in off.items():
        if str(tree.data.get(name)).strip().lower() in OFF:
            tree.data[name] = instead


def add_standard(tree: Tree, environ: Mapping[str, str]) -> None:
    """Fill in what the file, ``LEGATO_`` variables and flags leave out."""
    if not isinstance(tree.data.get("otel", {}) or {}, dict):
        return
    given = {
        name: text.strip() for name, text in environ.items() if name.startswith("OTEL_") and text.strip()
    }
    for standard in STANDARD:
        text = given.get(standard.name)
        if text is None or standard.loc is None or tree.get(standard.loc) is not None:
            continue
        both = standard.both
        if both is not None and tree.get(both) is not None and not tree.place(both).startswith("OTEL_"):
            continue  # said for both signals, by who goes before any of these
        try:
            value = standard.take(text)
        except ValueError as error:
            tree.notes.append(f"{standard.name}: {mask(str(error))}: passed over")
            continue
        if value is not None:
            _fill(tree, standard.loc, value, standard.name)
    _fill_ratio(tree, given)
    tree.notes += [
        f"{name} is not read: {why}"
        for name, why in NOT_READ.items()
        if given.get(name, _ANYWAY.get(name, "")).lower() != _ANYWAY.get(name, "")
    ]
    _disable(tree, given.get("OTEL_SDK_DISABLED", "").lower())


def _fill(tree: Tree, loc: Loc, value: str, name: str) -> None:
    """Put a value; not where a mistake stands in the way."""
    for size in range(1, len(loc)):
        held = tree.get(loc[:size])
        if held is not None and not isinstance(held, dict):
            return
    tree.set(loc, value, name)


def _fill_ratio(tree: Tree, given: Mapping[str, str]) -> None:
    """The ratio from the sampler and its argument."""
    name, argument = given.get("OTEL_TRACES_SAMPLER"), given.get("OTEL_TRACES_SAMPLER_ARG")
    loc: Loc = ("otel", "traces", "ratio")
    if tree.get(loc) is not None or (name is None and argument is None):
        return
    kind = (name or "parentbased_traceidratio").lower()
    base = kind.removeprefix("parentbased_")
    if base not in ("always_on", "always_off", "traceidratio"):
        tree.notes.append(
            f"OTEL_TRACES_SAMPLER: {name!r} is not known here, only traceidratio, always_on and always_off, "
            "each also with parentbased_: passed over"
        )
        return
    if base == kind:
        tree.notes.append(
            f"OTEL_TRACES_SAMPLER: {name!r}: a client's own sampling flag is honoured all the same"
        )
    if base != "traceidratio":
        _fill(tree, loc, "1" if base == "always_on" else "0", "OTEL_TRACES_SAMPLER")
    elif argument is None:
        _fill(tree, loc, "1", "OTEL_TRACES_SAMPLER")  # the specification's default
    else:
        try:
            _fill(tree, loc, _share(argument), "OTEL_TRACES_SAMPLER_ARG")
        except ValueError as error:
            tree.notes.append(f"OTEL_TRACES_SAMPLER_ARG: {error}: passed over")


def _disable(tree: Tree, word: str) -> None:
    if word == "true":
        for loc in (("otel", "traces", "export"), ("otel", "metrics")):
            _fill(tree, loc, "off", "OTEL_SDK_DISABLED")
        tree.notes.append("OTEL_SDK_DISABLED is true: nothing is exported over OTLP")
    elif word not in ("", "false"):
        tree.notes.append(f"OTEL_SDK_DISABLED: {word!r}: write true or false: passed over")


def _share(text: str) -> str:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r}: a number from 0 to 1 is needed")
    return f"{share:.12f}"


def _protocol(text: str) -> str:
    word = text.lower()
    if word not in ("grpc", "http/protobuf"):
        raise ValueError(f"{text!r} is not spoken, only http/protobuf and grpc")
    if word == "grpc" and not has_grpc():
        raise ValueError("'grpc' needs what pip install 'legato[grpc]' brings; http/protobuf is spoken")
    return word


def has_grpc() -> bool:
    """The exporter for gRPC is installed.  (Asked only where gRPC is: the search is not for nothing.)"""
    try:
        return importlib.util.find_spec(GRPC_PACKAGE) is not None
    except ModuleNotFoundError:
        return False


def _milliseconds(least: int, most: int) -> Take:
    def take(text: str) -> str:
        if not (text.isascii() and text.isdigit() and least <= int(text[:12]) <= most):
            raise ValueError(f"{text!r}: milliseconds from {least} to {most} are needed, a whole number")
        return f"{int(text)}ms"

    return take


def _exporter(text: str) -> str | None:
    words = {word.strip().lower() for word in text.split(",") if word.strip()}
    if words == {"none"}:
        return "off"
    if unknown := words - {"otlp"}:
        raise ValueError(f"{', '.join(sorted(unknown))!r} is not known here, only otlp, or none alone")
    return None


def _exemplars(text: str) -> str | None:
    word = text.lower()
    if word not in ("trace_based", "always_off"):
        raise ValueError(
            f"{text!r}: exemplars are of kept traces (trace_based), or there are none (always_off)"
        )
    return "off" if word == "always_off" else None


def _propagators(text: str) -> str | None:
    words = {word.strip().lower() for word in text.split(",") if word.strip()}
    if words == {"none"}:
        return "off"
    if "tracecontext" in words:  # baggage passes through, as all headers do
        return None
    raise ValueError(f"{text!r}: only tracecontext is spoken (all other headers pass untouched), or none")


def _readable(text: str) -> str:
    if not os.access(text, os.R_OK) or os.path.isdir(text):
        raise ValueError(f"{text!r} cannot be read")
    return os.path.abspath(text)


def _service_name(text: str) -> str | None:
    """``service.name`` of a list of resource attributes, if it is there."""
    for part in text.split(","):
        name, found, value = part.partition("=")
        if found and name.strip() == "service.name" and value.strip():
            return unquote(value.strip())
    return None


@dataclass(frozen=True, slots=True)
class Standard:
    """One variable: the setting that it fills in, and what of it is understood.

    ``both``: of a variable for one signal, the setting for both: where it is given, that holds.
    """

    name: str
    loc: Loc | None
    understood: str
    take: Take = str
    both: Loc | None = None


def _of_one(signal: str, loc: Callable[[str], Loc]) -> tuple[Standard, ...]:
    """Those of one signal that go before those of both."""
    kinds: tuple[tuple[str, str, str, Take], ...] = (
        ("PROTOCOL", "protocol", "`http/protobuf`, `grpc`", _protocol),
        ("TIMEOUT", "timeout", "milliseconds", _milliseconds(*_TIMEOUT_MS)),
        ("CERTIFICATE", "ca_file", "a path", _readable),
    )
    return tuple(
        Standard(
            f"OTEL_EXPORTER_OTLP_{signal}_{kind}",
            loc(name),
            f"{understood}; not where `otel.{name}` is given",
            take,
            ("otel", name),
        )
        for kind, name, understood, take in kinds
    )


STANDARD = (
    Standard(
        "OTEL_EXPORTER_OTLP_ENDPOINT", ("otel", "endpoint"), "a URL", lambda text: str(collector_url(text))
    ),
    Standard(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ("otel", "traces", "endpoint"),
        "a whole URL, path included",
        lambda text: str(signal_url(text)),
    ),
    Standard(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        ("otel", "metrics_endpoint"),
        "a whole URL, path included",
        lambda text: str(signal_url(text)),
    ),
    Standard("OTEL_EXPORTER_OTLP_PROTOCOL", ("otel", "protocol"), "`http/protobuf`, `grpc`", _protocol),
    Standard("OTEL_EXPORTER_OTLP_TIMEOUT", ("otel", "timeout"), "milliseconds", _milliseconds(*_TIMEOUT_MS)),
    Standard("OTEL_EXPORTER_OTLP_CERTIFICATE", ("otel", "ca_file"), "a path", _readable),
    *_of_one("TRACES", lambda name: ("otel", "traces", name)),
    *_of_one("METRICS", lambda name: ("otel", f"metrics_{name}")),
    Standard("OTEL_SERVICE_NAME", ("otel", "service_name"), "text"),
    Standard(
        "OTEL_RESOURCE_ATTRIBUTES",
        ("otel", "service_name"),
        "`service.name` in it; the rest goes into the resource beside `otel.attributes`",
        _service_name,
    ),
    Standard(
        "OTEL_TRACES_SAMPLER",
        None,
        "`traceidratio`, `always_on` (1), `always_off` (0), each also with `parentbased_`: the ratio",
    ),
    Standard("OTEL_TRACES_SAMPLER_ARG", None, "0 to 1: the ratio (alone too); without it the sampler's is 1"),
    Standard("OTEL_TRACES_EXPORTER", ("otel", "traces", "export"), "`otlp`, `none`", _exporter),
    Standard("OTEL_METRICS_EXPORTER", ("otel", "metrics"), "`otlp`, `none`", _exporter),
    Standard(
        "OTEL_METRICS_EXEMPLAR_FILTER", ("otel", "exemplars"), "`trace_based`, `always_off`", _exemplars
    ),
    Standard("OTEL_METRIC_EXPORT_INTERVAL", ("otel", "every"), "milliseconds", _milliseconds(*_EVERY_MS)),
    Standard("OTEL_PROPAGATORS", ("otel", "traces", "propagate"), "`tracecontext`, `none`", _propagators),
    Standard(
        "OTEL_SDK_DISABLED", None, "`true`: nothing is exported, whatever else is set, and no header touched"
    ),
)
#: What OpenTelemetry's own library reads, where no setting says it.
BY_THE_LIBRARY = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
)
_EXPORT = "one export lasts {} at most"
_SCHEME = "http:// or https:// of the endpoint says it"
_LIMITS = "texts are cut at 512 characters, a span has at most 33 events"
_FIXED = "the boundaries are the catalog's"
#: Standard variables that mean something elsewhere and nothing here: said, not silently passed over.
NOT_READ = {
    "OTEL_BSP_EXPORT_TIMEOUT": _EXPORT.format("otel.traces.timeout, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    "OTEL_METRIC_EXPORT_TIMEOUT": _EXPORT.format("otel.metrics_timeout, OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"),
    "OTEL_EXPORTER_OTLP_INSECURE": _SCHEME,
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE": _SCHEME,
    "OTEL_EXPORTER_OTLP_METRICS_INSECURE": _SCHEME,
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "metrics are exported cumulative",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _FIXED,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _LIMITS,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _LIMITS,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _LIMITS,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMITS,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _LIMITS,
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _LIMITS,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMITS,
    "OTEL_CONFIG_FILE": "settings are in Legato's own file",
}
#: What some of them ask for that is so in any case: nothing needs to be said then.
_ANYWAY = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "cumulative",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "explicit_bucket_histogram",
}
