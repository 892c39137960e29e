"""What single values of ``redis`` and ``otel`` cannot show, and what of them deserves a look.

No message holds a part of a Redis URL or of a header's value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr

from proxy.settings.files import authority, pair, readable
from proxy.settings.models import Config
from proxy.settings.notify_checks import notify_destinations
from proxy.settings.redis_url import RedisUrl, parse_redis_url
from proxy.settings.standard import has_grpc
from proxy.settings.telemetry import DEFAULT_TRACE_RATIO, Otel, Redis, RedisTls, Signal
from proxy.settings.tree import Loc, Tree
from proxy.units import format_duration

Finding = tuple[Loc, str]
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_MOST_HEADERS = 64
_LOCAL = ("localhost", "127.0.0.1", "::1")
_BELONGS = "put the URL into a file and name that with url_file, or set the variable LEGATO_REDIS__URL"


def settle_url(tree: Tree) -> None:
    """``url`` and ``url_file``: a variable's replaces the file's other one; both in one place is wrong."""
    redis = tree.data.get("redis")
    if not isinstance(redis, dict) or redis.get("url") is None or redis.get("url_file") is None:
        return
    by_variable = {
        name: tree.place(("redis", name)).startswith("LEGATO_REDIS__URL") for name in ("url", "url_file")
    }
    if by_variable["url"] == by_variable["url_file"]:
        tree.problem(("redis", "url_file"), "url and url_file both say where Redis is: keep one of them")
    redis.pop("url_file" if by_variable["url"] else "url")


def read_url(path: str) -> SecretStr:
    """The first line of a file.  Raises ``OSError``, and ``ValueError`` with the mend."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return SecretStr(file.readline(8_192).strip())


def url_of(redis: Redis) -> RedisUrl | None:
    """The URL of settings that passed the check; ``None`` where there is none or it is wrong."""
    try:
        return None if redis.url is None else parse_redis_url(redis.url.get_secret_value())
    except ValueError:
        return None


def redis_findings(redis: Redis, tree: Tree) -> Iterator[Finding]:
    """What does not go together in ``redis``."""
    loc: Loc = ("redis", "url_file" if redis.url is None else "url")
    url = redis.url
    if url is None and redis.url_file is not None:
        missing = list(readable(loc, redis.url_file))
        yield from missing
        if not missing:
            url = read_url(redis.url_file)
    if url is None:
        return
    if not url.get_secret_value():
        where = "its first line is empty" if loc[-1] == "url_file" else "it is empty"
        yield loc, f"{where}: write a URL, for example redis://redis:6379"
        return
    try:
        found = parse_redis_url(url.get_secret_value())
    except ValueError as error:
        yield loc, str(error)
        return
    if found.password is not None and loc[-1] == "url" and not tree.place(loc).startswith("LEGATO_"):
        yield loc, f"a password does not belong here: {_BELONGS}"
    yield from _redis_tls(redis.tls, found)


def _redis_tls(tls: RedisTls, url: RedisUrl) -> Iterator[Finding]:
    loc: Loc = ("redis", "tls")
    if not url.tls and tls != RedisTls():
        yield loc, "TLS settings, but the URL does not begin with rediss: write rediss, or leave tls out"
    if not tls.verify and tls.ca_file is not None:
        yield (*loc, "ca_file"), "a CA to trust, but verify is off: leave one of them out"
    if tls.ca_file is not None:
        yield from authority((*loc, "ca_file"), tls.ca_file)
    yield from pair(loc, tls.cert_file, tls.key_file, server=False)


def read_headers(path: str) -> dict[str, str]:
    """``name: value`` a line -> lower-case name to value; empty lines and those with ``#`` in front are none.

    Raises ``OSError``, and ``ValueError`` with the mend, which names the line and never shows it.
    """
    out: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, colon, value = text.partition(":")
            if not colon or not _HEADER.fullmatch(name.strip()) or not value.strip():
                raise ValueError(f"line {number} is no header: write name: value, for example x-tenant: acme")
            if not value.strip().isprintable() or not value.isascii():
                raise ValueError(f"line {number}: a header's value is plain ASCII text")
            out[name.strip().lower()] = value.strip()
            if len(out) > _MOST_HEADERS:
                raise ValueError(f"more than {_MOST_HEADERS} headers: leave some out")
    return out


def _grpc_findings(otel: Otel, given: Mapping[Loc, str]) -> Iterator[Finding]:
    told: dict[Loc, str | None] = {
        ("otel", "protocol"): otel.protocol,
        ("otel", "traces", "protocol"): otel.traces.protocol,
        ("otel", "metrics_protocol"): otel.metrics_protocol,
    }
    for loc in (loc for loc, word in told.items() if word == "grpc"):
        if not has_grpc():
            yield loc, "'grpc' needs its exporter: pip install 'legato[grpc]'"
    ways: tuple[tuple[Signal, Loc], ...] = (
        ("traces", ("otel", "traces", "endpoint")),
        ("metrics", ("otel", "metrics_endpoint")),
    )
    by_grpc = [
        loc if loc in given else ("otel", "endpoint")
        for name, loc in ways
        if otel.protocol_of(name) == "grpc"
    ]
    for loc, url in given.items():
        if loc in by_grpc and urlsplit(url).path:
            yield loc, f"{url!r}: gRPC has no path: write host and port, for example http://collector:4317"


def otel_findings(otel: Otel) -> Iterator[Finding]:
    """What does not go together in ``otel``."""
    urls: dict[Loc, str | None] = {
        ("otel", "endpoint"): otel.endpoint,
        ("otel", "traces", "endpoint"): otel.traces.endpoint,
        ("otel", "metrics_endpoint"): otel.metrics_endpoint,
    }
    given = {loc: url for loc, url in urls.items() if url is not None}
    yield from _grpc_findings(otel, given)
    if otel.headers_file is not None:
        missing = list(readable(("otel", "headers_file"), otel.headers_file))
        yield from missing
        if not missing:
            try:
                read_headers(otel.headers_file)
            except ValueError as error:
                yield ("otel", "headers_file"), str(error)
    for loc, path in (
        (("otel", "ca_file"), otel.ca_file),
        (("otel", "traces", "ca_file"), otel.traces.ca_file),
        (("otel", "metrics_ca_file"), otel.metrics_ca_file),
    ):
        if path is not None:
            if given and not any(url.startswith("https://") for url in given.values()):
                yield loc, "a CA to trust, but the endpoint is not https: write https:// or leave it out"
            yield from authority(loc, path)
    for name in otel.attributes:
        if name in ("service.name", "service.instance.id"):
            mend = "is otel.service_name" if name == "service.name" else "is given by Legato, one per host"
            yield ("otel", "attributes", name), f"{name!r} {mend}: leave it out here"


def destinations(config: Config) -> list[tuple[str, str]]:
    """Where what was measured goes, for people: ``("redis" or "otel", a sentence)``; no password in it."""
    out: list[tuple[str, str]] = []
    redis, otel = config.redis, config.otel
    if (url := url_of(redis)) is not None:
        out.append(("redis", f"{url.shown()} every {format_duration(redis.every)}, keys {redis.prefix}:..."))
    if otel.traces_url is not None:
        ratio = DEFAULT_TRACE_RATIO if otel.traces.ratio is None else otel.traces.ratio
        bad = f"and {otel.traces.bad_per_second:g} bad ones a second"
        out.append(("otel", f"spans of {ratio * 100:.10g}% {bad} to {otel.traces_url}"))
    if otel.metrics_url is not None:
        out.append(("otel", f"metrics every {format_duration(otel.every)} to {otel.metrics_url}"))
    return [*out, *notify_destinations(config.alerts)]


def cares_outside(redis: Redis, otel: Otel) -> list[str]:
    """What is allowed and still deserves a look, one sentence each."""
    return [*_cares_of_redis(redis), *_cares_of_otel(otel)]


def _cares_of_redis(redis: Redis) -> Iterator[str]:
    url = url_of(redis)
    if url is None:
        if redis != Redis():
            yield "redis has settings but no url: each host knows its own requests only"
        return
    if not url.local and url.password is None and redis.tls.cert_file is None:
        yield f"{url.shown()}: no password: whoever reaches it reads and changes what the hosts share"
    if not url.local and url.password is not None and not url.tls:
        yield f"{url.shown()}: the password goes over the network in clear text: rediss is TLS"
    if url.tls and not redis.tls.verify:
        yield "redis: certificates are not checked"
    if url.kind in ("sentinel", "cluster") and len(url.hosts) == 1:
        yield f"{url.shown()}: one host only: while it is away at a start, the others are not found"
    if redis.timeout > redis.every:
        yield "redis.timeout is longer than redis.every: one slow answer delays several writes"


def _cares_of_otel(otel: Otel) -> Iterator[str]:
    urls = list(dict.fromkeys(url for url in (otel.traces_url, otel.metrics_url) if url is not None))
    if not urls:
        if otel != Otel() and (otel.traces.export or otel.metrics):
            yield "otel has settings but no endpoint: nothing is exported"
        return
    if otel.traces_url is not None and (otel.traces.ratio or 0) > 0.1:
        yield f"otel.traces.ratio is {otel.traces.ratio:.0%}: a busy host makes many spans of it"
    ports = {"grpc": 4317, "http/protobuf": 4318}
    for parts in dict.fromkeys(urlsplit(url)._replace(path="") for url in urls):
        if otel.headers_file is not None and parts.scheme == "http" and parts.hostname not in _LOCAL:
            yield f"otel.headers_file goes to {parts.netloc} in clear text: https is TLS"
    spoken = ((otel.protocol_of("traces"), otel.traces_url), (otel.protocol_of("metrics"), otel.metrics_url))
    used = [(word, urlsplit(url)) for word, url in spoken if url is not None]
    for word, netloc, port in dict.fromkeys((word, parts.netloc, parts.port) for word, parts in used):
        if port in ports.values() and port != ports[word]:
            yield f"{netloc}: {word} has port {ports[word]} as a rule (otel.protocol)"
