"""An experiment's counts as bytes: back as they were, refused where they are none."""

from __future__ import annotations

import zlib
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.experiments import packing
from proxy.control.experiments.assigned import Counts
from proxy.control.experiments.book import EPOCHS_MAX, Book, Side, merged
from proxy.control.experiments.packing import Others, Reader, Writer, pack_sums, unpack_sums
from proxy.control.settle import settle
from proxy.link import Assignment
from scoring.compare_sums import BUCKETS, ArmSums, Observed
from tests.control.experiments.lab import Answer, facts_of
from tests.control.facts import UNIX

EPOCHS = [f"exp|candidate={number},control=50" for number in range(EPOCHS_MAX + 1)]


def filled(buckets: int, requests: int, seed: int = 1, epochs: int = 3) -> Book:
    book, random = Book(buckets), Random(seed)
    for number in range(requests):
        epoch, arm = random.choice(EPOCHS[:epochs]), random.randrange(2)
        given_ = Assignment("chat", "control", "session", 1, None, epoch, random.randrange(BUCKETS))
        answer = Answer(random.random() < 0.9, random.randrange(10, 90), failed=random.random() < 0.1)
        book.add(epoch, arm, settle(facts_of(answer, given_, number + 1, UNIX), "here"))
        book.assign(epoch, arm, Counts(draw=1))
    book.flush()
    return book


def same(one: Book, two: Book) -> bool:
    return one.epochs == two.epochs and all(
        getattr(a, name) == getattr(b, name) if name != "hours" else a.hours.tolist() == b.hours.tolist()
        for a, b in zip(one.sides, two.sides, strict=True)
        for name in Side.__slots__
    )


@pytest.mark.parametrize("buckets", [1, BUCKETS])
def test_what_others_wrote_is_what_they_counted_however_often_they_write(buckets: int) -> None:
    books = {who: filled(buckets, 100, seed) for seed, who in enumerate("abc")}
    writers = {who: Writer("digest") for who in books}
    others = Others("digest", buckets)
    written: dict[str, bytes] = {}
    for step in range(6):
        who = "abc"[step % 3]
        books[who].assign(EPOCHS[step % 4], step % 2, Counts(draw=5))
        written[who] = writers[who].pack(books[who])
        assert others.read(written) == []
        assert same(others.book, merged([books[who] for who in written], buckets))
        assert others.hosts == len(written)
    del written["b"]  # its field is gone
    others.read(written)
    left = merged([books["a"], books["c"]], buckets)
    assert others.book.epochs == left.epochs
    assert [others.book.assigned(arm) for arm in (0, 1)] == [left.assigned(arm) for arm in (0, 1)]
    assert [others.book.recorded(arm) for arm in (0, 1)] == [left.recorded(arm) for arm in (0, 1)]


def test_only_what_is_new_is_read() -> None:
    book = filled(1, 300)
    writer, reader = Writer("digest"), Reader("digest", 1)
    assert set(reader.read(writer.pack(book)) or ()) == set(book.epochs)
    assert reader.read(writer.pack(book)) is None
    book.assign(EPOCHS[0], 1, Counts(draw=5))
    assert set(reader.read(writer.pack(book)) or ()) == {EPOCHS[0]}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**40), st.integers(0, 2**31), st.integers(0, 300))
def test_sums_of_any_size_come_back(ttft_ns: int, tokens: int, times: int) -> None:
    sums = ArmSums(4)
    one = Observed("completed", "good", tokens, 3, ttft_ns * 1000, ttft_ns, bucket=3)
    sums.add_many([one] * times)
    assert unpack_sums(pack_sums(sums)) == sums


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 3000), st.integers(0, 255))
def test_nonsense_is_refused_and_what_was_read_stays(noise: bytes, at: int, byte: int) -> None:
    book = filled(1, 30)
    data = Writer("digest").pack(book)
    broken = bytearray(data)
    broken[at % len(data)] = byte
    for wrong in (noise, bytes(broken), data[: at % len(data)]):
        others = Others("digest", 1)
        others.read({"host": data})
        if others.read({"host": wrong}):
            assert others.unread == 1
            assert same(others.book, book)
        others.read({"host": data})  # whatever came of it: the next word mends it
        assert same(others.book, book)
        assert others.unread == 0


def test_what_is_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader("digest", 1)
    many = {epoch: (b"", b"") for epoch in EPOCHS}
    side = packing.pack_side(Side())
    too_many = packing.PackedBook(1, "digest", 1, many, (side, side), 0, 0)
    with pytest.raises(ValueError, match="another version"):
        reader.read(msgspec.msgpack.encode(too_many))
    bomb = msgspec.msgpack.encode(([1, 1, 9, 0], zlib.compress(b"\0" * 10_000_000), []))
    with pytest.raises(ValueError, match="too much"):
        unpack_sums(bomb)
    digits = msgspec.msgpack.encode(([1, 1, 9, 0], zlib.compress(b"\0" * 8), ["9" * 5000]))
    with pytest.raises(ValueError, match="too much"):
        unpack_sums(digits)
    monkeypatch.setattr(packing, "BYTES_MAX", 10)
    with pytest.raises(ValueError, match="more than"):
        reader.read(b"x" * 11)


def test_other_terms_and_other_buckets_are_strangers() -> None:
    data = Writer("digest").pack(filled(1, 10))
    for digest, buckets in (("other", 1), ("digest", BUCKETS)):
        reader = Reader(digest, buckets)
        assert reader.read(data) == {}
        assert reader.stranger
        assert reader.sides is None


@pytest.mark.parametrize("buckets", [1, BUCKETS])
def test_merged_in_any_grouping_it_is_the_same(buckets: int) -> None:
    books = [filled(buckets, 60, seed) for seed in range(3)]
    left, right = Book(buckets), Book(buckets)
    for book in books:
        left.merge(book)
    for book in reversed(books):
        right.merge(book)
    assert left.epochs == right.epochs
    assert left.recorded(0) == sum(book.recorded(0) for book in books)
    assert left.sides[0].ttft == right.sides[0].ttft


def test_more_weights_than_are_kept_are_left_out_and_counted() -> None:
    book = filled(1, 2_000, epochs=EPOCHS_MAX + 1)
    assert len(book.epochs) == EPOCHS_MAX
    assert book.left_out > 0
    assert book.recorded(0) + book.recorded(1) + book.left_out == 2_000
