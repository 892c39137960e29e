"""What a request is in the words of the conventions: operation, provider, route, kind of error, start.  Pure.

Spans and metrics ask here, so that both say the same of a request.  Imports nothing of OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from scoring.outcome import Outcome

if TYPE_CHECKING:
    from proxy.control.settle import Settled
    from proxy.link import Facts


class Call(NamedTuple):
    """``gen_ai.operation.name`` and ``gen_ai.provider.name`` (the format's flavour, not who serves it)."""

    operation: str
    provider: str


_OPENAI_EMBEDDINGS: Final = Call("embeddings", "openai")
_OLLAMA_EMBEDDINGS: Final = Call("embeddings", "ollama")
_GEMINI_EMBEDDINGS: Final = Call("embeddings", "gcp.gemini")
_GEMINI: Final = Call("generate_content", "gcp.gemini")
_CHAT: Final = Call("chat", "openai")
_TEXT: Final = Call("text_completion", "openai")

#: By the dialect that the response spoke.  vLLM or llama.cpp serving OpenAI's format are ``openai``.
DIALECTS: Final[Mapping[str, Call]] = MappingProxyType(
    {
        "openai.chat": _CHAT,
        "openai.completions": _TEXT,
        "openai.responses": _CHAT,
        "anthropic.messages": Call("chat", "anthropic"),
        "gemini.generate": _GEMINI,
        "ollama.chat": Call("chat", "ollama"),
        "ollama.generate": Call("text_completion", "ollama"),
        "sglang.generate": Call("text_completion", "sglang"),
        "llamacpp.completion": Call("text_completion", "llama.cpp"),
        "tgi.generate": Call("text_completion", "tgi"),
        "triton.generate": Call("text_completion", "triton"),
    }
)

#: Paths that are routes of their own; also those that are no call of a model.
_EXACT: Final = frozenset(
    {
        *("/", "/chat/completions", "/completions", "/responses", "/messages", "/embeddings", "/models"),
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"),
        *("/v1/models", "/generate", "/generate_stream", "/invocations", "/completion", "/infill"),
        *("/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/tags"),
        *("/health", "/metrics", "/tokenize", "/detokenize", "/version"),
    }
)
#: What follows a model's name in a path: Gemini's methods, Triton's endpoints.
_METHODS: Final[Mapping[str, Call | None]] = MappingProxyType(
    {
        "streamGenerateContent": _GEMINI,
        "generateContent": _GEMINI,
        "embedContent": _GEMINI_EMBEDDINGS,
        "batchEmbedContents": _GEMINI_EMBEDDINGS,
        "countTokens": None,
    }
)
_TRITON: Final = ("generate_stream", "generate")
#: By the path's end, whatever stands before it; the first that fits.
_ENDS: Final[tuple[tuple[str, Call], ...]] = (
    ("/chat/completions", _CHAT),
    ("/completions", _TEXT),
    ("/responses", _CHAT),
    ("/messages", DIALECTS["anthropic.messages"]),
    ("/api/embeddings", _OLLAMA_EMBEDDINGS),
    ("/api/embed", _OLLAMA_EMBEDDINGS),
    ("/embeddings", _OPENAI_EMBEDDINGS),
    ("/api/generate", DIALECTS["ollama.generate"]),
    ("/api/chat", DIALECTS["ollama.chat"]),
    ("/generate_stream", DIALECTS["tgi.generate"]),
    ("/invocations", DIALECTS["tgi.generate"]),
    ("/generate", DIALECTS["sglang.generate"]),
    ("/completion", DIALECTS["llamacpp.completion"]),
    ("/infill", DIALECTS["llamacpp.completion"]),
)
_ANSWERED_CUT: Final = frozenset({"truncated", "bad_response", "timeout_idle", "self"})
_PATH_LIMIT: Final = 1024


class Route(NamedTuple):
    """``http.route`` of a known path, and the call that it promises; both ``None`` for other paths."""

    name: str | None
    call: Call | None


@lru_cache(maxsize=256)
def route_of(path: str) -> Route:
    """The route of a path (without its query): of a closed list, as it is or as a glob, never other text."""
    if not path or len(path) > _PATH_LIMIT:  # none: it was no HTTP
        return Route(None, None)
    path = path.rstrip("/") or "/"
    method = _method_route(path)
    if method is not None:
        return method
    ends = next(((end, call) for end, call in _ENDS if path.endswith(end)), None)
    call = None if ends is None else ends[1]
    if path in _EXACT:
        return Route(path, call)
    return Route(None, None) if ends is None else Route(f"*{ends[0]}", call)


def _method_route(path: str) -> Route | None:
    head, slash, last = path.rpartition("/")
    model, colon, method = last.partition(":")
    if colon and model and method in _METHODS and head.endswith(("/models", "/tunedModels")):
        known = head if head in ("/v1/models", "/v1beta/models") else f"*/{head.rpartition('/')[2]}"
        return Route(f"{known}/{{model}}:{method}", _METHODS[method])
    if slash and last in _TRITON and "/v2/models/" in head:
        return Route(f"*/v2/models/{{model}}/{last}", DIALECTS["triton.generate"])
    return None


def path_of(facts: Facts) -> str:
    """The request's path without its query string."""
    return facts.path.partition("?")[0]


def call_of(facts: Facts) -> Call | None:
    """What was asked of a model: by the response's dialect, else by the path; ``None``: nothing."""
    if facts.method != "POST":
        return None
    stream = facts.stream
    spoken = None if stream is None else DIALECTS.get(stream.dialect)
    return route_of(path_of(facts)).call if spoken is None else spoken


# ---------------------------------------------------------------- time


def unix_ns(facts: Facts, at_ns: int) -> int:
    """A stamp of the worker's monotonic clock on the wall clock, as it stood when the request came."""
    return facts.received_unix_ns + (at_ns - facts.received_ns)


def called(facts: Facts) -> bool:
    """Whether the upstream was called: a connection was there, or one was tried."""
    return (
        facts.sent_ns is not None
        or facts.connected_ns is not None
        or facts.end in ("connect_failed", "timeout_connect")
    )


def issued_ns(facts: Facts) -> int:
    """When the call to the upstream began (worker's clock): connecting, or taking a kept connection."""
    if facts.connected_ns is not None:
        at_ns = facts.connected_ns - facts.connect_ns
    elif facts.sent_ns is None:  # it never was connected
        at_ns = facts.end_ns - facts.connect_ns if facts.connect_ns else facts.received_ns
    else:
        at_ns = facts.sent_ns - facts.connect_ns
    return max(at_ns, facts.received_ns)


def first_chunk_ns(facts: Facts) -> int | None:
    """From ``issued_ns`` to the first event of a streamed response; ``None``: there was none."""
    stream = facts.stream
    if not facts.streamed or stream is None or stream.first_event_ns is None:
        return None
    return max(stream.first_event_ns - issued_ns(facts), 0)


# ---------------------------------------------------------------- errors


def answered(facts: Facts) -> int | None:
    """The upstream's own status; ``None``: it never answered (what the client was told then is ours)."""
    return None if facts.head_ns is None else facts.status


def client_error(settled: Settled) -> str | None:
    """``error.type`` of the call to the upstream; ``None``: it went well, or the client left.

    A status (``"429"``); ``timeout``; our word for what failed, as in the record (``connection_refused``,
    ``upstream_cut``, ...); the code of the server's error event; else the outcome.
    """
    facts, outcome = settled.facts, settled.outcome
    if outcome in (Outcome.COMPLETED, Outcome.CLIENT_CANCELLED):
        return None
    status = answered(facts)
    if status is not None and status >= 400:
        return str(status)
    if outcome is Outcome.TIMEOUT:
        return "timeout"
    if facts.error is not None and facts.end != "self":
        return facts.error
    if facts.stream is not None and facts.stream.error is not None:
        return facts.stream.error
    return outcome.value


def server_error(settled: Settled) -> str | None:
    """``error.type`` of the request as its client saw it: a 5xx, an answer that was cut, or none at all."""
    facts, status = settled.facts, settled.facts.status
    if status is not None and status >= 500:
        return str(status)
    if facts.end == "client_left":
        return None
    if status is None:
        return settled.outcome.value
    if facts.end in _ANSWERED_CUT and status < 400:
        return client_error(settled)
    return None
