"""What data workers need of the configuration, as one message of the link."""

from __future__ import annotations

import msgspec

from proxy import link
from proxy.config import DEFAULT_TRACE_RATIO, Backend, Config, LearnedTtft, Match, QuadraticTtft, Route, Slo
from proxy.settings.types import SECRET_HEADERS
from scoring.deadlines import LONGEST_NS


def build_table(config: Config, version: int) -> link.Table:
    """``Config`` -> ``link.Table``; ``version`` counts up with every reload."""
    return link.Table(
        version=version,
        backends=tuple(_backend(name, backend) for name, backend in config.backends.items()),
        routes=tuple(_route(route) for route in config.routes),
        slos=tuple(_slo(slo) for slo in config.slos),
        timeouts=_timeouts(config),
        exclude=config.exclude,
        record_headers=dict(config.record_headers),
        trusted_proxies=config.trusted_proxies,
        forwarded_headers=config.forwarded_headers,
        request_id_header=config.request_id.header,
        body_limit=config.body.limit,
        body_budget=config.body.budget,
        stream_buffer=config.stream.buffer,
        stream_budget=config.stream.budget,
        head_limit=config.head_limit,
        bytes_per_token=config.bytes_per_token,
        measure=config.measure,
        arrivals_cap=config.arrivals_cap,
        tls_cert_file=config.tls.cert_file,
        tls_key_file=config.tls.key_file,
        tracing=_tracing(config),
    )


def _tracing(config: Config) -> link.Tracing | None:
    if config.otel.traces_url is None:
        return None
    traces = config.otel.traces
    return link.Tracing(DEFAULT_TRACE_RATIO if traces.ratio is None else traces.ratio, traces.propagate)


def _backend(name: str, backend: Backend) -> link.BackendSpec:
    tls = backend.tls
    return link.BackendSpec(
        name=name,
        url=backend.url or "http://localhost",  # over a Unix socket it only names the host
        uds=backend.uds,
        resolve_ns=backend.resolve,
        max_connections=backend.max_connections,
        max_age_ns=backend.max_age,
        transport=backend.transport,
        host=backend.host,
        tls_verify=tls.verify,
        tls_ca_file=tls.ca_file,
        tls_cert_file=tls.cert_file,
        tls_key_file=tls.key_file,
        tls_server_name=tls.server_name,
    )


def _route(route: Route) -> link.RouteSpec:
    split = None
    if len(route.arms) > 1:
        split = link.SplitSpec(
            name=route.name or route.all_names,
            arms=route.arms,
            seed=route.all_names if route.seed is None else route.seed.get_secret_value(),
            sticky=route.sticky.ways[0] if route.sticky.ways else None,
            force=route.force.header,
            failover=route.failover,
        )
    return link.RouteSpec(_match(route.match), route.target, route.dialect, split, _mirror(route))


def _mirror(route: Route) -> link.MirrorSpec | None:
    mirror = route.mirror
    if mirror.backend is None:
        return None
    return link.MirrorSpec(
        backend=mirror.backend,
        ratio=mirror.share,
        most=mirror.most,
        body_limit=mirror.body_limit,
        timeout_ns=mirror.timeout,
        leave_out=tuple(sorted(SECRET_HEADERS)) if mirror.credentials == "drop" else (),
    )


def _match(match: Match) -> link.Match:
    return link.Match(path=match.path, model=match.model, header=dict(match.header))


def _slo(slo: Slo) -> link.SloSpec:
    prompts = slo.match.prompt_tokens
    length = None if prompts.min is None and prompts.max is None else (prompts.min or 0, prompts.max)
    spec = link.SloSpec(
        name=slo.name,
        match=msgspec.structs.replace(_match(slo.match), prompt_tokens=length),
        ttft_points=slo.ttft if isinstance(slo.ttft, tuple) else (),
        tbt_ns=slo.tbt,
        target=slo.fluidity,
        objective=slo.objective,
        e2e_ns=slo.e2e,
        duration_only=slo.duration_only,
    )
    if isinstance(slo.ttft, QuadraticTtft):
        return _quadratic(spec, slo.ttft)
    return _learned(spec, slo.ttft) if isinstance(slo.ttft, LearnedTtft) else spec


def _quadratic(spec: link.SloSpec, ttft: QuadraticTtft) -> link.SloSpec:
    least_ns = min(ttft.base + ttft.slack, LONGEST_NS)
    return msgspec.structs.replace(
        spec,
        ttft_points=((0, least_ns),),
        quadratic=(least_ns, ttft.per_token, ttft.per_token_squared),
    )


def _learned(spec: link.SloSpec, ttft: LearnedTtft) -> link.SloSpec:
    frozen = ttft.frozen
    return msgspec.structs.replace(
        spec,
        ttft_points=ttft.fallback,
        curves=frozen.table() if frozen is not None else (),
        slack_ns=ttft.slack,
        live=ttft.live,
        pages=not ttft.live,
    )


def _timeouts(config: Config) -> link.Timeouts:
    held = config.timeouts
    return link.Timeouts(
        connect_ns=held.connect,
        first_byte_ns=held.first_byte,
        idle_ns=held.idle,
        upstream_keepalive_ns=held.upstream_keepalive,
        client_keepalive_ns=held.client_keepalive,
        client_head_ns=held.client_head,
        drain_delay_ns=held.drain_delay,
        drain_ns=held.drain,
    )
