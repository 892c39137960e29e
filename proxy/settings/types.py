"""The kinds of values that settings have: each reads the text a person writes, or takes the plain value.

Durations become integer nanoseconds, sizes bytes, ratios floats; ``Unit`` in a field's metadata says which,
so that the reference and ``/api/config`` can write values back the way people do.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from proxy.units import format_duration, parse_address, parse_duration, parse_ratio, parse_size

OFF = ("off", "false", "no")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNIX_MAX = 107  # bytes of a socket's path that the kernel takes
_FINE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.ASCII)
_TOKENS_DIGITS = 12
_WEIGHT_MAX = 1_000_000
_PER_TOKEN_MAX = 3_600 * 10**15
#: Femtoseconds of the units in which the cost of a token is written.
FINE = {"ns": 10**6, "us": 10**9, "ms": 10**12, "s": 10**15}
#: Header names that carry a secret as a rule: they are never written anywhere.
SECRET_HEADERS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-auth-token",
    }
)


@dataclass(frozen=True, slots=True)
class Unit:
    """How a plain value is written: a duration, size, ratio, ttft, per_token, switch, log or text."""

    kind: str
    off: bool = False  # 0 is written "off"
    hint: str = ""  # for the reference: what one may write


def _is_off(value: Any) -> bool:
    return value is False or (isinstance(value, str) and value.strip().lower() in OFF)


def shown(value: Any) -> str:
    """What was written, in a message."""
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else repr(value)


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, list | dict):
        raise ValueError(f"{shown(value)}: {what} is needed")
    return value


def _duration(value: Any) -> Any:
    return (
        parse_duration(value) if isinstance(value, str) else _plain(value, "a duration, for example 500ms,")
    )


def _off_duration(value: Any) -> Any:
    return 0 if _is_off(value) else _duration(value)


def _positive_duration(value: Any) -> Any:
    ns = _duration(value)
    if isinstance(ns, int) and ns <= 0:
        raise ValueError(f"{value!r}: must be longer than 0, for example 50ms")
    return ns


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else _plain(value, "a size, for example 64MiB,")


def _ratio(value: Any) -> Any:
    return parse_ratio(_plain(value, "a ratio, for example 99%,"))


def _switch(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in OFF:
            return False
        if word in ("on", "true", "yes"):
            return True
        raise ValueError(f"{value!r}: write on or off")
    return _plain(value, "on or off")


def _log(value: Any) -> Any:
    if value is None or _is_off(value):
        return None
    if isinstance(value, str) and value.lower() in ("on", "true", "yes", ""):
        raise ValueError(f"{value!r}: write off, - (standard output) or the path of a file")
    return value


def _log_file(value: Any) -> Any:
    if value == "-":
        raise ValueError("'-': a trace log goes to a file, it is rotated by size: write a path, or off")
    return _log(value)


def _texts(value: Any) -> Any:
    """One text, several with commas (as a variable holds them), or a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def listen_address(value: str) -> str:
    """``host:port`` in its normal form, or ``unix:/path``; ``ValueError`` with the mend."""
    text = value.strip()
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/"):
            raise ValueError(f"{value!r}: write the socket's whole path, for example unix:/run/legato.sock")
        if len(path.encode()) > _UNIX_MAX:
            raise ValueError(
                f"{value!r}: a socket's path has at most {_UNIX_MAX} bytes: choose a shorter one"
            )
        return text
    if "://" in text:
        raise ValueError(f"{value!r}: write host:port without a scheme, for example {text.split('://')[1]}")
    return str(parse_address(text))


def _listens(value: Any) -> Any:
    texts = _texts(value)
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        if not texts:
            raise ValueError("an address is needed, for example 127.0.0.1:8080")
        return tuple(listen_address(text) for text in texts)
    return texts


def _listen(value: Any) -> Any:
    return listen_address(value) if isinstance(value, str) else value


def _name(value: Any) -> Any:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r}: a name has letters, digits, '.', '_' or '-', at most 63, for example chat"
        )
    return value


def _header(value: Any) -> Any:
    if value is None or _is_off(value):
        return None
    if isinstance(value, str) and not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not a header's name: write for example x-request-id")
    return value.lower() if isinstance(value, str) else value


def _glob(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith(("/", "*")):
        raise ValueError(f"{value!r}: a path begins with '/', write for example /{value}")
    return value


def _network(value: Any) -> Any:
    try:
        return str(ipaddress.ip_network(value, strict=False)) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{value!r} is no address or network: write for example 10.0.0.0/8") from None


def _url(value: Any) -> Any:
    return base_url(value, "http://127.0.0.1:8000")


def base_url(value: Any, example: str) -> Any:
    """An http URL without its last slashes; ``ValueError`` with the mend.  What is no text stays as it is."""
    if not isinstance(value, str):
        return value
    url = value.strip()
    if not url.startswith(("http://", "https://")):
        rest = url.split("://", 1)[-1]
        raise ValueError(f"{value!r}: a URL begins with http:// or https://, write for example http://{rest}")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{value!r}: the port is a number from 1 to 65535") from None
    if "@" in parts.netloc:
        raise ValueError(
            f"{value!r}: credentials in a URL are not sent; clients send their own: write it without"
        )
    if not parts.hostname or port == 0 or re.search(r"\s", url):
        raise ValueError(f"{value!r}: host and port are needed, for example {example}")
    if parts.query or parts.fragment:
        raise ValueError(f"{value!r}: a base URL has no '?' or '#': write {url.split('?')[0].split('#')[0]}")
    return url.rstrip("/")


def _whole_tokens(value: Any, example: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        raise ValueError(f"{value!r}: prompt tokens are a whole number, write for example {example}")
    if len(text) > _TOKENS_DIGITS:
        raise ValueError(f"{value!r}: no prompt has so many tokens, write for example {example}")
    return int(text)


def _tokens(value: Any) -> Any:
    return None if value is None else _whole_tokens(_plain(value, "a whole number"), "{min: 0, max: 4000}")


def _points(value: Any) -> Any:
    """A constant or a table by prompt tokens -> ``((prompt_tokens, ns), ...)``, sorted."""
    if isinstance(value, str):
        return ((0, _positive_duration(value)),)
    if value is None or isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)}: write a duration or a table, 500ms or {{0: 500ms, 8000: 2s}}")
    points: dict[int, int] = {}
    for key, text in value.items():
        tokens = _whole_tokens(key, "{0: 500ms, 8000: 2s}")
        if tokens in points:
            raise ValueError(f"{tokens} prompt tokens stand twice in the table: keep one of them")
        if not isinstance(text, str | int):
            raise ValueError(f"{text!r}: a duration is needed, for example {{0: 500ms, 8000: 2s}}")
        points[tokens] = _positive_duration(text)
    if not points:
        raise ValueError("the table is empty: write for example {0: 500ms, 8000: 2s}")
    return tuple(sorted(points.items()))


def _weight(value: Any) -> Any:
    text = str(_plain(value, "a weight, for example 90,"))
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        mend = "a weight is a whole number, and a backend's share is its weight's of their sum"
        raise ValueError(f"{value!r}: {mend}: write for example {{stable: 90, canary: 10}}")
    if len(text) > len(str(_WEIGHT_MAX)) or int(text) > _WEIGHT_MAX:
        raise ValueError(f"{value!r}: a weight is at most {_WEIGHT_MAX}: shares count, write smaller ones")
    return int(text)


def _per_token(value: Any) -> Any:
    """``80us``, ``0.35ns`` -> femtoseconds."""
    if not isinstance(value, str):
        return _plain(value, "a duration, for example 80us,")
    found = _FINE.fullmatch(value.strip())
    if value.strip() == "0":
        return 0
    if found is None or found[2] not in FINE:
        parse_duration(value)  # says what is wrong with it, if it is no duration at all
        raise ValueError(f"{value!r}: one number with one of {', '.join(FINE)}, for example 80us")
    fs = Decimal(found[1]) * FINE[found[2]]
    if fs > _PER_TOKEN_MAX:
        raise ValueError(f"{value!r} is too long for one token: at most 3600s")
    if fs != fs.to_integral_value():
        raise ValueError(f"{value!r} is finer than a femtosecond: leave digits out, as in 0.35ns")
    return int(fs)


def _write_per_token(fs: int) -> str:
    unit = next((name for name in reversed(FINE) if fs >= FINE[name]), "ns") if fs else "s"
    text = f"{Decimal(fs) / FINE[unit]:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


Duration = Annotated[int, BeforeValidator(_duration), Unit("duration", hint="duration")]
OffDuration = Annotated[int, BeforeValidator(_off_duration), Unit("duration", True, "duration or off")]
PositiveDuration = Annotated[int, BeforeValidator(_positive_duration), Unit("duration", hint="duration")]
Size = Annotated[int, BeforeValidator(_size), Unit("size", hint="size")]
Ratio = Annotated[float, BeforeValidator(_ratio), Unit("ratio", hint="ratio")]
Switch = Annotated[bool, BeforeValidator(_switch), Unit("switch", hint="on or off")]
Log = Annotated[str | None, BeforeValidator(_log), Unit("log", True, "off, - or path")]
LogFile = Annotated[str | None, BeforeValidator(_log_file), Unit("log", True, "off or path")]
Listen = Annotated[str, BeforeValidator(_listen), Unit("text", hint="host:port or unix:/path")]
Listens = Annotated[
    tuple[str, ...], BeforeValidator(_listens), Unit("text", hint="host:port or unix:/path, or a list")
]
Name = Annotated[str, BeforeValidator(_name), Unit("text", hint="name")]
Header = Annotated[str | None, BeforeValidator(_header), Unit("log", True, "header name or off")]
HeaderName = Annotated[str, BeforeValidator(_header), Unit("text", hint="header name")]
Glob = Annotated[str, BeforeValidator(_glob), Unit("text", hint="path glob")]
Globs = Annotated[tuple[Glob, ...], BeforeValidator(_texts), Unit("text", hint="list of path globs")]
Networks = Annotated[
    tuple[Annotated[str, BeforeValidator(_network)], ...],
    BeforeValidator(_texts),
    Unit("text", hint="list of networks"),
]
Url = Annotated[str, BeforeValidator(_url), Unit("text", hint="http(s)://host[:port][/base]")]
Points = Annotated[
    tuple[tuple[int, int], ...],
    BeforeValidator(_points),
    Unit("ttft", hint="duration, or table by prompt tokens"),
]
Tokens = Annotated[int | None, BeforeValidator(_tokens), Unit("text", hint="whole number")]
Weight = Annotated[int, BeforeValidator(_weight), Unit("text", hint="whole number")]
PerToken = Annotated[int, BeforeValidator(_per_token), Unit("per_token", hint="duration, also below 1ns")]


def format_size(size: int) -> str:
    """Bytes as ``parse_size`` reads them back exactly: ``67108864`` -> ``64MiB``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale and size % scale == 0:
            return f"{size // scale}{unit}"
    return f"{size}B"


def _format_ttft(points: Any) -> Any:
    if not isinstance(points, tuple):
        return points  # a model: its parts are written one by one
    if len(points) == 1:
        return format_duration(points[0][1])
    return {tokens: format_duration(ns) for tokens, ns in points}


def write(value: Any, unit: Unit | None) -> Any:
    """A plain value the way people write it (``500ms``, ``64MiB``, ``off``); what has no unit as it is."""
    if unit is None or value is None:
        return "off" if unit is not None and unit.off else value
    if unit.kind == "duration":
        return "off" if unit.off and value == 0 else format_duration(value)
    if unit.kind == "size":
        return format_size(value)
    if unit.kind == "ratio":
        return f"{value * 100:.10g}%"
    if unit.kind == "per_token":
        return _write_per_token(value)
    if unit.kind == "switch":
        return "on" if value else "off"
    return _format_ttft(value) if unit.kind == "ttft" else value


#: The API families whose streams are understood (the data plane's registry holds them, a test both together).
DialectName = Literal[
    "openai.chat",
    "openai.completions",
    "openai.responses",
    "anthropic.messages",
    "sglang.generate",
    "llamacpp.completion",
    "ollama.generate",
    "ollama.chat",
    "tgi.generate",
    "triton.generate",
    "gemini.generate",
    "generic",
]
