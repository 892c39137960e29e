"""Who is told, and what is tried out: the rows *Is somebody told?* and *Tried out beside the rest*."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import BAD_FROM_ONE, Panel, Query, Row

TOLD: Final = Row(
    "Is somebody told?",
    (
        Panel(
            "Alerts firing",
            "Legato's own alerts by rule, of the instance that has most of them. What each means and what to "
            "do first stands in deploy/runbooks; `legato alerts list` names the groups and the requests.",
            (Query('max by (rule) (legato_alerts{@job, state="firing"})', "{{rule}}"),),
            width=12,
            steps=BAD_FROM_ONE,
            lines=True,
            worst=True,
        ),
        Panel(
            "Alerts pending",
            "The condition holds, not yet for long enough. What comes and goes here without firing is near "
            "its threshold, and nobody was woken for it.",
            (Query('max by (rule) (legato_alerts{@job, state="pending"})', "{{rule}}"),),
            width=12,
        ),
        Panel(
            "Messages",
            "Messages to those who are told, by how it went. `failed` is an attempt that is made again: some"
            " are a receiver that restarted.",
            (
                Query(
                    "sum by (notifier, result)"
                    " (increase(legato_notifications_total{@job}[$__rate_interval]))",
                    "{{notifier}} {{result}}",
                ),
            ),
            width=16,
            height=6,
        ),
        Panel(
            "Messages given up",
            "Over the time shown. Above zero somebody was not told: the log says of whom, and `legato alerts"
            " test NOTIFIER` sends a sample.",
            (
                Query(
                    'sum by (notifier) (increase(legato_notifications_total{@job, result="given_up"}'
                    "[$__range]))",
                    "{{notifier}}",
                ),
            ),
            kind="stat",
            height=6,
            steps=BAD_FROM_ONE,
        ),
    ),
)

TRIED: Final = Row(
    "Tried out beside the rest",
    (
        Panel(
            "Weights of experiments",
            "Each arm's share of the traffic by the weights in force. A candidate that falls to zero by "
            "itself was aborted or ejected: `/api/experiments` says why. Empty without an experiment.",
            (
                Query(
                    "max by (experiment, backend) (legato_experiment_weight{@backend})",
                    "{{experiment}} {{backend}}",
                ),
            ),
            unit="percentunit",
            most=1.0,
        ),
        Panel(
            "Requests of experiments",
            "Requests that were assigned to each arm, per second. Their ratio is that of the weights; where "
            "it is not, the integrity test of `/api/compare` says since when.",
            (
                Query(
                    "sum by (experiment, backend)"
                    " (rate(legato_experiment_requests_total{@backend}[$__rate_interval]))",
                    "{{experiment}} {{backend}}",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Copies for shadows",
            "Copies of requests to a shadow backend; they are in no other panel. `dropped` is right where "
            "the shadow is slower than the traffic: no user waits for it.",
            (
                Query(
                    "sum by (backend, result)"
                    " (rate(legato_mirrored_requests_total{@backend}[$__rate_interval]))",
                    "{{backend}} {{result}}",
                ),
            ),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Ejected backends",
            "`out`: taken out of its splits because it failed, or not yet back with all of its weight; of "
            "the instance that judges it worst. `/api/backends` says what it failed with.",
            (Query("max by (backend) (legato_backend_ejected{@backend})", "{{backend}}"),),
            kind="stat",
            width=24,
            height=4,
            steps=BAD_FROM_ONE,
            words={"0": "in", "1": "out"},
        ),
    ),
)
