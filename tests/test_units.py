"""What people write, as numbers; what they write wrongly, with the mend."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.units import (
    Address,
    format_duration,
    parse_address,
    parse_duration,
    parse_ratio,
    parse_seconds,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("500ms", 500_000_000),
        ("2s", 2_000_000_000),
        ("1m30s", 90_000_000_000),
        ("1m 30s", 90_000_000_000),
        ("50us", 50_000),
        ("50µs", 50_000),
        ("50μs", 50_000),
        ("7ns", 7),
        ("1h", 3_600_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("2d", 172_800_000_000_000),
        (" 0.1s ", 100_000_000),
        ("500 ms", 500_000_000),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("500", "'500': a unit is needed, for example 500ms"),
        ("0.5", "a unit is needed"),
        ("", "is not a duration"),
        ("fast", "is not a duration"),
        ("-1s", "is not a duration"),
        ("1e3s", "'e' is not a unit of time"),
        ("5 parsecs", "'parsecs' is not a unit of time"),
        ("5S", "'S' is not a unit"),
        ("30s1m", "from large to small"),
        ("1s1s", "each unit once"),
        ("1s,2ms", "is not a duration"),
        ("99999999h", "too long"),
        ("0.1ns", "less than a nanosecond"),
        ("٣s", "is not a duration"),
    ],
)
def test_bad_durations_say_the_value_and_the_mend(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_duration(text)
    assert str(caught.value).startswith(repr(text))


def test_plain_numbers_are_seconds_where_that_is_allowed() -> None:
    assert parse_seconds("0.1") == 100_000_000
    assert parse_seconds("2") == 2_000_000_000
    assert parse_seconds("50ms") == 50_000_000
    with pytest.raises(ValueError, match="not a duration"):
        parse_seconds("soon")


@given(st.integers(0, 2**63 - 1))
def test_a_formatted_duration_reads_back_exactly(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (50_000, "50us"),
        (83_400_000, "83.4ms"),
        (1_500_000_000, "1.5s"),
        (10_000_000_000, "10s"),
        (90_000_000_000, "1m30s"),
        (600_000_000_000, "10m"),
        (90_061_500_000_000, "1d1h1m1.5s"),
        (-50_000_000, "-50ms"),
    ],
)
def test_format_duration(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 * 1024 * 1024),
        ("1GiB", 1024**3),
        ("1.5KiB", 1536),
        ("500kB", 500_000),
        ("2MB", 2_000_000),
        ("4096B", 4096),
        ("4096 B", 4096),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64", "a unit is needed, for example 64MiB"),
        ("64M", "'M' is not a unit of size"),
        ("64mib", "'mib' is not a unit of size"),
        ("-1MiB", "is not a size"),
        ("0.3B", "not a whole number of bytes"),
        ("99999999TiB", "too large"),
        ("", "is not a size"),
    ],
)
def test_bad_sizes(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("99%", 0.99),
        ("99.9%", 0.999),
        ("0.9", 0.9),
        (0.99, 0.99),
        ("1", 1.0),
        (1, 1.0),
        ("0%", 0.0),
        ("100%", 1.0),
    ],
)
def test_ratios(text: str | float, ratio: float) -> None:
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("99", "write 99% if percent is meant"),
        ("101%", "at most 100%"),
        (99, "not between 0 and 1"),
        (-0.1, "not between 0 and 1"),
        (float("nan"), "not between 0 and 1"),
        (True, "not a ratio"),
        ("most", "not a ratio"),
        ("-1%", "not a ratio"),
    ],
)
def test_bad_ratios(text: str | float, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:8080", "0.0.0.0", 8080),
        ("[::1]:80", "::1", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        (":8080", "", 8080),
        ("localhost:0", "localhost", 0),
        ("gpu-1.example:65535", "gpu-1.example", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8080", "a port is needed, for example 127.0.0.1:8080"),
        ("99999", "a port is needed, for example 127.0.0.1:8080"),
        ("localhost", "a port is needed, for example localhost:8080"),
        ("", "a port is needed"),
        ("::1", "in brackets, for example [::1]:8080"),
        ("::1:80", "in brackets"),
        ("[localhost]:80", "only an IPv6 address stands in brackets"),
        ("localhost:http", "'http' is not a port"),
        ("localhost:", "'' is not a port"),
        ("localhost:65536", "'65536' is not a port"),
        ("localhost:-1", "'-1' is not a port"),
        ("http://localhost:80", "in brackets"),
        ("a b:80", "'a b' is not a host name"),
        ("user@host:80", "is not a host name"),
    ],
)
def test_bad_addresses(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_address(text)
