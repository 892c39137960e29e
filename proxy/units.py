"""Durations, sizes, ratios and addresses as people write them, and back.

Every parser takes the text as written and returns a plain number in a stated unit, or raises
``ValueError`` whose message names the value and the mend: it goes to the user as it is.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, NamedTuple

_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_ORDER: Final = ("d", "h", "m", "s", "ms", "us", "ns")
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_MAX: Final = 2**63 - 1
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_PART: Final = re.compile(rf"({_NUMBER})\s*([a-zA-Zµμ]+)", re.ASCII)
_SIZE: Final = re.compile(rf"({_NUMBER})\s*([a-zA-Z]*)", re.ASCII)
_RATIO: Final = re.compile(rf"({_NUMBER})\s*(%?)", re.ASCII)
_BARE: Final = re.compile(r"[0-9.]+", re.ASCII)
_HOST: Final = re.compile(r"[^\s:/\[\]@?#]*")
_IPV6: Final = re.compile(r"[0-9a-fA-F:.]+(?:%[^\s\]]+)?")
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_PORT_MAX: Final = 65535


class Address(NamedTuple):
    """Where to listen or connect.  ``host`` is without brackets and ``""`` means every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(text: str) -> int:
    """``500ms``, ``2s``, ``1m30s``, ``50us``, ``1.5h`` -> nanoseconds (rounded to the nearest; >= 0).

    Units: ns, us, ms, s, m, h, d; several parts go from large to small, each unit once.  A plain ``0``
    needs no unit.
    """
    value = text.strip()
    if value == "0":
        return 0
    if _BARE.fullmatch(value):
        raise ValueError(f"{text!r}: a unit is needed, for example {value}ms or {value}s")
    parts = _PART.findall(value)
    if not parts or _PART.sub("", value).strip():
        raise ValueError(f"{text!r} is not a duration: write for example 500ms, 2s or 1m30s")
    total = Decimal(0)
    last = -1
    for number, name in parts:
        unit = "us" if name in ("µs", "μs") else name
        if unit not in _NS:
            raise ValueError(f"{text!r}: {name!r} is not a unit of time: use ns, us, ms, s, m, h or d")
        if _ORDER.index(unit) <= last:
            raise ValueError(f"{text!r}: write each unit once, from large to small, for example 1m30s")
        last = _ORDER.index(unit)
        total += Decimal(number) * _NS[unit]
    nanoseconds = int(total.to_integral_value(ROUND_HALF_EVEN))
    if nanoseconds > _MAX:
        raise ValueError(f"{text!r} is too long: at most about 292 years")
    if nanoseconds == 0 and total:
        raise ValueError(f"{text!r} is less than a nanosecond: write 0 or at least 1ns")
    return nanoseconds


def parse_seconds(text: str) -> int:
    """As ``parse_duration``, but a plain number means seconds: ``0.1`` -> 100,000,000."""
    value = text.strip()
    if re.fullmatch(_NUMBER, value, re.ASCII):
        return parse_duration(value + "s")
    return parse_duration(text)


def parse_size(text: str) -> int:
    """``64MiB``, ``1GiB``, ``500kB``, ``4096B`` -> bytes.

    KiB, MiB, GiB, TiB are powers of 1024, kB (or KB), MB, GB, TB powers of 1000; a plain ``0`` needs no unit.
    """
    value = text.strip()
    if value == "0":
        return 0
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError(f"{text!r} is not a size: write for example 64MiB")
    number, unit = found.groups()
    if not unit:
        raise ValueError(f"{text!r}: a unit is needed, for example {value}MiB or {value}B")
    if unit not in _BYTES:
        raise ValueError(f"{text!r}: {unit!r} is not a unit of size: use B, KiB, MiB, GiB, kB, MB or GB")
    size = Decimal(number) * _BYTES[unit]
    if size != size.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes: write for example 64MiB")
    if size > _MAX:
        raise ValueError(f"{text!r} is too large: at most {_MAX} bytes")
    return int(size)


def parse_ratio(text: str | int | float) -> float:
    """``"99%"``, ``"0.99"`` or ``0.99`` -> 0.99, between 0 and 1 inclusive.

    A percentage is divided in decimal, so that ``"99.9%"`` is the float 0.999.  Without the sign, what
    is above 1 is refused: 99 could mean either.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a ratio: write for example 99% or 0.99")
    if isinstance(text, int | float):
        if not 0 <= text <= 1:
            raise ValueError(f"{text!r} is not between 0 and 1: write for example 99% or 0.99")
        return float(text)
    found = _RATIO.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a ratio: write for example 99% or 0.99")
    number, percent = found.groups()
    ratio = Decimal(number) / 100 if percent else Decimal(number)
    if ratio > 1:
        mend = "at most 100% is possible" if percent else f"write {number}% if percent is meant"
        raise ValueError(f"{text!r} is more than 1: {mend}")
    return float(ratio)


def parse_address(text: str) -> Address:
    """``0.0.0.0:8080``, ``[::1]:80``, ``localhost:80`` or ``:8080`` -> Address(host, port).

    Port 0 (the system chooses) to 65535.  An empty host, as in ``:8080``, means every interface.
    """
    value = text.strip()
    host, colon, port = value.rpartition(":")
    if not colon:
        if value.isdecimal():  # a port without a host
            mend = f"127.0.0.1:{value if _PORT.fullmatch(value) and int(value) <= _PORT_MAX else 8080}"
        else:
            mend = f"{value or '127.0.0.1'}:8080"
        raise ValueError(f"{text!r}: a port is needed, for example {mend}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not _IPV6.fullmatch(host):
            raise ValueError(f"{text!r}: only an IPv6 address stands in brackets, for example [::1]:8080")
    elif ":" in host or host.startswith("["):
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, for example [::1]:8080")
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{text!r}: {host!r} is not a host name: write for example 127.0.0.1:8080")
    if not _PORT.fullmatch(port) or int(port) > _PORT_MAX:
        raise ValueError(
            f"{text!r}: {port!r} is not a port: write a number from 0 to 65535, as in {host}:8080"
        )
    return Address(host, int(port))


def format_duration(ns: int) -> str:
    """Nanoseconds -> the shortest text that ``parse_duration`` reads back exactly: ``1500ms`` -> ``1.5s``.

    One part below a minute (``83.4ms``), several from there on (``1m30s``); negative with a leading ``-``.
    """
    if ns < 0:
        return "-" + format_duration(-ns)
    if ns < _NS["m"]:
        if ns == 0:
            return "0s"
        unit = next(name for name in ("s", "ms", "us", "ns") if ns >= _NS[name])
        return _plain(Decimal(ns) / _NS[unit]) + unit
    out = ""
    for unit in ("d", "h", "m"):
        count, ns = divmod(ns, _NS[unit])
        out += f"{count}{unit}" if count else ""
    return out + (_plain(Decimal(ns) / _NS["s"]) + "s" if ns else "")


def _plain(number: Decimal) -> str:
    """Digits without an exponent and without zeros at the end of a fraction."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
