"""What happens now, the proxy's own share and health, and the engine's own metrics beside ours."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import BAD_FROM_ONE, Panel, Query, Row, quantiles

YES_NO: Final = {"0": "no", "1": "yes"}
NO_IS_BAD: Final = ((None, "red"), (1.0, "green"))

NOW: Final = Row(
    "Right now",
    (
        Panel(
            "In flight",
            "Requests that have not ended, replaced each second. Rising while the request rate is flat: "
            "answers take longer.",
            (Query("sum by (backend, model) (legato_requests_in_flight{@group})", "{{backend}} {{model}}"),),
            stacked=True,
        ),
        Panel(
            "Overdue",
            "Streams whose next token is late at this moment: the first sign of a backend that hangs, long "
            "before its requests end and are booked. Look at the backend, then at *Backends up*.",
            (Query("sum by (backend, model) (legato_requests_overdue{@group})", "{{backend}} {{model}}"),),
            steps=BAD_FROM_ONE,
            lines=True,
        ),
        Panel(
            "Missed deadlines of those in flight",
            "What will be booked as missed when these requests end, so far. It falls when they end: a "
            "gauge, never added to the counters.",
            (
                Query(
                    "sum by (backend, model) (legato_in_flight_missed_deadlines{@group})",
                    "{{backend}} {{model}}",
                ),
            ),
        ),
        Panel(
            "Backends up",
            "1 while connections to the backend succeed, for the instance that reaches it least. 0: its "
            "address, its name in DNS, or the server itself.",
            (Query("min by (backend) (legato_backend_up{@backend})", "{{backend}}"),),
            kind="stat",
            steps=NO_IS_BAD,
            words={"0": "down", "1": "up"},
        ),
        Panel(
            "Connections",
            "`connecting` that stays above zero is a backend that accepts slowly; `active` equals the "
            "requests it carries.",
            (
                Query(
                    "sum by (backend, state) (legato_backend_connections{@backend})", "{{backend}} {{state}}"
                ),
            ),
            width=16,
        ),
    ),
)

US: Final = Row(
    "Is it us?",
    (
        Panel(
            "Delay added to each chunk",
            "From a chunk's arrival to the moment it was handed to the client's transport. Milliseconds "
            "here: too little CPU, or too few workers.",
            quantiles("legato_forward_delay_seconds", 0.5, 0.99, 0.999, by="", match="@job"),
            unit="s",
        ),
        Panel(
            "Event loop lag p99",
            "How late the workers' loops ran, per instance. What this explains is taken out of the "
            "deadlines (*Set aside*); one instance alone is its host.",
            quantiles("legato_event_loop_lag_seconds", 0.99, by="instance", match="@job"),
            unit="s",
        ),
        Panel(
            "Slow clients",
            "Upstream reading was paused because a client took no more: pauses per second, and seconds of "
            "pause per second. Their gaps are the clients', not the server's.",
            (
                Query(
                    "sum (rate(legato_client_blocked_seconds_count{@job}[$__rate_interval]))",
                    "pauses per second",
                ),
                Query(
                    "sum (rate(legato_client_blocked_seconds_sum{@job}[$__rate_interval]))",
                    "seconds paused per second",
                ),
            ),
        ),
        Panel(
            "Set aside",
            "Missed deadlines that are in neither met nor missed: `suspect` is the proxy's own lateness, "
            "`client_blocked` a slow client. Suspect above a few percent: give Legato more CPU before "
            "judging the server.",
            (
                Query(
                    "sum by (result) (rate(legato_token_deadlines_total"
                    '{@group, result=~"suspect|client_blocked"}[$__rate_interval]))'
                    " / ignoring (result) group_left ()"
                    " sum (rate(legato_token_deadlines_total{@group}[$__rate_interval]))",
                    "{{result}}",
                ),
            ),
            unit="percentunit",
            width=24,
            height=6,
        ),
    ),
)

BLIND: Final = Row(
    "Am I blind?",
    (
        Panel(
            "Streams passed on unmeasured",
            "Flat at zero is right. `shed`: a worker saved its streams from being delayed; `unrecognised` "
            "or `dialect`: a server that speaks what Legato does not read; `tap_error`: a bug, please "
            "report it.",
            (
                Query(
                    "sum by (reason) (increase(legato_unmeasured_total{@job}[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
        ),
        Panel(
            "Dropped",
            "Flat at zero is right. `worker_lost`: a worker died with records; `settled_by_lost_control`: "
            "sums that a dead control process took along; logs: their target is too slow.",
            (Query("sum by (what) (increase(legato_dropped_total{@job}[$__rate_interval]))", "{{what}}"),),
        ),
        Panel(
            "Failed exports",
            "Attempts to hand data out that failed and are tried again: a full disk, a collector or a Redis"
            " that is away. No stream waits for any of them.",
            (
                Query(
                    "sum by (exporter) (increase(legato_export_failures_total{@job}[$__rate_interval]))",
                    "{{exporter}}",
                ),
            ),
        ),
        Panel(
            "Configuration read",
            "`no`: the last reload failed and the configuration before it is still in force; the log says "
            "which line.",
            (Query("min by (instance) (legato_config_reload_success{@job})", "{{instance}}"),),
            kind="stat",
            width=6,
            height=5,
            steps=NO_IS_BAD,
            words=YES_NO,
        ),
        Panel(
            "Workers",
            "Data processes connected to the control process, per instance. Fewer than configured for long:"
            " the supervisor's log says why they die.",
            (Query("sum by (instance) (legato_workers{@job})", "{{instance}}"),),
            kind="stat",
            width=6,
            height=5,
            steps=NO_IS_BAD,
        ),
        Panel(
            "Draining",
            "1 while an instance lets its streams end before it goes; it takes no new ones.",
            (Query("max by (instance) (legato_draining{@job})", "{{instance}}"),),
            kind="stat",
            width=4,
            height=5,
            steps=((None, "green"), (1.0, "blue")),
            words=YES_NO,
        ),
        Panel(
            "Groups",
            "Of the groups (backend, model, slo) that are exported, the share that is taken. At 100% "
            "further models are booked as `other`.",
            (
                Query(
                    "max by (instance) (legato_groups{@job}) / max by (instance) (legato_groups_limit{@job})",
                    "{{instance}}",
                ),
            ),
            unit="percentunit",
            kind="stat",
            width=4,
            height=5,
            steps=((None, "green"), (0.8, "orange"), (1.0, "red")),
        ),
        Panel(
            "Counting since",
            "The start of each instance's control process, and of its counters.",
            (
                Query(
                    "1000 * max by (instance) (legato_counting_since_seconds{@job})",
                    "{{instance}}",
                ),
            ),
            unit="dateTimeFromNow",
            kind="stat",
            width=4,
            height=5,
        ),
        Panel(
            "Redis",
            "`away`: the last write was not acknowledged. Nothing is wrong for users: what was booked waits"
            " in memory (beside) and is written when it is back. Empty where no Redis is configured.",
            (Query("min by (instance) (legato_redis_up{@job})", "{{instance}}"),),
            kind="stat",
            height=6,
            steps=NO_IS_BAD,
            words={"0": "away", "1": "up"},
        ),
        Panel(
            "Waiting for Redis",
            "Kept in memory until Redis takes it. At the configured bound the oldest is dropped, and "
            "counted in *Dropped*.",
            (Query("sum by (instance) (legato_redis_waiting_bytes{@job})", "{{instance}}"),),
            unit="bytes",
            height=6,
        ),
        Panel(
            "Clock beside Redis's",
            "Slots of time go by Redis's clock, so an offset harms nothing by itself; seconds of it are a "
            "host whose time is not kept, and its logs will not match.",
            (Query("max by (instance) (legato_redis_clock_offset_seconds{@job})", "{{instance}}"),),
            unit="s",
            height=6,
            least=None,
        ),
        Panel(
            "Versions",
            "How many instances run which version: two of them for long is a rollout that stands still.",
            (Query("count by (version) (legato_build_info{@job})", "{{version}}"),),
            kind="stat",
            width=24,
            height=4,
        ),
    ),
)

ENGINE: Final = Row(
    "Beside the engine (vLLM)",
    (
        Panel(
            "Time to first token, ours and vLLM's",
            "Ours begins at the request's last byte and ends at the first output that left the server. Ours"
            " above vLLM's own: the network, or what stands between. Needs vLLM's /metrics in the same data"
            " source.",
            (
                *quantiles("legato_ttft_seconds", 0.5, 0.99, by="model"),
                *quantiles("vllm:time_to_first_token_seconds", 0.5, 0.99, by="model_name", match="@engine"),
            ),
            unit="s",
        ),
        Panel(
            "Time between tokens, ours and vLLM's",
            "vLLM stamps a token when it is sampled, we when it arrives: the difference is what users feel "
            "and the engine does not see.",
            (
                *quantiles("legato_tbt_seconds", 0.5, 0.99, by="model"),
                *quantiles("vllm:inter_token_latency_seconds", 0.5, 0.99, by="model_name", match="@engine"),
            ),
            unit="s",
        ),
        Panel(
            "In flight here, running and waiting there",
            "Waiting above zero is a queue in the engine, and the next thing to rise is the time to first "
            "token. In flight above running + waiting: requests that are on their way, or other clients' "
            "engines.",
            (
                Query("sum by (model) (legato_requests_in_flight{@group})", "{{model}} in flight"),
                Query("sum by (model_name) (vllm:num_requests_running{@engine})", "{{model_name}} running"),
                Query("sum by (model_name) (vllm:num_requests_waiting{@engine})", "{{model_name}} waiting"),
            ),
            width=12,
        ),
        Panel(
            "KV cache in use",
            "Near 100% vLLM preempts: whole streams stand still, which shows as *Longest gap* and in "
            "*Deadline miss rate*.",
            (Query("max by (model_name) (vllm:kv_cache_usage_perc{@engine})", "{{model_name}}"),),
            unit="percentunit",
            width=12,
            most=1.0,
            steps=((None, "green"), (0.9, "orange")),
            lines=True,
        ),
    ),
    collapsed=True,
)
