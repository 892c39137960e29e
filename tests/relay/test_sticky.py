"""Which backend of a split a request gets: shares, sessions that stay, and how few move."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from decimal import Decimal, getcontext
from hashlib import blake2b
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.link import Assignment, SplitSpec
from proxy.relay.call import Call
from proxy.relay.sticky import KEY_MAX, Split

KEYS = [b"session-%d" % number for number in range(100_000)]
HEADER = ("header", "x-session-id")


def spec(sticky: Any = HEADER, **weights: Any) -> SplitSpec:
    return SplitSpec("canary+stable", tuple(weights.items()), "canary+stable", sticky)


def homes(keys: list[bytes] = KEYS, **weights: int) -> list[str]:
    split = Split(spec(**weights))
    return [split.arm(split.session(key)) for key in keys]


def moves(before: list[str], after: list[str]) -> Counter[tuple[str, str]]:
    return Counter((was, now) for was, now in zip(before, after, strict=True) if was != now)


# ---------------------------------------------------------------- shares, and what moves


def test_ten_percent_move_and_all_of_them_one_way() -> None:
    before, after = homes(stable=90, canary=10), homes(stable=80, canary=20)
    assert Counter(before)["canary"] == pytest.approx(10_000, abs=4 * 95)  # four standard deviations
    assert Counter(after)["canary"] == pytest.approx(20_000, abs=4 * 127)
    moved = moves(before, after)
    assert set(moved) == {("stable", "canary")}
    assert moved.total() == pytest.approx(10_000, abs=4 * 95)
    assert moves(after, homes(stable=90, canary=10)) == Counter({("canary", "stable"): moved.total()})


@pytest.mark.parametrize("raised", ["a", "b", "c"])
def test_what_is_raised_takes_from_the_others_and_they_take_from_nobody(raised: str) -> None:
    weights = {"a": 50, "b": 30, "c": 20}
    keys = KEYS[:30_000]
    moved = moves(homes(keys, **weights), homes(keys, **{**weights, raised: weights[raised] + 40}))
    assert {now for _, now in moved} == {raised}
    assert {was for was, _ in moved} == set(weights) - {raised}
    share = weights[raised] / 100
    assert moved.total() / len(keys) == pytest.approx((share + 0.4) / 1.4 - share, abs=0.012)


def test_a_backend_that_joins_or_leaves_moves_only_its_own() -> None:
    keys = KEYS[:10_000]
    two, three = homes(keys, a=1, b=1), homes(keys, a=1, b=1, c=1)
    assert {now for _, now in moves(two, three)} == {"c"}
    assert homes(keys, a=1, b=1, c=0) == two, "weight 0 is as good as none"
    assert {was for was, _ in moves(three, two)} == {"c"}


def test_only_the_shares_count() -> None:
    keys = KEYS[:10_000]
    assert homes(keys, stable=9, canary=1) == homes(keys, canary=70, stable=630)
    assert set(homes(keys, stable=1, canary=0)) == {"stable"}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=2),
    st.integers(1, 10**6),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_no_key_leaves_a_backend_that_was_raised_nor_moves_to_another(
    weights: dict[str, int], more: int, session: int, data: Any
) -> None:
    raised = data.draw(st.sampled_from(sorted(weights)))
    before = Split(spec(**weights)).arm(session)
    after = Split(spec(**{**weights, raised: weights[raised] + more})).arm(session)
    assert after in (before, raised)


# ---------------------------------------------------------------- the same everywhere

#: Made once, by a machine of 2026 with Python 3.11: whatever gives anything else, moves people's sessions.
GOLDEN = {
    b"": (0x1CAF0840D3A278DF, "stable"),
    b"a": (0x21B8416C39DC6559, "stable"),
    b"user-1": (0xD84473EA3FD22944, "stable"),
    b"user-2": (0x674E17F25A5866DA, "stable"),
    b"user-3": (0x0C1C383DE141CA2B, "canary"),
    b"3f0c": (0x1D47AD388E8C15C3, "stable"),
    b"gr\xc3\xb6\xc3\x9fe": (0x83E397E7878E453E, "stable"),
    b"\x00": (0x3E1BD4F8691EA7F0, "stable"),
    b"x" * 4096: (0x17042969BA7FD75A, "stable"),
    b"k0": (0xFFA74E5C731C25AC, "stable"),
    b"k1": (0x280148FE3A44592C, "stable"),
    b"k2": (0x7E19A04D9B17B6D1, "stable"),
    b"k3": (0xB8FA9B724A240972, "stable"),
    b"k4": (0x95199250FC52AB1C, "canary"),
    b"k5": (0x599CDF029E8DC95C, "stable"),
    b"k6": (0xAC5A9C3EFC030D6D, "stable"),
    b"k7": (0x21E40AB196CD5BCF, "canary"),
    b"k8": (0x04DA442027CE3E52, "canary"),
    b"k9": (0x4094ABD769189B7F, "stable"),
    b"k10": (0x85112AD7E88A12E0, "stable"),
    b"k11": (0xB7CA49D72EFE76BC, "stable"),
}

SCRIPT = """
import sys
from proxy.link import SplitSpec
from proxy.relay.sticky import Split
arms = [("stable", 90), ("canary", 10), ("next", 40)]
split = Split(SplitSpec("any name", tuple(arms[::int(sys.argv[1])]), "canary+next+stable", ("cookie", "any")))
for key in range(300):
    session = split.session(b"key-%d" % key)
    print(session, split.arm(session))
"""


def golden(key: bytes) -> tuple[int, str]:
    split = Split(spec(stable=90, canary=10))
    session = split.session(key)
    return session, split.arm(session)


def test_the_table_that_never_changes() -> None:
    assert {key: golden(key) for key in GOLDEN} == GOLDEN


def test_every_process_and_any_order_of_the_names_assign_alike() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, order],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for order, seed in (("1", "1"), ("-1", "77"))
    ]
    assert told[0] == told[1]
    assert set(told[0].split()) >= {"stable", "canary", "next"}


def test_it_is_what_is_written() -> None:
    """The same by fifty digits, from the definition."""
    getcontext().prec = 50
    weights = {"stable": 90, "canary": 10, "next": 40}
    split = Split(SplitSpec("s", tuple(weights.items()), "a seed", HEADER))
    seed = blake2b(b"a seed", digest_size=32, person=b"legato.seed").digest()

    def number(name: str, session: bytes) -> Decimal:
        mixed = blake2b(
            name.encode() + b"\0" + session, digest_size=8, key=seed, person=b"legato.arm"
        ).digest()
        even = (Decimal(int.from_bytes(mixed, "big") >> 11) + Decimal("0.5")) / 2**53
        return -even.ln() / weights[name]

    for key in KEYS[:1000]:
        session = blake2b(key, digest_size=8, key=seed, person=b"legato.session").digest()
        assert split.session(key) == int.from_bytes(session, "big")
        best = min(weights, key=lambda name: number(name, session))
        assert split.arm(split.session(key)) == best


def test_another_seed_deals_anew() -> None:
    one, other = (Split(replace(spec(a=1, b=1), seed=seed)) for seed in ("one", "other"))
    keys = KEYS[:4000]
    same = sum(one.arm(one.session(key)) == other.arm(other.session(key)) for key in keys)
    assert same == pytest.approx(2000, abs=4 * 32)
    assert not {one.session(key) for key in keys} & {other.session(key) for key in keys}


# ---------------------------------------------------------------- where the key is read

NOBODY = Call("POST", "/v1/x")


def key_of(split: SplitSpec, *fields: tuple[str, str], call: Call = NOBODY, peer: Any = None) -> bytes | None:
    """The key that must have been read, by the session that was made of it."""
    compiled = Split(split, trusts=lambda address: address.startswith("10."))
    assignment = compiled.assign(call, [(name.encode(), value.encode()) for name, value in fields], peer)
    if assignment.session is None:
        assert assignment.by == "no_key"
        return None
    assert assignment.by == "session"
    assert assignment.backend == compiled.arm(assignment.session)
    known = {
        compiled.session(key): key for key in (b"s1", b"9.9.9.9", b"8.8.8.8", b"2001:db8::1", b"10.0.0.2")
    }
    return known[assignment.session]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ([("X-Session-Id", "s1")], b"s1"),
        ([("x-session-id", " s1\t"), ("x-session-id", "s2")], b"s1"),
        ([("X-Session-Id", "")], None),
        ([("X-Session-Id", "x" * (KEY_MAX + 1))], None),
        ([], None),
    ],
)
def test_by_header(fields: list[tuple[str, str]], key: bytes | None) -> None:
    assert key_of(spec(a=1, b=1), *fields) == key


@pytest.mark.parametrize(
    ("cookies", "key"),
    [
        (["sid=s1"], b"s1"),
        (["a=b; sid=s1; sid=s2"], b"s1"),
        (["a=b", "xsid=1; sid = s1 "], b"s1"),
        (["SID=s1"], None),
        (["sid"], None),
        (["sid="], None),
        ([], None),
    ],
)
def test_by_cookie(cookies: list[str], key: bytes | None) -> None:
    assert key_of(spec(("cookie", "sid"), a=1, b=1), *(("Cookie", text) for text in cookies)) == key


@pytest.mark.parametrize(("keys", "key"), [({"user": b"s1"}, b"s1"), ({"safety_identifier": b"s1"}, None)])
def test_by_a_key_of_the_body(keys: dict[str, bytes], key: bytes | None) -> None:
    split = spec(("field", "user"), a=1, b=1)
    assert Split(split).keyed
    assert key_of(split, call=Call("POST", "/", keys=keys)) == key
    assert key_of(split) is None


@pytest.mark.parametrize(
    ("peer", "forwarded", "key"),
    [
        ("9.9.9.9", [], b"9.9.9.9"),
        ("::ffff:9.9.9.9", [], b"9.9.9.9"),
        ("9.9.9.9", ["8.8.8.8"], b"9.9.9.9"),  # who is not trusted may write what it likes
        ("10.0.0.1", ["8.8.8.8"], b"8.8.8.8"),
        ("10.0.0.1", ["1.1.1.1, 8.8.8.8, 10.0.0.9"], b"8.8.8.8"),  # what it was told itself proves nothing
        ("10.0.0.1", ["1.1.1.1", "8.8.8.8"], b"8.8.8.8"),
        ("10.0.0.1", ["8.8.8.8:4711"], b"8.8.8.8"),
        ("10.0.0.1", ["[2001:DB8:0::1]:443"], b"2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], b"2001:db8::1"),
        ("10.0.0.1", ["::ffff:808:808"], b"8.8.8.8"),
        ("10.0.0.1", ["8.8.8.8, unknown, 10.0.0.2"], b"10.0.0.2"),  # the last who is known
        ("10.0.0.2", [], b"10.0.0.2"),
        ("10.0.0.2", [""], b"10.0.0.2"),
        (None, ["8.8.8.8"], None),  # over a Unix socket nobody has an address
    ],
)
def test_by_address(peer: str | None, forwarded: list[str], key: bytes | None) -> None:
    fields = [("X-Forwarded-For", value) for value in forwarded]
    split = spec(("client", "address"), a=1, b=1)
    assert key_of(split, *fields, peer=None if peer is None else (peer, 4711)) == key


# ---------------------------------------------------------------- drawn, forced


def test_who_has_no_session_is_drawn_by_the_shares() -> None:
    split = Split(spec(None, stable=90, canary=10, off=0), draw=Random(1).random)
    drawn = [split.assign(NOBODY, []) for _ in range(20_000)]
    assert {(one.by, one.session) for one in drawn} == {("draw", None)}
    shares = Counter(one.backend for one in drawn)
    assert shares["canary"] == pytest.approx(2000, abs=4 * 43)
    assert shares["off"] == 0
    keyless = Split(spec(stable=90, canary=10), draw=Random(1).random)
    assert [keyless.assign(NOBODY, []).backend for _ in range(99)] == [one.backend for one in drawn[:99]]
    assert keyless.assign(NOBODY, []).by == "no_key"


@pytest.mark.parametrize("left", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_draw(left: float) -> None:
    assert Split(spec(None, a=1, b=3, c=0), draw=lambda: left).assign(NOBODY, []).backend in "ab"


@pytest.mark.parametrize(
    ("value", "backend", "by"),
    [
        ("canary", "canary", "forced"),
        (" off ", "off", "forced"),  # a weight of 0 keeps nobody out who asks for it
        ("Canary", "stable", "session"),
        ("zzz", "stable", "session"),
        ("", "stable", "session"),
    ],
)
def test_a_client_may_choose_where_the_route_says_so(value: str, backend: str, by: str) -> None:
    split = spec(stable=10**6, canary=1, off=0)
    fields = [(b"X-Legato-Backend", value.encode()), (b"X-Session-Id", b"s")]
    forced = Split(replace(split, force="x-legato-backend")).assign(NOBODY, fields)
    assert (forced.backend, forced.by, forced.session is None) == (backend, by, by == "forced")
    assert Split(split).assign(NOBODY, fields).by == "session"


# ---------------------------------------------------------------- failover


def test_a_session_fails_over_to_where_it_would_be_without_that_backend() -> None:
    split = Split(replace(spec(a=5, b=3, c=2, off=0), failover=True))
    without = Split(spec(b=3, c=2))
    for key in KEYS[:2000]:
        first = split.assign(NOBODY, [(b"x-session-id", key)])
        assert first.session is not None
        if first.backend == "a":
            assert split.instead(first, ("a",)) == without.arm(first.session)
        second = split.instead(first, (first.backend,))
        assert second is not None
        third = split.instead(first, (first.backend, second))
        assert {first.backend, second, third} == {"a", "b", "c"}
        assert split.instead(first, ("a", "b", "c")) is None, "nobody fails over to a weight of 0"


def test_what_was_drawn_is_drawn_again_among_the_others() -> None:
    split = Split(replace(spec(None, a=5, b=30, c=10, off=0), failover=True), draw=Random(1).random)
    first = Assignment("s", "a", "draw")
    again = Counter(split.instead(first, ("a",)) for _ in range(8000))
    assert set(again) == {"b", "c"}
    assert again["b"] == pytest.approx(6000, abs=4 * 39)
    assert split.instead(first, ("a", "b", "c")) is None


def test_nothing_fails_over_unless_it_may() -> None:
    assert Split(spec(a=1, b=1)).instead(Assignment("s", "a", "draw"), ("a",)) is None
    split = Split(replace(spec(a=1, b=1), failover=True, force="x"))
    assert split.instead(Assignment("s", "a", "forced"), ("a",)) is None
