"""Delay histograms: half octaves while a stream runs, octaves when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.link import DELAY_BOUNDS_NS
from proxy.relay.delays import SIZE, Octaves, new, quantile_ns

DELAYS = st.integers(0, 2**63 - 1)


def halves(delays: list[int]) -> list[int]:
    counts = new()
    for delay in delays:
        counts[(delay * delay).bit_length()] += 1
    return counts


def bucket(delay: int) -> int:
    """The slow, obvious way."""
    return next((n for n, bound in enumerate(DELAY_BOUNDS_NS) if delay <= bound), len(DELAY_BOUNDS_NS))


@given(DELAYS)
def test_every_delay_has_its_place(delay: int) -> None:
    assert halves([delay]).index(1) < SIZE
    octaves = Octaves()
    octaves.add(delay)
    assert octaves.counts.index(1) == bucket(delay)
    assert octaves.sum_ns == delay


@given(st.lists(DELAYS, max_size=50))
def test_folding_moves_nothing_by_more_than_the_half_octave_that_was_kept(delays: list[int]) -> None:
    folded = Octaves()
    folded.fold(halves(delays), sum(delays))
    assert sum(folded.counts) == len(delays)
    assert folded.sum_ns == sum(delays)
    cumulated, exact = 0, 0
    for index in range(len(DELAY_BOUNDS_NS)):
        cumulated += folded.counts[index]
        exact = sum(delay < DELAY_BOUNDS_NS[index] for delay in delays)
        assert cumulated == exact  # a half octave ends where an octave does


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_at_most_an_eighth_of_two_octaves_too_high(delays: list[int], q: float) -> None:
    rank = max(1, -(-int(q * len(delays) * 1000) // 1000))
    exact = sorted(delays)[min(rank, len(delays)) - 1]
    found = quantile_ns(halves(delays), q)
    assert exact * 0.99 <= found <= exact * 1.4143 + 1


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile_ns(new(), 0.99) == 0
