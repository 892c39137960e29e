"""The closed lists of label values: nothing else ever stands in these labels.

Each list maps a value to the one sentence that documents it.  Counters with such a label exist at 0 for
every value from the start.  A value that no list knows would be an error of ours; so that it can neither
be lost nor open the list, it is exported as ``other``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Values = Mapping[str, str]  # label value -> one sentence


def _values(**meanings: str) -> Values:
    return MappingProxyType(meanings)


OUTCOME: Final = _values(
    completed="Ended as its dialect ends; a response that is not streamed: its body is complete.",
    client_cancelled="The client left before the finish reason went by.",
    rejected="The upstream answered 4xx (not 408, not 429), or the proxy itself refused the request.",
    overloaded="The upstream answered 429 or 503, or the proxy's pool was full.",
    upstream_error="Another 5xx, a failed connection, a cut body, an error event, an end without its end.",
    timeout="408, 504, or a timeout of the proxy's.",
    proxy_error="The proxy itself failed.",
)

RESULT: Final = _values(
    good="Completed, its fluidity reached the target, and it was not longer than `e2e` where one is set.",
    bad="Completed short of that; overloaded, failed, timed out; or left by its client while it was late.",
    excluded="Judged by nothing: rejected, left while in time, not streamed without an `e2e`, or unmeasured.",
)

DEADLINE_RESULT: Final = _values(
    met="Token deadlines that were kept.",
    missed="Token deadlines that passed without their token, the server's doing.",
    suspect="Missed deadlines that the proxy's own lateness explains; in neither met nor missed.",
    client_blocked="Missed deadlines while reading was paused for a slow client; in neither met nor missed.",
)

OUTPUT_SOURCE: Final[Values] = MappingProxyType(
    {
        "token_ids": "Counted by the token ids in the events.",
        "logprobs": "Counted by the log probabilities in the events.",
        "running_usage": "Counted by the running usage in the events.",
        "events": "One token for each event that carried output; the server said nothing better.",
        "events+usage": "The server's final count, spread over the events that carried output.",
        "usage": "The server's count in a response that was not streamed.",
    }
)

PROMPT_SOURCE: Final = _values(
    usage="As the server counted them.",
    estimated="Estimated from the size of the request's text; the server said nothing.",
)

CONNECTION_STATE: Final = _values(
    active="Carrying a request.",
    idle="Open and waiting for one.",
    connecting="Being opened.",
)

DRIFT_AT: Final = _values(
    p50="The median time between tokens of the last hour.",
    p99="Its 99th percentile.",
)

DROPPED: Final = _values(
    facts="Finished requests that never reached the control process: a worker's bounded buffer was full.",
    settled_by_lost_control="Requests settled by a control process that died, with the sums that it held.",
    settled_before_write="Of those, at most so many are in no slot in Redis: settled after its last write.",
    worker_lost="Begun in a worker that died: in flight, or ended and not yet told; copies for a shadow too.",
    access_log="Access log lines: the queue was full or the target could not be written in time.",
    trace_log="Trace lines: the queue was full or the target could not be written in time.",
    arrivals="Arrivals not kept one by one: a stream outgrew the cap and was thinned, or measuring was shed.",
    tap_faults="Errors in the measuring code; those streams went on and are unmeasured from there.",
    spans="Spans that were kept and not exported: the queue was full, or the collector did not take them.",
    redis_slots="Requests whose slots waited too long for Redis: past `redis.memory`, the oldest went.",
    relay_error="Requests that an error of the proxy's own ended; their outcome is `proxy_error`.",
)

UNMEASURED: Final = _values(
    tap_error="An error in the measuring code; the bytes went on untouched.",
    event_too_large="An event or a line went beyond the decoder's bound.",
    bomb="A compressed body grew beyond the decompressor's bound.",
    encoding="A content encoding that is not decompressed here, or one that is broken.",
    unrecognised="An event stream whose events could not be understood.",
    dialect="The stream is not what its path's dialect says.",
    no_tokens="The stream ended well and carried no output that could be counted.",
    switched_off="Measuring was switched off.",
    shed="The worker shed measuring so as not to delay the stream.",
)

EXPORTER: Final = _values(
    prometheus="Rendering `/metrics` failed.",
    access_log="A write to the access log failed and is retried.",
    trace_log="A write to the trace file failed and is retried.",
    redis="Redis did not do what it was asked, and is asked again.",
    otlp_traces="An export of spans failed, its retries too; those spans are lost.",
    otlp_metrics="An export of metrics failed, or was skipped as the one before had not ended.",
)

ALERT_STATE: Final = _values(
    pending="The condition holds, not yet for long enough.",
    firing="The alert is out.",
)

RULE: Final = _values(
    burn_rate="Bad requests use up the objective's budget too fast.",
    spike="Far more requests than usual missed a deadline in the last minute.",
    errors="Far more requests than usual failed in the last minute.",
    stalled="Streams in flight wait for tokens that should have come.",
    drift="Prefill or the time between tokens is slower than what was frozen.",
    backend_down="A backend cannot be connected to.",
    experiment="An experiment's candidate is surely worse than the margin, or its data cannot be trusted.",
    proxy="Legato itself: loop lag, drops, exporters or Redis in trouble, streams unmeasured.",
)

#: Of ``RULE`` those that are about the promises of an SLO.
WATCHED_RULE: Final = _values(
    spike="Not of an SLO that promises the duration only, or whose deadlines follow the server.",
    stalled="Not of an SLO whose deadlines follow the server (`learned: live`).",
    errors="Of every SLO: a request that failed is bad by any terms.",
    burn_rate="Not of an SLO whose deadlines follow the server (`learned: live`).",
)

NOTIFIER: Final = _values(
    webhook="JSON by POST.",
    slack="Slack.",
    alertmanager="Alertmanager.",
    log="A line on standard error.",
)

NOTIFIED: Final = _values(
    sent="Taken by whom it was for.",
    failed="An attempt failed, and is made again.",
    given_up="Every attempt failed, or too many waited: that message is lost.",
)

MIRRORED: Final = _values(
    completed="Answered to the end.",
    failed="The shadow failed, refused, or was cut off.",
    timeout="It took longer than `mirror.timeout` or any request may, and was given up.",
    dropped="Not sent, or cut: too many in flight, the worker busy, the shadow not reached a moment before.",
)
