"""How long the prompt in a request's body is: bytes of text, token ids, and whether that is all of it.

The shapes are those of the APIs that servers speak: OpenAI's (chat, completions, responses, embeddings),
Anthropic's, Ollama's, Gemini's, and the native ones of llama.cpp, SGLang, TGI and Triton.  Strings are
measured as they lie in the body, without being decoded; only what has a structure of its own (parts,
items) is.  Nothing of the content leaves this module but its length.

Images, audio and files never count as text.  Where a body holds some, or points at context that the server
keeps (a stored prompt, an earlier response), what was counted is not the whole prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_BASE64: Final = b";base64,"
_DATA_URL: Final = re.compile(rb";base64,[A-Za-z0-9+/=_-]*")
_NUMBERS: Final = b"0123456789, \t\r\n[]"
_QUOTE, _LIST, _OBJECT, _NULL = b'"[{n'
#: Objects that are looked into, and runs of base64 that are looked for, in one body: beyond that it is no
#: prompt that anybody meant, and must not hold the loop.
LOOKS: Final = 4096
#: Escapes are counted up to here in one string; the rest of it will have as many.
_ESCAPES: Final = 64 * 1024

#: Objects of these types, wherever they stand, are no text.
_MEDIA_TYPES: Final = frozenset((
    "image", "image_url", "input_image", "input_audio", "audio", "audio_url", "video", "video_url", "file",
    "input_file", "container_upload", "image_generation_call", "base64", "url", "redacted_thinking",
    "item_reference",
))  # fmt: skip
#: Neither is what stands under these keys.
_MEDIA_KEYS: Final = frozenset((
    "image_url", "image", "images", "input_audio", "audio", "audio_url", "video", "video_url", "file",
    "inlineData", "inline_data", "fileData", "file_data", "multimodal_data", "encrypted_content",
))  # fmt: skip
#: What a part or an item says beside its text, none of which is part of the prompt.
_BESIDE: Final = frozenset((
    "type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "status", "index", "cache_control",
    "signature", "thoughtSignature", "thought_signature", "detail", "citations", "annotations", "logprobs",
    "media_type", "mimeType", "mime_type", "shape", "datatype",
))  # fmt: skip
#: Where any JSON may stand that the model is shown as JSON.
_SHOWN: Final = frozenset(("input", "args", "arguments", "response"))


class Prompt:
    """What was counted so far.  ``whole``: it is all that the prompt consists of."""

    __slots__ = ("_looks", "text_bytes", "tokens", "whole")

    def __init__(self) -> None:
        self.text_bytes = 0  # UTF-8, without quotes and escapes
        self.tokens = 0  # given as ids
        self.whole = True
        self._looks = LOOKS

    def add(self, raw: msgspec.Raw | bytes) -> None:
        """A string, token ids, parts or items; absent and ``null`` are nothing.  Never raises."""
        data = bytes(raw)
        if not data or data[0] == _NULL:
            return
        if data[0] == _QUOTE:
            self._string(data)
        elif data[0] == _LIST and not data.translate(None, _NUMBERS):
            self.tokens += data.count(b",") + 1 if data.strip(b"[], \t\r\n") else 0
        elif data[0] in (_LIST, _OBJECT):
            self._looks -= data.count(b"{")
            try:
                if self._looks >= 0:
                    return self._walk(msgspec.json.decode(data))
            except _UNREADABLE:
                pass
            self.text_bytes += len(data) - media_bytes([data])
            self.whole = False

    def add_json(self, raw: msgspec.Raw | bytes) -> None:
        """What a model is shown as JSON (tools): its length."""
        if len(raw) > len(b"[]") and bytes(raw) != b"null":
            self.text_bytes += len(raw)

    def hidden(self, raws: Iterable[msgspec.Raw]) -> None:
        """Values that say, where they are not empty, that the prompt is more than its text."""
        for raw in raws:
            if len(raw) and bytes(raw) not in (b"null", b"[]", b"{}", b'""', b"false"):
                self.whole = False

    def _string(self, data: bytes) -> None:
        """A JSON string, quotes and all, as it lies in the body."""
        size = len(data) - 2
        if size > 64 and _BASE64 in data:
            size -= sum(len(found) - len(_BASE64) for found in _DATA_URL.findall(data))
            self.whole = False
        if b"\\" in data:
            head = data[:_ESCAPES]
            # Two bytes stand for one, six (\uXXXX) for two or three: three, as in most alphabets.
            more = head.count(b"\\") - head.count(b"\\\\") + 2 * head.count(b"\\u")
            size -= more * len(data) // len(head)
        self.text_bytes += max(0, size)

    def _walk(self, value: Any) -> None:
        if isinstance(value, str):
            if value.startswith("data:") and ";base64," in value[:128]:
                self.whole = False
            else:
                self.text_bytes += _utf8_size(value)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, int) and not isinstance(each, bool):
                    self.tokens += 1
                else:
                    self._walk(each)
        elif isinstance(value, dict):
            self._object(value)

    def _object(self, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if isinstance(kind, str) and kind in _MEDIA_TYPES:
            self.whole = False
            return
        for key, each in value.items():
            if key in _BESIDE or not each:
                continue
            if key in _MEDIA_KEYS:
                self.whole = False
            elif key in _SHOWN and not isinstance(each, str):
                self.text_bytes += len(msgspec.json.encode(each))
            else:
                self._walk(each)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# ---------------------------------------------------------------- bodies that are too large to be decoded

#: Where base64 may begin, as far as a search for fixed bytes can tell.
_NEEDLES: Final = (_BASE64, b'"data"', b'"image')
#: What must follow: the end of a key, and a value that looks like base64 (Anthropic, Gemini, Ollama, SGLang).
_VALUE: Final = re.compile(
    rb'"(?:data|images|image_data)"\s{0,8}:\s{0,8}(\[?)\s{0,8}"(?=[A-Za-z0-9+/=_-]{32})'
)
_IDS: Final = re.compile(rb'"(?:prompt|input|input_ids)"\s*:\s*\[[\s\[]*\d')
#: A mark, and what is looked at behind it, in one piece.
_HOLD: Final = 96


def media_bytes(body: Sequence[bytes]) -> int:
    """Bytes of base64 in a body that comes in pieces, however it was cut.  Linear, at the speed of a search.

    Data URLs by their mark; bare base64 by the keys that hold it and by its alphabet.
    """
    count, ends, carry, looks = 0, b"", b"", LOOKS
    for number, piece in enumerate(body, 1):
        window = carry + piece
        limit = len(window) if number == len(body) else max(0, len(window) - _HOLD)
        marks = _Marks(window, limit, looks)
        at = 0
        while True:
            if ends:
                stops = [stop for stop in (window.find(end, at) for end in ends.split()) if stop >= 0]
                stop = min(stops, default=len(window))
                count += stop - at
                at = stop
                if not stops:
                    break
            at, ends = marks.next(at)
            looks = marks.looks
            if not ends:
                break
        carry = window[max(at, limit) :]
    return count


class _Marks:
    """Where base64 begins in one window, in order; each needle is searched for once over all of it."""

    def __init__(self, window: bytes, limit: int, looks: int) -> None:
        self.looks = looks  # left
        self._window = window
        self._limit = limit
        self._places = [-1] * len(_NEEDLES)

    def next(self, at: int) -> tuple[int, bytes]:
        """Where the next run begins and what ends it; nothing ends it: there is none before the limit."""
        window, places = self._window, self._places
        while self.looks:
            self.looks -= 1
            for which, place in enumerate(places):
                if place < at:
                    found = window.find(_NEEDLES[which], at)
                    places[which] = len(window) if found < 0 else found
            place = min(places)
            if place >= self._limit:
                return at, b""
            if place == places[0]:
                return place + len(_BASE64), b'" )'  # a string's end, or a picture's in Markdown
            value = _VALUE.match(window, place)
            if value is not None:
                return value.end(), b"]" if value[1] else b'"'
            at = place + 1
        return at, b""


def estimate(body: Sequence[bytes], head: bytes) -> Prompt:
    """The prompt of a body of which only the ``head`` was read: whatever is no base64 counts as text."""
    prompt = Prompt()
    prompt.whole = False
    if _IDS.search(head) is not None:
        prompt.tokens = sum(piece.count(b",") for piece in body) + 1
    else:
        prompt.text_bytes = max(0, sum(map(len, body)) - media_bytes(body))
    return prompt
