"""A client's request as it goes upstream: target, head, body.  Bytes are kept; only framing is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.relay.headers import Fields, end_to_end, find
from proxy.relay.upstream import Request

if TYPE_CHECKING:
    from proxy.relay.client import Client
    from proxy.relay.exchange import Exchange
    from proxy.relay.pool import Origin

#: ``Expect`` is answered by us, since the body is in our hands when the upstream is asked.
_EXPECT = frozenset((b"expect",))


def target_path(target: bytes) -> str:
    """The path of a raw target, without its query."""
    return origin_form(target).partition(b"?")[0].decode("latin-1")


def origin_form(target: bytes) -> bytes:
    """A target as an origin server expects it: the absolute form loses its scheme and authority."""
    if target[:1] in (b"/", b"*"):
        return target
    _, _, rest = target.partition(b"://")
    slash = rest.find(b"/")
    if slash < 0:
        query = rest.find(b"?")
        return b"/" + rest[query:] if query >= 0 else b"/"
    return rest[slash:]


def upstream_request(exchange: Exchange, pool: Origin) -> Request:
    """The request for ``pool``'s backend, without its body."""
    client = exchange.client
    fields = end_to_end(client.fields, _EXPECT)
    if pool.rewrite_host or client.version == "1.0":
        fields = _with_host(fields, pool)
    table = exchange.worker.table
    if table.forwarded_headers:
        trusted = exchange.worker.trusts(client.peer)
        fields = _forwarded(fields, client, trusted=trusted)
    if table.request_id_header is not None:
        fields = with_request_id(exchange, fields)
    if exchange.trace is not None and exchange.trace_id is not None:
        fields = exchange.worker.traces.inject(fields, exchange.trace_id, exchange.trace)
    target = origin_form(client.target)
    if pool.base and target != b"*":
        target = pool.base + target
    return Request(client.method, target, fields, client.upload_chunked)


def _with_host(fields: Fields, pool: Origin) -> Fields:
    host = (b"Host", pool.authority)
    out: Fields = []
    seen = False
    for field in fields:
        if field[0].lower() == b"host":
            seen = True
            out.append((field[0], pool.authority) if pool.rewrite_host else field)
        else:
            out.append(field)
    return out if seen else [host, *out]


def with_request_id(exchange: Exchange, fields: Fields) -> Fields:
    """``fields`` with the configured request-id header: the client's own where it sent one, else ours."""
    name = exchange.worker.table.request_id_header
    if name is None or find(fields, name.lower().encode()) is not None:
        return fields
    theirs = find(exchange.client.fields, name.lower().encode())
    return [*fields, (name.encode(), theirs if theirs is not None else exchange.id.encode())]


def _forwarded(fields: Fields, client: Client, *, trusted: bool) -> Fields:
    """``X-Forwarded-*``: appended to what a trusted proxy sent, in place of what anyone else did."""
    address = client.peer[0] if client.peer else "unknown"
    names = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
    before = {name: b"" for name in names}
    out: Fields = []
    host = b""
    for name, value in fields:
        lower = name.lower()
        if lower in before:
            before[lower] = before[lower] + b", " + value if before[lower] else value
            continue
        if lower == b"host":
            host = value
        out.append((name, value))
    chain = address.encode()
    if trusted and before[b"x-forwarded-for"]:
        chain = before[b"x-forwarded-for"] + b", " + chain
    proto = before[b"x-forwarded-proto"] if trusted else b""
    asked = before[b"x-forwarded-host"] if trusted else b""
    scheme = (client.protocol.scheme or "http").encode()
    out.append((b"X-Forwarded-For", chain))
    out.append((b"X-Forwarded-Proto", proto or scheme))
    if asked or host:
        out.append((b"X-Forwarded-Host", asked or host))
    return out
