"""What a request asks of sampling, by the names that APIs have for it: spans tell it.

OpenAI (``max_completion_tokens``, older ``max_tokens``; responses: ``max_output_tokens``), Anthropic
(``max_tokens``), llama.cpp (``n_predict``), TGI (``parameters``), SGLang (``sampling_params``), Gemini
(``generationConfig``) and Ollama (``options``).  A value that cannot be one says nothing.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from proxy.link import Asked

#: The body's own fields that are read beside those of routing.
NUMBERS: Final = (
    "max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict", "temperature", "top_p",
)  # fmt: skip
#: Objects in the body that may hold the same.
PLACES: Final = ("sampling_params", "generationConfig", "generation_config", "options", "parameters")

_NOTHING: Final = Asked()
_REAL: Final = (int, float)
_MAX: Final = 2**53


class _Within(Struct, gc=False):
    max_tokens: Any = None
    max_new_tokens: Any = None
    num_predict: Any = None
    max_output_tokens: Any = None
    maxOutputTokens: Any = None
    temperature: Any = None
    top_p: Any = None
    topP: Any = None


_numbers: Final = attrgetter(*NUMBERS)
_places: Final = attrgetter(*PLACES)
_decode: Final = msgspec.json.Decoder(_Within).decode
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def asked_of(seen: Any, absent: tuple[Raw, ...]) -> Asked | None:
    """What a body with the fields ``NUMBERS`` and ``PLACES`` asks for; ``None``: nothing.

    ``absent``: the places of a body that has none of them.
    """
    completion, limit, output, predict, temperature, top_p = _numbers(seen)
    # What nearly every request says is taken as it is: calls cost more than all else here.
    if completion is not None or type(limit) is not int or not 0 <= limit < _MAX:
        limit = _first(*map(_tokens, (completion, limit, output, predict)))
    if temperature is not None and type(temperature) is not float:
        temperature = _number(temperature)
    if top_p is not None and type(top_p) is not float:
        top_p = _number(top_p)
    places = _places(seen)
    if places != absent:
        asked = Asked(limit, temperature, top_p)
        for place in places:
            asked = _filled(asked, place)
        return None if asked == _NOTHING else asked
    if limit is None and temperature is None and top_p is None:
        return None
    return Asked(limit, temperature, top_p)


def _filled(asked: Asked, place: Raw) -> Asked:
    """``asked``, and what ``place`` says where it says nothing yet."""
    try:
        told = _decode(place)
    except _UNREADABLE:
        return asked
    limits = told.max_tokens, told.max_new_tokens, told.num_predict, told.max_output_tokens
    return Asked(
        _first(asked.max_tokens, *map(_tokens, limits), _tokens(told.maxOutputTokens)),
        _first(asked.temperature, _number(told.temperature)),
        _first(asked.top_p, _number(told.top_p), _number(told.topP)),
    )


def _tokens(value: object) -> int | None:
    """A limit; a negative one (Ollama, llama.cpp) is none."""
    if value is None or isinstance(value, bool) or not isinstance(value, _REAL):
        return None
    return int(value) if 0 <= value < _MAX and value == int(value) else None


def _number(value: object) -> float | None:
    """A temperature or a share, finite."""
    if value is None or isinstance(value, bool) or not isinstance(value, _REAL):
        return None
    return float(value) if -_MAX < value < _MAX else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
