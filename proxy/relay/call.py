"""Head and body of a request -> ``Call``: what routing and scoring need to know of it.

Only the keys that matter are read.  A body is never changed, and nothing of its content leaves this module
and ``prompt`` but the model's name, flags, and lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from proxy.link import Asked
from proxy.relay.asked import NUMBERS, PLACES, asked_of
from proxy.relay.headers import Fields
from proxy.relay.prompt import LOOKS, Prompt, estimate

#: Bodies up to this size are decoded whole (about a millisecond at worst); larger ones by their two ends.
WHOLE_LIMIT: Final = 512 * 1024
#: How much of each end of a larger body is looked at.
_END_WINDOW: Final = 8 * 1024
_MODEL_LIMIT: Final = 256
_CHOICES_MAX: Final = 1024
#: Keys of a body's top level that may tell whose request it is (OpenAI's names).
SESSION_KEYS: Final = ("user", "safety_identifier", "prompt_cache_key")
_KEY_LIMIT: Final = 4096


class Call(Struct, frozen=True):
    """One request, as far as others need to know it.

    ``text_bytes``: the prompt's text (UTF-8), without images, audio and files; ``tokens``: what of the prompt
    came as token ids.  ``text_only``: the prompt is that text and nothing else.  ``asked``: of sampling.
    ``keys``: of ``SESSION_KEYS``, where routes go by them; nobody but the router is told.
    """

    method: str
    path: str  # without the query string
    model: str | None = None
    stream: bool = False
    choices: int = 1
    text_bytes: int = 0
    tokens: int = 0
    text_only: bool = False
    keys: dict[str, bytes] | None = None
    asked: Asked | None = None


_NONE: Final = Raw(b"")
_NOWHERE: Final = (_NONE,) * len(PLACES)


class _Message(Struct):
    content: Raw = _NONE
    reasoning_content: Raw = _NONE
    reasoning: Raw = _NONE
    thinking: Raw = _NONE
    tool_calls: Raw = _NONE
    function_call: Raw = _NONE
    images: Raw = _NONE
    audio: Raw = _NONE


class _Body(Struct):
    """Every API's keys together: which of them a body has tells which API it is."""

    model: Any = None
    stream: Any = None
    n: Any = None
    n_cmpl: Any = None
    sampling_params: Raw = _NONE
    generationConfig: Raw = _NONE
    generation_config: Raw = _NONE
    messages: list[_Message] | None = None
    # text, parts, items or token ids
    prompt: Raw = _NONE
    input: Raw = _NONE
    inputs: Raw = _NONE
    text: Raw = _NONE
    text_input: Raw = _NONE
    contents: Raw = _NONE
    input_ids: Raw = _NONE
    context: Raw = _NONE
    system: Raw = _NONE
    instructions: Raw = _NONE
    systemInstruction: Raw = _NONE
    system_instruction: Raw = _NONE
    suffix: Raw = _NONE
    input_prefix: Raw = _NONE
    input_suffix: Raw = _NONE
    input_extra: Raw = _NONE
    # shown to the model as JSON
    tools: Raw = _NONE
    functions: Raw = _NONE
    # more than text, or kept by the server
    images: Raw = _NONE
    image_data: Raw = _NONE
    audio_data: Raw = _NONE
    video_data: Raw = _NONE
    input_embeds: Raw = _NONE
    prompt_embeds: Raw = _NONE
    previous_response_id: Raw = _NONE
    conversation: Raw = _NONE
    cachedContent: Raw = _NONE
    cached_content: Raw = _NONE
    session_params: Raw = _NONE


class _Keys(Struct):
    """The keys that routing needs, where the rest of the body was not looked at."""

    model: Any = None
    stream: Any = None
    n: Any = None


class _Within(Struct):
    """What settings of their own hold of the number of choices."""

    n: Any = None
    candidateCount: Any = None
    candidate_count: Any = None


_T = TypeVar("_T", bound=Struct)


def _asking(kind: type[_T]) -> type[_T]:
    """``kind`` with what a request may ask of sampling, for where spans tell it: elsewhere it is skipped."""
    more: list[tuple[str, Any, Any]] = [(name, Any, None) for name in NUMBERS]
    more += [(name, Raw, _NONE) for name in PLACES if name not in kind.__struct_fields__]
    return msgspec.defstruct(f"{kind.__name__}Asking", more, bases=(kind,))  # type: ignore[return-value]


def _keyed(kind: type[_T]) -> type[_T]:
    """``kind`` with the keys that tell a session, for where routes go by one: elsewhere they are skipped."""
    more: list[tuple[str, Any, Any]] = [(name, Any, None) for name in SESSION_KEYS]
    return msgspec.defstruct(f"{kind.__name__}Keyed", more, bases=(kind,))  # type: ignore[return-value]


def _four(kind: type[_T]) -> tuple[Callable[[bytes], _T], ...]:
    """What reads ``kind``, by whether spans will tell what was asked (1) and routes go by a key (2)."""
    kinds = (kind, _asking(kind), _keyed(kind), _keyed(_asking(kind)))
    return tuple(msgspec.json.Decoder(each).decode for each in kinds)


_body: Final = _four(_Body)
_keys: Final = _four(_Keys)
_within = msgspec.json.Decoder(_Within)
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_BIG_KEY: Final = re.compile(
    rb',\s*"(?:messages|prompt|inputs?|contents|text|text_input|input_ids|images|image_data)"\s*:'
)
_TAIL_CUT: Final = re.compile(rb'[\]"}]\s*,\s*(?=")')
#: Gemini's methods (and those of Vertex AI), and Triton's: the model, and for some the wish for a stream.
_IN_PATH: Final = re.compile(
    r"/(?:models|tunedModels)/(?P<model>[^/:]+)(?:"
    r":(?P<method>(?:streamG|g)enerateContent|(?:streamR|r)awPredict|countTokens|predict|(?:batchE|e)mbedContents?)"
    r"|(?:/versions/[^/]+)?/(?P<triton>generate|generate_stream|infer))/?$"
)


def read_call(
    method: str,
    path: str,
    fields: Fields,
    body: Sequence[bytes],
    asks: bool = False,
    keyed: bool = False,
) -> Call:
    """Read a request.  Anything but a JSON object gives a ``Call`` with what its path says; never raises.

    ``asks``: read ``Call.asked`` too; ``keyed``: ``Call.keys`` too.
    """
    size = sum(map(len, body))
    if not size or not _is_json(fields):
        return _call(method, path, _Keys(), Prompt(), 1)
    if size > WHOLE_LIMIT:
        return _from_ends(method, path, body, asks, keyed)
    raw = body[0] if len(body) == 1 else b"".join(body)
    try:
        seen: _Body | None = _body[asks + 2 * keyed](raw)
    except _UNREADABLE:
        seen = None
    if seen is None or len(seen.messages or ()) > LOOKS:
        keys = _lenient(raw, asks, keyed)
        asked = asked_of(keys, _NOWHERE) if asks else None
        prompt = estimate([raw], raw[:_END_WINDOW])
        return _call(
            method, path, keys, prompt, _number(keys.n), asked, session_keys(keys) if keyed else None
        )
    if not asks and not keyed:
        return _call(method, path, seen, _measure(seen), _choices(seen))
    asked = asked_of(seen, _NOWHERE) if asks else None
    whose = session_keys(seen) if keyed else None
    return _call(method, path, seen, _measure(seen), _choices(seen), asked, whose)


def session_keys(seen: Any) -> dict[str, bytes]:
    """What a body with the fields ``SESSION_KEYS`` tells of its session: texts and whole numbers only."""
    told: dict[str, bytes] = {}
    for name in SESSION_KEYS:
        value = getattr(seen, name)
        if type(value) is int:
            value = str(value)
        if isinstance(value, str) and 0 < len(value) <= _KEY_LIMIT:
            told[name] = value.encode("utf-8", "surrogatepass")
    return told


def _call(
    method: str,
    path: str,
    seen: _Body | _Keys,
    prompt: Prompt,
    choices: int,
    asked: Asked | None = None,
    keys: dict[str, bytes] | None = None,
) -> Call:
    model, stream = seen.model, seen.stream is True
    in_path = _IN_PATH.search(path) if "odels/" in path else None
    if in_path is not None:
        # There the path is what the server goes by.
        model = in_path["model"]
        stream = (
            stream or (in_path["method"] or "").startswith("stream") or in_path["triton"] == "generate_stream"
        )
    elif method == "POST" and path.endswith(("/generate_stream", "/api/generate", "/api/chat")):
        # TGI's stream has a path of its own; Ollama streams unless it is told not to.
        stream = path.endswith("_stream") or seen.stream is not False
    if not isinstance(model, str) or len(model) > _MODEL_LIMIT:
        model = None
    text_only = prompt.whole and prompt.text_bytes > 0 and prompt.tokens == 0
    return Call(
        method, path, model, stream, choices, prompt.text_bytes, prompt.tokens, text_only, keys, asked
    )


_said = attrgetter(
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio"
)  # fmt: skip
_SILENT: Final = (_NONE,) * 7
_texts = attrgetter(
    "prompt", "input", "inputs", "text", "text_input", "contents", "input_ids", "context", "system",
    "instructions", "systemInstruction", "system_instruction", "suffix", "input_prefix", "input_suffix",
    "input_extra",
)  # fmt: skip
_hidden = attrgetter(
    "images", "image_data", "audio_data", "video_data", "input_embeds", "prompt_embeds",
    "previous_response_id", "conversation", "cachedContent", "cached_content", "session_params",
)  # fmt: skip


def _measure(seen: _Body) -> Prompt:
    prompt = Prompt()
    for message in seen.messages or ():
        prompt.add(message.content)
        said = _said(message)
        if said != _SILENT:
            _measure_said(prompt, *said)
    if _is_object(seen.text):  # a format (Responses), not a prompt (SGLang)
        seen.text = _NONE
    for value in _texts(seen):
        if value is not _NONE:
            prompt.add(value)
    prompt.add_json(seen.tools)
    prompt.add_json(seen.functions)
    prompt.hidden(_hidden(seen))
    if _is_object(seen.prompt):  # a stored one (Responses), or one with images (llama.cpp)
        prompt.whole = False
    return prompt


def _measure_said(prompt: Prompt, calls: Raw, call: Raw, *others: Raw) -> None:
    """What a message holds beside its content."""
    prompt.add(calls)
    prompt.add(call)
    for thought in others[:3]:
        if len(thought) and bytes(thought) != b"null":  # who sends it by two names sends it twice
            prompt.add(thought)
            break
    prompt.hidden(others[3:])


def _is_object(raw: Raw) -> bool:
    return len(raw) > 0 and memoryview(raw)[0] == 0x7B


def _choices(seen: _Body) -> int:
    """How many answers were asked for, by whichever name."""
    for value in (seen.n, seen.n_cmpl):
        if value is not None:
            return _number(value)
    for settings in (seen.sampling_params, seen.generationConfig, seen.generation_config):
        if len(settings):
            try:
                within = _within.decode(settings)
            except _UNREADABLE:
                continue
            for value in (within.n, within.candidateCount, within.candidate_count):
                if value is not None:
                    return _number(value)
    return 1


def _number(n: object) -> int:
    return n if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= _CHOICES_MAX else 1


def _is_json(fields: Fields) -> bool:
    for name, value in fields:
        if len(name) == 12 and name.lower() == b"content-type":
            return b"json" in value.lower()
    return True  # many clients and test scripts leave it out


def _lenient(raw: bytes, asks: bool, keyed: bool) -> _Keys:
    """The keys of a body whose other parts are not what they should be."""
    read = _keys[asks + 2 * keyed]
    try:
        return read(raw)
    except _UNREADABLE:
        return read(b"{}")


def _from_ends(method: str, path: str, body: Sequence[bytes], asks: bool, keyed: bool) -> Call:
    """Keys from the two ends of a large body, without a pass over its middle.

    A piece that closes as an object at the body's very beginning, or at its very end, can only hold
    top-level keys: the brackets balance.  (Escaped quotes in strings cannot match the cuts.)
    """
    head = _join_until(body, _END_WINDOW)
    tail = _join_until(body, _END_WINDOW, from_end=True)
    cut = _BIG_KEY.search(head)
    seen = _lenient(b"{}" if cut is None else head[: cut.start()] + b"}", asks, keyed)
    for at in _TAIL_CUT.finditer(tail):
        try:
            end = _keys[asks + 2 * keyed](b"{" + tail[at.end() :])
        except _UNREADABLE:
            continue
        for name in end.__struct_fields__:
            value = getattr(end, name)
            if value is not None and value is not _NONE:
                setattr(seen, name, value)
        break
    asked = asked_of(seen, _NOWHERE) if asks else None
    whose = session_keys(seen) if keyed else None
    return _call(method, path, seen, estimate(body, head), _number(seen.n), asked, whose)


def _join_until(body: Sequence[bytes], size: int, *, from_end: bool = False) -> bytes:
    parts: list[bytes] = []
    have = 0
    for piece in reversed(body) if from_end else body:
        parts.append(piece)
        have += len(piece)
        if have >= size:
            break
    if from_end:
        return b"".join(reversed(parts))[-size:]
    return b"".join(parts)[:size]
