"""A choice's track: its score is the scorer's, thinning loses nothing that the record needs."""

from __future__ import annotations

from array import array
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.link import META_TOKENS_BITS, META_TOKENS_MAX
from proxy.relay.arrivals import Track
from scoring.fluidity import FluidityScorer

MS = 1_000_000
UNCAPPED = 1_000_000

#: (nanoseconds since the one before, tokens, bytes); small numbers, so that ties and boundaries happen.
arrival = st.tuples(st.integers(0, 40), st.integers(1, 5), st.integers(0, 9))
arrivals = st.lists(arrival, max_size=60)
many_arrivals = st.lists(arrival, min_size=20, max_size=60)


def run(track: Track, events: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Feed a track; returns the events with absolute stamps."""
    at_ns, seen = 0, []
    for gap_ns, tokens, size in events:
        at_ns += gap_ns
        track.arrive(at_ns, tokens, size)
        seen.append((at_ns, tokens, size))
    return seen


def unpack(packed: bytes) -> list[tuple[int, int, int]]:
    pairs = array("q", packed)
    return [
        (at_ns, meta & META_TOKENS_MAX, meta >> META_TOKENS_BITS)
        for at_ns, meta in zip(pairs[::2], pairs[1::2], strict=True)
    ]


@given(arrivals, st.integers(0, 60), st.integers(1, 12), st.integers(0, 80))
def test_the_score_is_the_scorers(
    events: list[tuple[int, int, int]], ttft_ns: int, tbt_ns: int, later_ns: int
) -> None:
    track, scorer = Track(ttft_ns, tbt_ns, 8), FluidityScorer(ttft_ns, tbt_ns)
    at_ns = 0
    for gap_ns, tokens, size in events:
        at_ns += gap_ns
        now_ns = at_ns - gap_ns // 2
        assert track.overdue_ns(now_ns) == scorer.overdue_ns(now_ns)
        assert track.missed_by(now_ns) == scorer.missed_by(now_ns)
        track.arrive(at_ns, tokens, size)
        scorer.arrive(at_ns, tokens)
        score = track.score()
        assert (score.tokens, score.late, score.missed) == (scorer.tokens, scorer.late, scorer.missed)
        assert (score.late_ns, score.due_ns) == (scorer.late_ns, scorer.due_ns)
    end_ns = at_ns + later_ns
    assert track.missed_by(end_ns) == scorer.missed_by(end_ns)


def test_the_worst_stall_is_the_one_with_the_most_lateness() -> None:
    track = Track(100 * MS, 50 * MS, UNCAPPED)
    for at in (80, 130, 400, 410, 420, 2000, 2010):
        track.arrive(at * MS, 1, 4)
    score = track.score()
    # Due at 200 and missed until 400; from there due at 450, 500, 550: the token at 2000 is 1450 late.
    assert (score.late, score.late_ns) == (2, 1650 * MS)
    assert score.missed == 5 + 30
    assert (score.worst_at_ns, score.worst_late_ns, score.worst_missed) == (420 * MS, 1450 * MS, 30)


def test_a_late_first_token_stalls_from_the_start() -> None:
    track = Track(100 * MS, 50 * MS, UNCAPPED)
    track.arrive(1100 * MS, 1, 4)
    assert track.score().worst_at_ns == 0
    assert track.score().worst_late_ns == 1000 * MS


@given(arrivals)
def test_what_is_kept_is_what_came(events: list[tuple[int, int, int]]) -> None:
    track = Track(50, 5, UNCAPPED)
    seen = run(track, events)
    assert unpack(track.packed()) == seen
    assert track.events == len(events)
    assert track.tokens == sum(tokens for _, tokens, _ in events)


@given(many_arrivals, st.integers(8, 16))
def test_thinning_keeps_the_score_the_sums_both_ends_and_the_longest_gap(
    events: list[tuple[int, int, int]], cap: int
) -> None:
    thin, full = Track(50, 5, cap), Track(50, 5, UNCAPPED)
    seen = run(thin, events)
    run(full, events)
    kept = unpack(thin.packed())
    assert len(kept) <= cap
    assert thin.events == len(events)
    assert sum(tokens for _, tokens, _ in kept) == thin.tokens == full.tokens
    assert sum(size for *_, size in kept) == sum(size for *_, size in seen)
    assert kept[0] == seen[0]
    assert kept[-1][0] == seen[-1][0]
    assert _same_score(thin, full)
    assert thin.thinned
    assert thin.score().longest_gap_ns == max(b[0] - a[0] for a, b in pairwise(seen))


def _same_score(one: Track, other: Track) -> bool:
    a, b = one.score(), other.score()
    return all(
        getattr(a, name) == getattr(b, name) for name in a.__struct_fields__ if name != "longest_gap_ns"
    )


@given(many_arrivals, st.integers(8, 16))
def test_thinning_never_shows_a_token_earlier_than_it_came(
    events: list[tuple[int, int, int]], cap: int
) -> None:
    thin = Track(50, 5, cap)
    came = [at_ns for at_ns, tokens, _ in run(thin, events) for _ in range(tokens)]
    shown = [at_ns for at_ns, tokens, _ in unpack(thin.packed()) for _ in range(tokens)]
    assert all(a >= b for a, b in zip(shown, came, strict=True))


def test_huge_numbers_saturate_in_the_arrivals_and_not_in_the_score() -> None:
    track = Track(50, 5, 8)
    for at_ns in range(20):
        track.arrive(at_ns, 2**21, 2**41)
    assert track.tokens == 20 * 2**21
    assert track.thinned
    for _, tokens, size in unpack(track.packed()):
        assert tokens == META_TOKENS_MAX
        assert size >= 2**24


def test_a_long_stream_stays_within_its_cap() -> None:
    track = Track(50, 5, 100)
    sizes = []
    for at_ns in range(100_000):
        track.arrive(at_ns, 1, 1)
        sizes.append(len(track.packed()) // 16 if at_ns % 997 == 0 else 0)
    assert max(sizes) <= 100
    assert list(accumulate(tokens for _, tokens, _ in unpack(track.packed())))[-1] == 100_000
