"""What users get: the rows *Are users served?* and *How it feels*."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import BURN_STEPS, Panel, Query, Row, burn, good, quantiles

OBJECTIVE: Final = Query("max by (slo) (legato_slo_objective_ratio{@slo})", "{{slo}} objective", promise=True)
SERVED: Final = Row(
    "Are users served?",
    (
        Panel(
            "Good requests",
            "The share of judged requests that completed and reached their target fluidity, over the time "
            "shown. Rejected requests, and those that their client left while all was in time, are judged "
            "by nothing. When it is below the objective: *Requests by outcome* says whether they failed or "
            "were late.",
            (Query(good("$__range"), "{{slo}}"),),
            unit="percentunit",
            kind="stat",
            width=6,
            height=6,
            steps=((None, "blue"),),
            worst=True,
        ),
        Panel(
            "Error budget burn, last hour",
            "1 spends exactly the budget (1 - objective), 14.4 spends a month's in two days. "
            "The greatest burn possible is 1 / (1 - objective).",
            (burn("1h"),),
            unit="short",
            kind="stat",
            width=6,
            height=6,
            steps=BURN_STEPS,
            worst=True,
        ),
        Panel(
            "Good requests against the objective",
            "Below the dashed line users got less than was promised. A request is booked when it ends: what"
            " hangs right now stands in *Right now*.",
            (Query(good("$__rate_interval"), "{{slo}}"), OBJECTIVE),
            unit="percentunit",
            width=12,
            height=6,
            least=None,
            most=1.0,
            worst=True,
        ),
        Panel(
            "Error budget burn",
            "Short and long windows together: red in 5 m and 1 h is worth waking somebody (14.4), in 1 h "
            "and 6 h at 6 as well; 5 m alone is over already or has just begun.",
            tuple(burn(window) for window in ("5m", "1h", "6h")),
            unit="short",
            steps=BURN_STEPS,
            lines=True,
            worst=True,
        ),
        Panel(
            "Deadline miss rate",
            "Missed token deadlines over all: what users saw, weighed by time waited. What was the proxy's "
            "own doing, or a slow client's, is in neither (see *Is it us?*).",
            (
                Query(
                    "sum by (backend, model)"
                    ' (rate(legato_token_deadlines_total{@group, result="missed"}[$__rate_interval]))'
                    " / sum by (backend, model)"
                    ' (rate(legato_token_deadlines_total{@group, result=~"met|missed"}[$__rate_interval]))',
                    "{{backend}} {{model}}",
                ),
            ),
            unit="percentunit",
            worst=True,
        ),
        Panel(
            "Requests by outcome",
            "`overloaded` is 429, 503 or the pool; `upstream_error` another 5xx, a cut answer or one "
            "without its end; `timeout` a timeout of either; `client_cancelled` users who left, perhaps for"
            " a reason.",
            (
                Query(
                    "sum by (outcome) (rate(legato_requests_total{@group}[$__rate_interval]))",
                    "{{outcome}}",
                ),
            ),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Request rate",
            "Requests that ended, per second. A rate that falls while *in flight* rises is a backend that "
            "slows down.",
            (
                Query(
                    "sum by (backend, model) (rate(legato_requests_total{@group}[$__rate_interval]))",
                    "{{backend}} {{model}}",
                ),
            ),
            unit="reqps",
            width=12,
        ),
        Panel(
            "Verdicts",
            "`excluded` requests count for nothing: if they are many, look at why (*unmeasured*, "
            "*rejected*).",
            (
                Query(
                    "sum by (result) (rate(legato_slo_requests_total{@group}[$__rate_interval]))",
                    "{{result}}",
                ),
            ),
            unit="reqps",
            width=12,
            stacked=True,
        ),
    ),
)

FEELS: Final = Row(
    "How it feels",
    (
        Panel(
            "Time to first token",
            "From the request's last byte to the first event that carries output. Dashed: the promise (of a"
            " table by prompt length its smallest). High p99 and steady time between tokens: queueing or "
            "prefill.",
            (
                *quantiles("legato_ttft_seconds", 0.5, 0.9, 0.99),
                Query("min by (slo) (legato_ttft_target_seconds{@slo})", "{{slo}} target", promise=True),
            ),
            unit="s",
            worst=True,
        ),
        Panel(
            "Time between tokens",
            "Every gap of every stream. A quantile of gaps hides one long stall in a long answer: hold it "
            "against *Longest gap* and *Fluidity*.",
            (
                *quantiles("legato_tbt_seconds", 0.5, 0.9, 0.99),
                Query("min by (slo) (legato_tbt_target_seconds{@slo})", "{{slo}} target", promise=True),
            ),
            unit="s",
            worst=True,
        ),
        Panel(
            "Longest gap of a request",
            "What the unluckiest readers waited in the middle of an answer. Seconds here with a good median"
            " are preempted or stalled streams: prefills that hold decoding up, a full KV cache.",
            quantiles("legato_longest_gap_seconds", 0.5, 0.99),
            unit="s",
            worst=True,
        ),
        Panel(
            "Fluidity",
            "The share of its token deadlines that a request met; p1 is the unluckiest request of a "
            "hundred. Within a bucket it is interpolated: all at 1.0 shows as a little less.",
            quantiles("legato_fluidity_ratio", 0.01, 0.5),
            unit="percentunit",
            least=None,
            most=1.0,
            worst=True,
        ),
        Panel(
            "Fluid token rate",
            "Tokens per second that 99% of requests could be read at without a stall, since the control "
            "process began; the least of all instances. Absent where more than 1% of requests have no such "
            "rate: look at the TTFT.",
            (
                Query(
                    "min by (backend, model, slo) (legato_fluid_token_rate{@group})",
                    "{{backend}} {{model}} {{slo}}",
                ),
            ),
            unit="short",
        ),
        Panel(
            "Tokens per second",
            "Booked when a request ends, so long answers come late. Output high and fluidity low: "
            "throughput is bought with the users' patience.",
            (
                Query(
                    "sum by (backend, model) (rate(legato_output_tokens_total{@group}[$__rate_interval]))",
                    "{{backend}} {{model}} output",
                ),
                Query(
                    "sum by (backend, model) (rate(legato_prompt_tokens_total{@group}[$__rate_interval]))",
                    "{{backend}} {{model}} prompt",
                ),
            ),
            unit="short",
        ),
        Panel(
            "Whole requests",
            "From the request's last byte to the end of the answer. Longer answers are longer: nothing is "
            "wrong by itself.",
            quantiles("legato_request_duration_seconds", 0.5, 0.99),
            unit="s",
        ),
        Panel(
            "Time per output token",
            "TPOT leaves the first token out, the normalized latency spreads it over all: apart, queueing "
            "or prefill is what costs.",
            (
                *quantiles("legato_tpot_seconds", 0.5, 0.99),
                *(
                    Query(query.expr, query.legend + " normalized")
                    for query in quantiles("legato_normalized_latency_seconds", 0.5, 0.99)
                ),
            ),
            unit="s",
        ),
        Panel(
            "Against what was frozen",
            "The learned prefill and time between tokens of now over those that `legato freeze` wrote: 1 is"
            " as fast, 2 twice as slow. Empty without a frozen file.",
            (
                Query(
                    "max by (backend, model) (legato_prefill_drift_ratio{@model})",
                    "{{backend}} {{model}} prefill",
                ),
                Query(
                    "max by (backend, model, at) (legato_tbt_drift_ratio{@model})",
                    "{{backend}} {{model}} {{at}} time between tokens",
                ),
            ),
            unit="short",
            steps=((None, "green"), (1.5, "red")),
            lines=True,
        ),
    ),
)
