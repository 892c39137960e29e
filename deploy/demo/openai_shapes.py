"""What the simulator says, in the shapes of vLLM's OpenAI server: requests in, events and bodies out.

Pure.  One event per token; the role comes in an event of its own when the first token is there, usage only
if asked for, ``[DONE]`` at the end, errors as ``{"error": {...}}``.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any, Final

OWNER: Final = "legato-demo-simulator"
BYTES_PER_TOKEN: Final = 4
DONE: Final = b"data: [DONE]\n\n"

#: What it "generates": English words, so that a person who looks at the stream sees text.
_TEXT: Final = (
    "a smooth stream is one whose words arrive before the reader needs them and a stall is a silence that "
    "comes when someone else asked something long so the prompt is cut into pieces and every step carries "
    "one word for each reader first then as much of the prompt as still fits"
)
WORDS: Final = _TEXT.split()


class BadRequest(Exception):
    """The request cannot be served; ``status``, ``kind`` and ``param`` go into the error body."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """The error in OpenAI's shape."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return _dump({"error": error})


@dataclass(frozen=True, slots=True)
class Ask:
    """The part of a request that the simulator heeds."""

    chat: bool
    model: str
    prompt_tokens: int
    max_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool


def parse(body: bytes, *, chat: bool, model: str, max_model_len: int) -> Ask:
    """Read a request body.  Raises ``BadRequest`` with what a client of vLLM would be told."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"JSON decode error: {error}", kind="Bad Request") from error
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object", kind="Bad Request")
    if data.get("model", model) != model:
        raise BadRequest(
            f"The model `{data['model']}` does not exist. Valid aliases: {model}.",
            status=404,
            kind="NotFoundError",
            param="model",
        )
    if data.get("n") not in (None, 1):
        raise BadRequest("the simulator answers one choice: leave `n` out", param="n")
    text_bytes = _chat_bytes(data.get("messages")) if chat else _prompt_bytes(data.get("prompt"))
    prompt_tokens = max(1, -(-text_bytes // BYTES_PER_TOKEN))
    max_tokens = _positive(data, "max_completion_tokens") or _positive(data, "max_tokens") or 128
    if prompt_tokens + max_tokens > max_model_len:
        raise BadRequest(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{max_tokens} output tokens and your prompt contains {prompt_tokens} input tokens.",
            param="input_tokens",
        )
    options = data.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object", param="stream_options")
    return Ask(
        chat=chat,
        model=model,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        stream=bool(data.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
    )


class Answer:
    """Builds the events or the body of one answer."""

    def __init__(self, ask: Ask, identity: str, created: int) -> None:
        self._ask = ask
        self.id = ("chatcmpl-" if ask.chat else "cmpl-") + identity
        self._head = {
            "id": self.id,
            "object": "chat.completion.chunk" if ask.chat else "text_completion",
            "created": created,
            "model": ask.model,
        }
        self._first_word = zlib.crc32(identity.encode()) % len(WORDS)

    def word(self, index: int) -> str:
        """The text of token ``index``."""
        word = WORDS[(self._first_word + index) % len(WORDS)]
        return f" {word}" if index else word.capitalize()

    def role(self) -> bytes:
        """The first event of a chat stream."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _event({**self._head, "choices": [choice], "prompt_token_ids": None, "prompt_text": None})

    def token(self, index: int, *, last: bool) -> bytes:
        """The event of one token; the last carries the finish reason, as vLLM's does."""
        choice: dict[str, Any] = {"index": 0}
        if self._ask.chat:
            choice["delta"] = {"content": self.word(index)}
        else:
            choice["text"] = self.word(index)
        choice |= {"logprobs": None, "finish_reason": "length" if last else None}
        if last or not self._ask.chat:
            choice["stop_reason"] = None
        if not self._ask.chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = None
        event: dict[str, Any] = {**self._head, "choices": [choice]}
        if last:
            event["system_fingerprint"] = OWNER
        if self._ask.continuous_usage:
            event["usage"] = self._usage(index + 1)
        return _event(event)

    def usage(self, tokens: int) -> bytes:
        """The event with the counts, after the last token."""
        event: dict[str, Any] = {**self._head, "choices": [], "usage": self._usage(tokens)}
        return _event({**event, "system_fingerprint": OWNER})

    def body(self, tokens: int) -> bytes:
        """The whole answer of a request that was not streamed."""
        text = "".join(self.word(index) for index in range(tokens))
        choice: dict[str, Any] = {"index": 0}
        if self._ask.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": "length", "stop_reason": None, "token_ids": None}
        head = {**self._head, "object": "chat.completion"} if self._ask.chat else self._head
        return _dump({**head, "choices": [choice], "system_fingerprint": OWNER, "usage": self._usage(tokens)})

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self._ask.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}


def models(model: str, scheduler: str, max_model_len: int, created: int) -> bytes:
    """``/v1/models``: says who answers here."""
    entry = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "root": f"simulated engine, {scheduler} scheduler: canned text, only its timing means something",
        "parent": None,
        "max_model_len": max_model_len,
    }
    return _dump({"object": "list", "data": [entry]})


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(value: object) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _positive(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"`{key}` must be an integer of at least 1, it is {value!r}", param=key)
    return value


def _chat_bytes(messages: object) -> int:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list of at least one message", param="messages")
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            total += len(content.encode())
        elif isinstance(content, list):
            total += sum(_part_bytes(part) for part in content)
        elif content is not None or not isinstance(message, dict):
            raise BadRequest("each message must be an object with text content", param="messages")
    return total


def _part_bytes(part: object) -> int:
    text = part.get("text") if isinstance(part, dict) else None
    return len(text.encode()) if isinstance(text, str) else 0


def _prompt_bytes(prompt: object) -> int:
    if not isinstance(prompt, str):
        raise BadRequest("`prompt` must be a string", param="prompt")
    return len(prompt.encode())
