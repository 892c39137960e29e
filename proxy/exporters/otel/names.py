"""Every attribute of every span once: name, type, unit, where it comes from, which convention names it.

``spans.py`` fills the spans from these rows and ``reference.py`` writes ``SPANS.md`` from them, so that no
attribute is exported that is not documented.  GenAI names follow the repository
open-telemetry/semantic-conventions-genai (all in Development), HTTP names the stable HTTP conventions.

A row's value is ``None`` where there is nothing to say; then the attribute is absent.  Durations are seconds
(floats).  No prompt, answer, query string or header is in any of them, but for the configured tags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from proxy.exporters.otel.view import Conventions, View, When, count, real, seconds, text

Source = Literal["GenAI", "GenAI (old)", "HTTP", "HTTP (old)", "general", "Legato"]
Of = Callable[[View], Any]

#: Attributes of configured tags: this and the tag's name.
TAG_PREFIX: Final = "legato.tag."
_LATEST: Final = "not gen_ai_latest_experimental"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute.  ``type``: str, int, float, bool, or list (of str); ``unit`` is empty for what has none;
    ``level``: the convention's requirement level; ``when``: the condition under which it is written."""

    name: str
    type: type
    of: Of = field(repr=False)
    source: Source
    meaning: str
    level: str = ""
    unit: str = ""
    stable: bool = False
    when: When = ""


def _http(name: str, type_: type, level: str, of: Of, meaning: str) -> Attribute:
    return Attribute(name, type_, of, "HTTP", meaning, level, stable=True)


def _general(name: str, type_: type, level: str, of: Of, meaning: str) -> Attribute:
    return Attribute(name, type_, of, "general", meaning, level, stable=True)


def _old(name: str, type_: type, of: Of, instead: str) -> Attribute:
    return Attribute(name, type_, of, "HTTP (old)", f"The older name of `{instead}`.", when="http/dup")


def _gen_ai(name: str, type_: type, level: str, of: Of, meaning: str, unit: str = "") -> Attribute:
    return Attribute(f"gen_ai.{name}", type_, of, "GenAI", meaning, level, unit)


def _ours(name: str, type_: type, of: Of, meaning: str, unit: str = "") -> Attribute:
    return Attribute(f"legato.{name}", type_, of, "Legato", meaning, "", unit)


def _usage(name: str, of: Of, meaning: str) -> Attribute:
    return _gen_ai(f"usage.{name}", int, "recommended", of, f"{meaning}, as the server reported.", "{token}")


_ERROR: Final = "What went wrong, from a short list (README); absent where nothing did."

#: Of the SERVER span alone.
SERVER: Final = (
    _http("http.request.method", str, "required", lambda v: v.method, "`_OTHER` for unknown methods."),
    _http("http.request.method_original", str, "if unknown", lambda v: v.original_method, "As it came."),
    _http("http.route", str, "if known", lambda v: v.route, "A known API path, or a glob of it."),
    _http(
        "url.path", str, "required", lambda v: v.path, "Without the query string, which is never exported."
    ),
    _http("url.scheme", str, "required", lambda v: v.scheme, "Of Legato's own listener."),
    _http("http.response.status_code", int, "if any", lambda v: v.facts.status, "What the client was told."),
    _general("error.type", str, "on errors", lambda v: v.error, _ERROR),
    _old("http.method", str, lambda v: v.method, "http.request.method"),
    _old("http.target", str, lambda v: v.path, "url.path"),
    _old("http.scheme", str, lambda v: v.scheme, "url.scheme"),
    _old("http.status_code", int, lambda v: v.facts.status, "http.response.status_code"),
)

#: Of the CLIENT span alone.  ``gen_ai.*`` where a model was called, ``http.*`` where none was.
CLIENT: Final = (
    _gen_ai("operation.name", str, "required", lambda v: v.call and v.call.operation, "By the API's format."),
    _gen_ai(
        *("provider.name", str, "required", lambda v: v.call and v.call.provider),
        meaning="The format's flavour: of vLLM serving OpenAI's API it is `openai`.",
    ),
    Attribute(
        *("gen_ai.system", str, lambda v: v.call and v.call.provider, "GenAI (old)"),
        meaning="The name of `gen_ai.provider.name` up to version 1.36 of the conventions.",
        when=_LATEST,
    ),
    _gen_ai("request.model", str, "if named", lambda v: v.model, "As the client names it."),
    _gen_ai(
        *("request.stream", bool, "if true", lambda v: True if v.call and v.facts.stream_asked else None),
        meaning="A stream was asked for.",
    ),
    _gen_ai(
        *("request.choice.count", int, "if not 1"),
        of=lambda v: v.facts.choices_asked if v.call and v.facts.choices_asked != 1 else None,
        meaning="How many answers were asked for.",
    ),
    _gen_ai(
        *("request.max_tokens", int, "recommended", lambda v: count(v.asked.max_tokens)),
        meaning="As asked.",
        unit="{token}",
    ),
    _gen_ai("request.temperature", float, "recommended", lambda v: real(v.asked.temperature), "As asked."),
    _gen_ai("request.top_p", float, "recommended", lambda v: real(v.asked.top_p), "As asked."),
    _gen_ai(
        *("response.id", str, "recommended", lambda v: v.stream and text(v.stream.response_id)),
        meaning="The response's id.",
    ),
    _gen_ai(
        *("response.model", str, "recommended", lambda v: v.stream and text(v.stream.model)),
        meaning="As the response names it.",
    ),
    _gen_ai("response.finish_reasons", list, "recommended", lambda v: v.finish_reasons, "As it says."),
    _gen_ai(
        *("response.time_to_first_chunk", float, "recommended", lambda v: seconds(v.first_chunk_ns)),
        meaning="From the span's start to the first event of a stream, of any kind (see `legato.ttft_s`).",
        unit="s",
    ),
    _usage("input_tokens", lambda v: count(v.usage.prompt), "The prompt's tokens, cached ones included"),
    _usage("output_tokens", lambda v: count(v.usage.output), "The answer's tokens"),
    _usage("cache_read.input_tokens", lambda v: count(v.usage.cached), "Of the prompt's, those cached"),
    _usage("reasoning.output_tokens", lambda v: count(v.usage.reasoning), "Of the answer's, reasoning"),
    _general("server.address", str, "recommended", lambda v: v.server_address, "The backend, as configured."),
    _general("server.port", int, "with it", lambda v: v.server_port, "Its port."),
    _general("network.peer.address", str, "recommended", lambda v: v.peer and v.peer[0], "Who answered."),
    _general("network.peer.port", int, "with it", lambda v: v.peer and v.peer[1], "Its port."),
    _general("error.type", str, "on errors", lambda v: v.call_error, _ERROR),
    _http("http.request.method", str, "required", lambda v: v.plain_method, "Where no model was called."),
    _http("http.response.status_code", int, "if any", lambda v: v.plain_status, "Where no model was called."),
    _http(
        "url.full", str, "required", lambda v: v.plain_url, "Where no model was called; without the query."
    ),
    _http(
        *("http.request.resend_count", int, "if resent"),
        of=lambda v: v.facts.attempts - 1 if v.facts.attempts > 1 else None,
        meaning="How often it was tried again.",
    ),
    _old("http.method", str, lambda v: v.plain_method, "http.request.method"),
    _old("http.url", str, lambda v: v.plain_url, "url.full"),
    _old("http.status_code", int, lambda v: v.plain_status, "http.response.status_code"),
    _old("net.peer.name", str, lambda v: v.server_address, "server.address"),
    _old("net.peer.port", int, lambda v: v.server_port, "server.port"),
)

#: Of both spans.
VERDICT: Final = (
    _ours("id", str, lambda v: v.facts.id, "The record's id: `/api/requests/ID`."),
    _ours("request_id", str, lambda v: text(v.facts.request_id), "From the header configured for it."),
    _ours("kept", str, lambda v: v.kept, "Why it is exported: `sampled`, or `bad` (late, beyond the ratio)."),
    _ours("backend", str, lambda v: v.facts.backend, "By its name in the configuration."),
    _ours("slo", str, lambda v: v.facts.slo, "The promise it was held to."),
    _ours("slo_result", str, lambda v: v.settled.result.value, "`good`, `bad` or `excluded`."),
    _ours("slo_reasons", list, lambda v: list(v.settled.reasons) or None, "Why it is not good."),
    _ours("outcome", str, lambda v: v.settled.outcome.value, "How it ended, as in the metrics."),
    _ours("error", str, lambda v: text(v.facts.error), "Legato's own word for what failed."),
    _ours("fluidity", float, lambda v: v.fluidity, "Share of the deadlines met.", "1"),
)


#: Of the CLIENT span, or of the SERVER span where the upstream was not called.
DETAIL: Final = (
    _ours("met", int, lambda v: v.score and v.score.met, "Token deadlines that were kept.", "{deadline}"),
    _ours("missed", int, lambda v: v.score and v.score.missed, "Those that were not.", "{deadline}"),
    _ours("deadlines", int, lambda v: v.deadlines, "All that fell due, also those taken out.", "{deadline}"),
    _ours(
        *("suspect", bool, lambda v: None if v.score is None else v.score.suspect > 0),
        meaning="Some stall was Legato's own lateness; it is taken out.",
    ),
    _ours(
        *("client_blocked", bool, lambda v: None if v.score is None else v.score.client_blocked > 0),
        meaning="Some stall was a slow client's; it is taken out.",
    ),
    _ours("censored", bool, lambda v: v.settled.censored if v.score else None, "Cut with a token due."),
    _ours("unmeasured", str, lambda v: v.settled.unmeasured, "Why a stream was not measured."),
    _ours("thinned", bool, lambda v: v.settled.thinned or None, "Not every arrival was kept."),
    _ours("dialect", str, lambda v: v.stream and (v.stream.dialect or None), "The response's format."),
    _ours("tokens_source", str, lambda v: v.settled.tokens_source, "What counted the output's tokens."),
    _ours(
        *("output_tokens", int, lambda v: count(v.settled.output_tokens), "By the best word there is."),
        unit="{token}",
    ),
    _ours("prompt_tokens", int, lambda v: count(v.settled.prompt_tokens), "Likewise.", "{token}"),
    _ours("prompt_tokens_source", str, lambda v: v.settled.prompt_source, "`usage` or `estimated`."),
    _ours(
        "ttft_s",
        float,
        lambda v: v.score and seconds(v.score.ttft_ns),
        "To the first token, from t = 0.",
        "s",
    ),
    _ours("ttft_target_s", float, lambda v: v.promised(v.facts.ttft_target_ns), "Its deadline.", "s"),
    _ours(
        *("tbt_target_s", float, lambda v: v.promised(v.facts.tbt_target_ns)),
        meaning="Further tokens' deadline; both absent where the SLO promises the duration only.",
        unit="s",
    ),
    _ours(
        *("tbt_p99_s", float, lambda v: seconds(v.score.tbt.p99_ns) if v.score and v.score.tbt else None),
        meaning="99th percentile of the time between tokens.",
        unit="s",
    ),
    _ours(
        *("longest_gap_s", float, lambda v: seconds(v.score.tbt.max_ns) if v.score and v.score.tbt else None),
        meaning="The longest time between two tokens.",
        unit="s",
    ),
    _ours("late_s", float, lambda v: v.score and seconds(v.score.late_ns), "Lateness in all.", "s"),
    _ours("stalls", int, lambda v: v.score and v.score.stall_count, "Late tokens.", "{stall}"),
    _ours("added_p99_s", float, lambda v: seconds(v.facts.forward_p99_ns), "What Legato adds a chunk.", "s"),
)

#: Span events of the CLIENT span.
FIRST_TOKEN: Final = "legato.first_token"
STALL: Final = "legato.stall"


class EventAttribute(NamedTuple):
    """An attribute of a stall's event."""

    name: str
    type: type
    unit: str
    meaning: str


LATE: Final = EventAttribute("legato.stall.late_s", float, "s", "How late the token came.")
MISSED: Final = EventAttribute("legato.stall.missed", int, "{deadline}", "Deadlines that passed.")
REASON: Final = EventAttribute("legato.stall.reason", str, "", "`suspect`, `client_blocked`: taken out.")
CHOICE: Final = EventAttribute("legato.stall.choice", int, "", "Which answer, where it is not the first.")
STALL_ATTRIBUTES: Final = (LATE, MISSED, REASON, CHOICE)


def fill(rows: tuple[Attribute, ...], view: View, into: dict[str, Any]) -> None:
    """Add what the rows have to say."""
    for row in rows:
        value = row.of(view)
        if value is not None:
            into[row.name] = value


def spoken(rows: tuple[Attribute, ...], conventions: Conventions) -> tuple[Attribute, ...]:
    """The rows that are written under these conventions."""
    return tuple(row for row in rows if conventions.speaks(row.when))
