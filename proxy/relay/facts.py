"""What the control process is told of a request: built once, when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.link import Facts
from proxy.relay import delays
from proxy.relay.forward import target_path
from proxy.relay.lag import longest

if TYPE_CHECKING:
    from proxy.link import SloSpec
    from proxy.relay.client import Client
    from proxy.relay.exchange import Exchange
    from proxy.relay.shadow import Copy
    from proxy.relay.tracing import Traces
    from proxy.relay.worker import Worker

#: Spans of our own lateness told per request.
_LAGS: Final = 64
#: Bytes kept of a refused request's target: its head may be larger than any that is served.
_TARGET: Final = 8192


def facts_of(exchange: Exchange, seq: int) -> Facts:
    """What the control process will be told."""
    client, call, arm, worker = exchange.client, exchange.call, exchange.arm, exchange.worker
    request_id, tags = worker.tags(client.fields)
    late = worker.lag.between(client.received_ns, exchange.end_ns)
    stream = exchange.unmeasured if exchange.tap is None else exchange.tap.to_stream()
    return Facts(
        seq=seq,
        id=exchange.id,
        received_unix_ns=client.received_unix_ns,
        received_ns=client.received_ns,
        end_ns=exchange.end_ns,
        end=exchange.end or "self",
        method=call.method,
        path=call.path,
        status=exchange.status if client.started else None,
        streamed=exchange.streamed,
        stream_asked=call.stream,
        model=call.model,
        backend=arm.backend,
        slo=arm.slo.name,
        ttft_target_ns=arm.ttft_ns,
        tbt_target_ns=arm.tbt_ns,
        prompt_tokens_estimated=arm.prompt_tokens,
        choices_asked=call.choices,
        request_id=request_id,
        tags=tags,
        upstream_addr=exchange.peer,
        error=exchange.error,
        sent_ns=exchange.sent_ns,
        connect_ns=exchange.connect_ns,
        head_ns=exchange.head_ns,
        first_byte_ns=exchange.first_byte_ns,
        stream=stream,
        blocked=tuple(exchange.blocked),
        forward_p99_ns=delays.quantile_ns(exchange.delay_counts, 0.99),
        loop_lag_max_ns=late.longest_ns,
        attempts=exchange.attempts,
        trace_id=exchange.trace_id,
        target=arm.slo.target,
        e2e_ns=arm.slo.e2e_ns,
        lags=longest(late.spans, _LAGS),
        prompt_text_bytes=call.text_bytes if call.text_only else 0,
        connected_ns=exchange.connected_ns,
        trace=exchange.trace,
        asked=call.asked,
        assignment=arm.assignment,
        copied=exchange.copied,
    )


def facts_of_copy(copy: Copy, worker: Worker, seq: int) -> Facts:
    """Of a copy for a shadow: promised what the request was, and told by no name that its client gave."""
    call, arm = copy.call, copy.arm
    late = worker.lag.between(copy.received_ns, copy.end_ns)
    return Facts(
        seq=seq,
        id=copy.id,
        received_unix_ns=copy.received_unix_ns,
        received_ns=copy.received_ns,
        end_ns=copy.end_ns,
        end=copy.end or "self",
        method=call.method,
        path=call.path,
        status=copy.status,
        streamed=copy.streamed,
        stream_asked=call.stream,
        model=call.model,
        backend=copy.spec.backend,
        slo=arm.slo.name,
        ttft_target_ns=arm.ttft_ns,
        tbt_target_ns=arm.tbt_ns,
        prompt_tokens_estimated=arm.prompt_tokens,
        choices_asked=call.choices,
        upstream_addr=copy.peer,
        error=copy.error,
        sent_ns=copy.sent_ns,
        connect_ns=copy.connect_ns,
        head_ns=copy.head_ns,
        first_byte_ns=copy.first_byte_ns,
        stream=None if copy.tap is None else copy.tap.to_stream(),
        blocked=tuple(copy.blocked),
        loop_lag_max_ns=late.longest_ns,
        target=arm.slo.target,
        e2e_ns=arm.slo.e2e_ns,
        lags=longest(late.spans, _LAGS),
        connected_ns=copy.connected_ns,
        mirror_of=copy.mirror_of,
    )


def facts_of_refused(
    client: Client,
    seq: int,
    id: str,
    slo: SloSpec,
    end_ns: int,
    status: int,
    code: str,
    traces: Traces,
) -> Facts:
    """A request that never became an exchange.  Of one that is no HTTP, not even a path is kept."""
    trace_id, trace = traces.begin(client.fields)
    return Facts(
        seq=seq,
        id=id,
        received_unix_ns=client.received_unix_ns,
        received_ns=client.received_ns,
        end_ns=end_ns,
        end="refused",
        method=client.method.decode("ascii", "replace"),
        path=target_path(client.target[:_TARGET]) if code != "bad_request" else "",
        status=status,
        streamed=False,
        stream_asked=False,
        model=None,
        backend=None,
        slo=slo.name,
        ttft_target_ns=slo.ttft_points[0][1],
        tbt_target_ns=slo.tbt_ns,
        prompt_tokens_estimated=0,
        error=code,
        trace_id=trace_id,
        trace=trace,
    )
