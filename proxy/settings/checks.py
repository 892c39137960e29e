"""What single values cannot show: settings that do not go together, files that are not there."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from proxy.settings.alert_checks import alert_findings, cares_of_alerts
from proxy.settings.base import Match
from proxy.settings.ejection_checks import cares_of_ejection, ejection_findings
from proxy.settings.experiment_checks import cares_of_experiment, experiment_findings
from proxy.settings.files import authority, pair
from proxy.settings.models import Backend, BackendTls, Config, ListenTls
from proxy.settings.notify_checks import cares_of_notifiers, notify_findings
from proxy.settings.outside import cares_outside, otel_findings, redis_findings
from proxy.settings.problems import suggest
from proxy.settings.route_checks import (
    cares_of_mirrors,
    cares_of_splits,
    mirror_findings,
    split_findings,
)
from proxy.settings.slo import LearnedTtft, PromptRange, Slo, SloMatch
from proxy.settings.token_checks import token_findings
from proxy.settings.tree import Loc, Tree
from proxy.settings.types import SECRET_HEADERS
from proxy.units import parse_address

Finding = tuple[Loc, str]
_LOCAL = ("localhost", "127.0.0.1", "::1")


def take_out_misplaced(tree: Tree) -> None:
    """Name what belongs elsewhere, and take it out of the tree."""
    held = tree.data.get("routes")
    for index, route in enumerate(held if isinstance(held, list) else []):
        match = route.get("match") if isinstance(route, dict) else None
        if isinstance(match, dict) and "prompt_tokens" in match:
            mend = (
                "only SLOs are chosen by the prompt's length: leave it out, and write it into an SLO's match"
            )
            tree.problem(("routes", index, "match", "prompt_tokens"), mend)
            match.pop("prompt_tokens")


def findings(config: Config, tree: Tree) -> Iterator[Finding]:
    """Everything that does not go together; ``tree`` knows which backends were named, even badly."""
    yield from _backends(config, tree)
    yield from _routes(config, tree)
    yield from experiment_findings(config, tree)
    yield from _slos(config, tree)
    yield from _listeners(config)
    yield from _headers(config)
    yield from _listen_tls(config.tls)
    yield from redis_findings(config.redis, tree)
    yield from otel_findings(config.otel)
    yield from notify_findings(config.alerts, tree)
    yield from alert_findings(config)
    yield from ejection_findings(config.ejection)
    yield from token_findings(config.admin, tree)


def _backends(config: Config, tree: Tree) -> Iterator[Finding]:
    if not config.backends:  # not told again where one is wrong
        yield (
            ("backends",),
            "no server to forward to: write backends into a file, or give `legato serve` "
            "--upstream http://127.0.0.1:8000",
        )
    for name, backend in config.backends.items():
        loc: Loc = ("backends", name)
        if not backend.url and not backend.uds:
            yield (*loc, "url"), "an address is needed: url: http://host:port, or uds: /path/of/a/socket"
        if backend.uds is not None and not 0 < len(backend.uds.encode()) <= 107:
            yield (*loc, "uds"), f"{backend.uds!r}: a socket's path has 1 to 107 bytes"
        if (own := _own_address(backend, config)) is not None:
            mend = f"{backend.url!r} is this proxy's own address ({own}): requests would go round for ever"
            yield (*loc, "url"), mend + ", write the server's"
        yield from _backend_tls((*loc, "tls"), backend)


def _own_address(backend: Backend, config: Config) -> str | None:
    if backend.uds is not None:
        return f"unix:{backend.uds}" if f"unix:{backend.uds}" in config.listen else None
    parts = urlsplit(backend.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    for text in config.listen:
        if not text.startswith("unix:"):
            own = parse_address(text)
            local = parts.hostname in _LOCAL and (own.host in _LOCAL or _is_any(own.host))
            if own.port == port and (local or parts.hostname == own.host):
                return text
    return None


def _is_any(host: str) -> bool:
    return host in ("", "*", "0.0.0.0", "::")


def _backend_tls(loc: Loc, backend: Backend) -> Iterator[Finding]:
    tls = backend.tls
    if backend.url.startswith("http://") and tls != BackendTls():
        yield loc, f"TLS settings, but {backend.url!r} is not https: write https:// or leave tls out"
    if not tls.verify and tls.ca_file is not None:
        yield (*loc, "ca_file"), "a CA to trust, but verify is off: leave one of them out"
    if tls.ca_file is not None:
        yield from authority((*loc, "ca_file"), tls.ca_file)
    yield from pair(loc, tls.cert_file, tls.key_file, server=False)


def _listen_tls(tls: ListenTls) -> Iterator[Finding]:
    yield from pair(("tls",), tls.cert_file, tls.key_file, server=True)


def _routes(config: Config, tree: Tree) -> Iterator[Finding]:
    known = {*config.backends, *tree.names}
    by = tree.places.get(("backends",), "")
    instead = f" ({by} stands for all of them)" if by in ("--upstream", "LEGATO_UPSTREAM") else ""
    for index, route in enumerate(config.routes):
        loc: Loc = ("routes", index)
        if (route.backend is None) == (route.split is None):
            yield loc, "a route has either backend: NAME or split: {NAME: 100}"
        for name in [route.backend] if route.backend else list(route.split or {}):
            if name not in known:
                meant = suggest(name, known)
                mend = (
                    f": did you mean {meant!r}?"
                    if meant
                    else f": known are {', '.join(sorted(known)) or 'none'}{instead}"
                )
                yield (*loc, "backend" if route.backend else "split"), f"{name!r} is no backend" + mend
        yield from split_findings(loc, route, config, tree)
        yield from mirror_findings((*loc, "mirror"), route, config, tree)
    yield from _unreached(
        tree, "routes", [(route.match, f"route {index}") for index, route in enumerate(config.routes)]
    )


def _slos(config: Config, tree: Tree) -> Iterator[Finding]:
    names: list[str] = []
    for index, slo in enumerate(config.slos):
        loc: Loc = ("slos", index)
        if not slo.name:
            yield (*loc, "name"), "a name is needed, for example name: chat"
        elif slo.name in names:
            yield (*loc, "name"), f"{slo.name!r} is the name of another SLO too: choose one of its own"
        names.append(slo.name)
        if not 0 < slo.objective < 1:
            mend = "an objective lies between 0% and 100% (no bad request at all): write 99.9%"
            yield (*loc, "objective"), mend
        prompts = slo.match.prompt_tokens
        if prompts.max is not None and (prompts.min or 0) > prompts.max:
            mend = (
                f"min {prompts.min} is more than max {prompts.max}: no prompt is that long, turn them round"
            )
            yield (*loc, "match", "prompt_tokens"), mend
    yield from _unreached(
        tree, "slos", [(slo.match, _called(index, slo)) for index, slo in enumerate(config.slos)]
    )


def _called(index: int, slo: Slo) -> str:
    return f"SLO {slo.name!r}" if slo.name else f"slos[{index}]"


def _unreached(tree: Tree, rules: str, matches: list[tuple[Match, str]]) -> Iterator[Finding]:
    sound = [not any(bad[:3] == (rules, index, "match") for bad in tree.bad) for index in range(len(matches))]
    for index, (match, _) in enumerate(matches):
        for (before, name), known in zip(matches[:index], sound, strict=False):
            if not (known and sound[index]):
                continue
            if _covers(before, match):
                yield (
                    (rules, index, "match"),
                    f"is never reached: {name} before it matches all of it; put this one first",
                )
                break


def _covers(before: Match, match: Match) -> bool:
    """Nothing is left of what ``match`` matches."""
    of, taken = (
        each.prompt_tokens if isinstance(each, SloMatch) else PromptRange() for each in (match, before)
    )
    rest = (before.path, before.model, before.header)
    return taken.holds(of) and (before.everything_else or rest == (match.path, match.model, match.header))


def _listeners(config: Config) -> Iterator[Finding]:
    taken: list[tuple[str, Loc]] = []
    for text, loc in [
        *((text, ("listen",)) for text in config.listen),
        (config.admin.listen, ("admin", "listen")),
    ]:
        for other, _ in taken:
            if _clash(text, other):
                yield loc, f"{text!r} and {other!r} are one address: choose another port"
        taken.append((text, loc))


def _clash(one: str, other: str) -> bool:
    if one.startswith("unix:") or other.startswith("unix:"):
        return one == other
    first, second = parse_address(one), parse_address(other)
    if first.port != second.port or first.port == 0:
        return False
    return first.host == second.host or _is_any(first.host) or _is_any(second.host)


def _headers(config: Config) -> Iterator[Finding]:
    for tag, header in config.record_headers.items():
        if header in SECRET_HEADERS:
            yield (
                ("record_headers", tag),
                f"{header!r} carries a secret, and those are never recorded: leave it out",
            )


def cares(config: Config) -> list[str]:
    """What is allowed and still deserves a look, one sentence each (for ``legato check``)."""
    out = []
    admin = config.admin
    if admin.token is None and not _loopback(admin.listen):
        out.append(f"admin listens on {admin.listen} without a token: only loopback is served the API")
    if admin.token is None and admin.write_token is not None:
        out.append("admin has a token for changes but none for reading: loopback reads without one")
    for name, backend in config.backends.items():
        if not backend.tls.verify:
            out.append(f"backend {name}: certificates are not checked")
    if config.timeouts.upstream_keepalive > 5_000_000_000:
        out.append(
            "timeouts.upstream_keepalive is over 5s: servers on uvicorn (vLLM) close idle ones after 5 s"
        )
    used = {name for route in config.routes for name, _ in route.arms}
    used |= {route.mirror.backend for route in config.routes if route.mirror.backend is not None}
    unused = set(config.backends) - used
    if config.routes and not any(route.match.everything for route in config.routes):
        out.append("no route matches everything: what matches none is answered 404")
    elif not config.routes:
        unused = set(list(config.backends)[1:])
    out += [f"backend {name} is used by no route" for name in config.backends if name in unused]
    out += [*cares_of_splits(config), *cares_of_mirrors(config)]
    out += cares_of_experiment(config.experiment)
    out += _cares_of_logs(config)
    out += cares_of_alerts(config)
    out += cares_of_ejection(config)
    out += cares_of_notifiers(config.alerts)
    cpus = os.cpu_count() or 1
    if config.workers > 1 and config.workers > cpus:
        out.append(f"{config.workers} workers on {cpus} CPUs: more than there are CPUs gains nothing")
    for slo in config.slos:
        out += _cares_of_curves(slo, config)
    if not config.measure:
        out.append("measure is off: streams are forwarded, not scored")
    return [*out, *cares_outside(config.redis, config.otel), *config.notes]


def _cares_of_logs(config: Config) -> Iterator[str]:
    """Files whose folder is missing: it may still be made, and what waited is written."""
    for name, path in (("access_log", config.access_log), ("trace_log", config.trace_log)):
        folder = os.path.dirname(path or "") or "."
        if path not in (None, "-") and not os.path.isdir(folder):
            yield f"{name}: there is no folder {folder}: lines wait, and are dropped (and counted) if many"


def _cares_of_curves(slo: Slo, config: Config) -> list[str]:
    frozen = slo.ttft.frozen if isinstance(slo.ttft, LearnedTtft) else None
    if frozen is None:
        return []
    learned = {curve.backend for curve in frozen.curves}
    out = [
        f"SLO {slo.name}: nothing was learned of backend {name}, its requests get the fallback"
        for name in config.backends
        if name not in learned
    ]
    out += [
        f"SLO {slo.name}: the curve of {curve.backend} {curve.model!r} is the slower of two modes: "
        "most likely cache hits that are not reported"
        for curve in frozen.curves
        if curve.curve.bimodal and curve.backend in config.backends
    ]
    return out


def _loopback(listen: str) -> bool:
    if listen.startswith("unix:"):
        return True
    host = parse_address(listen).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
