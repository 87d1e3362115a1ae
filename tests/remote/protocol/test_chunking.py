"""Boundaries do not depend on how bytes are dealt out, nor on how a version came to be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remote.protocol import chunking
from remote.protocol.chunking import (
    FEW_PIECES,
    Cutter,
    Fresh,
    Hole,
    Keep,
    NeedData,
    Range,
    average_for,
    check_cut,
    cut,
    is_well_cut,
    max_size,
    min_size,
)
from remote.protocol.content import HOLE, BadContent, Manifest, Piece, block_hash
from tests.amounts import amount

AVERAGE = 4096
MIB = 1 << 20


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


NOISE = noise(256 * 1024)


class Drive:
    """Runs a `Cutter` over `data`, and counts what it asked to read."""

    def __init__(self, data: bytes, *, average: int = AVERAGE, extra: int = 0) -> None:
        self.data, self.average, self.extra = data, average, extra
        self.read = 0
        self.kept = 0

    def pieces(
        self,
        old: Sequence[Piece] | None = None,
        dirty: Sequence[Range] = (),
        holes: Sequence[Range] = (),
    ) -> list[Piece]:
        cutter = Cutter(self.average, len(self.data), old, dirty, holes)
        made: list[Piece] = []
        position = 0
        for step in cutter:
            match step:
                case NeedData(offset, length):
                    assert 1 <= length <= 2 * max_size(self.average)
                    assert offset == position
                    self.read += length
                    cutter.feed(self.data[offset : offset + length + self.extra])
                    continue
                case Keep(piece, offset):
                    self.kept += 1
                    assert piece.id == block_hash(self.data[offset : offset + piece.length])
                case Hole(offset, length):
                    piece = Piece(HOLE, length)
                case Fresh(offset, length, view):
                    assert view == self.data[offset : offset + length]
                    piece = Piece(block_hash(view), length)
            assert offset == position
            position += piece.length
            made.append(piece)
        assert position == len(self.data)
        return made


# --- cut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [4096, 65536])
def test_chunks_keep_to_their_limits_and_cover_the_data(average: int) -> None:
    data = noise(64 * average)
    lengths = cut(data, average, final=True)
    assert sum(lengths) == len(data)
    assert all(average // 4 <= item <= 4 * average for item in lengths[:-1])
    assert 0.8 * average < sum(lengths) / len(lengths) < 1.6 * average


def test_zeros_are_cut_at_the_maximum() -> None:
    assert cut(bytes(10 * AVERAGE), AVERAGE, final=True) == [16384, 16384, 8192]


def test_nothing_is_cut_into_nothing() -> None:
    assert cut(b"", AVERAGE, final=True) == []
    assert cut(b"x", AVERAGE, final=False) == []
    assert cut(b"x", AVERAGE, final=True) == [1]


def test_the_tail_that_is_left_over_is_bounded() -> None:
    for end in range(40_000, 40_100):
        assert 0 < end - sum(cut(NOISE[:end], AVERAGE, final=False)) <= max_size(AVERAGE)


@given(
    size=st.integers(0, len(NOISE)),
    deals=st.lists(st.integers(1, 30_000), min_size=1, max_size=20),
    zeros=st.tuples(st.integers(0, len(NOISE)), st.integers(0, 50_000)),
)
@settings(deadline=None, max_examples=amount(60, 12))
def test_boundaries_do_not_depend_on_how_bytes_are_dealt_out(
    size: int, deals: list[int], zeros: tuple[int, int]
) -> None:
    start, length = zeros
    data = (NOISE[:start] + bytes(length) + NOISE[start:])[:size]
    fed, pending = 0, b""
    lengths: list[int] = []
    while fed < size:
        taken = deals[len(lengths) % len(deals)]
        pending, fed = pending + data[fed : fed + taken], fed + taken
        found = cut(pending, AVERAGE, final=fed >= size)
        lengths, pending = lengths + found, pending[sum(found) :]
    assert lengths == cut(data, AVERAGE, final=True)
    assert pending == b""


def test_an_insertion_moves_only_the_chunks_around_it() -> None:
    before = cut(NOISE, AVERAGE, final=True)
    after = cut(NOISE[:100_000] + b"inserted" + NOISE[100_000:], AVERAGE, final=True)
    assert before[-10:] == after[-10:]
    assert before[:10] == after[:10]


# --- the average --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "uplink", "average"),
    [
        (0, None, MIB),
        ((1 << 30) - 1, None, MIB),
        (1 << 30, None, 2 * MIB),
        ((8 << 30) - 1, 1e9, 2 * MIB),
        (8 << 30, None, 4 * MIB),
        (1 << 50, None, 4 * MIB),
        (1 << 50, 100_000.0, 256 * 1024),
        (0, 200_000.0, 512 * 1024),
        (0, 1.0, 256 * 1024),
        (0, 0.0, 256 * 1024),
        (0, 1e6, MIB),
    ],
)
def test_the_average_follows_size_and_uplink(size: int, uplink: float | None, average: int) -> None:
    assert average_for(size, uplink) == average


@given(st.integers(0, 1 << 62), st.one_of(st.none(), st.floats(0, 1e12)))
@settings(deadline=None, max_examples=amount(50, 10))
def test_every_average_is_usable(size: int, uplink: float | None) -> None:
    average = average_for(size, uplink)
    assert chunking.usable_average(average) == average


def test_a_foreign_average_is_rounded_into_what_can_be_cut() -> None:
    assert chunking.usable_average(16 * MIB) == 4 * MIB
    assert chunking.usable_average(100_000) == 65536
    assert cut(NOISE, 100_000, final=True) == cut(NOISE, 65536, final=True)


# --- the machine --------------------------------------------------------------------------------


def test_a_new_file_is_cut_as_a_whole() -> None:
    pieces = Drive(NOISE).pieces()
    assert [piece.length for piece in pieces] == cut(NOISE, AVERAGE, final=True)


def test_an_empty_file_has_no_pieces() -> None:
    assert Drive(b"").pieces() == []
    assert Drive(b"").pieces(Drive(NOISE).pieces(), [(0, 5)], [(0, 5)]) == []


def test_nothing_changed_reads_nothing() -> None:
    old = Drive(NOISE).pieces()
    again = Drive(NOISE)
    assert again.pieces(old) == old
    assert again.read == 0


def test_a_small_change_in_place_reads_about_one_chunk() -> None:
    """The issue's case, 4 KiB in the middle of a large file, at a sixteenth of the scale."""
    average = 16 * 1024
    data = bytearray(noise(4 * MIB))
    old = Drive(bytes(data), average=average).pieces()
    data[2 * MIB : 2 * MIB + 256] = noise(256, seed=2)
    drive = Drive(bytes(data), average=average)
    pieces = drive.pieces(old, [(2 * MIB, 2 * MIB + 256)])
    assert pieces == Drive(bytes(data), average=average).pieces()
    assert drive.read <= 3 * average
    assert drive.kept >= len(old) - 3


def test_an_append_keeps_all_but_the_last_chunk() -> None:
    old = Drive(NOISE[:200_001]).pieces()
    drive = Drive(NOISE)
    assert drive.pieces(old) == Drive(NOISE).pieces()
    assert drive.kept == len(old) - 1


def test_truncation_cuts_only_the_chunk_it_falls_in() -> None:
    old = Drive(NOISE).pieces()
    drive = Drive(NOISE[:100_000])
    assert drive.pieces(old) == Drive(NOISE[:100_000]).pieces()
    assert drive.read <= max_size(AVERAGE)


@pytest.mark.parametrize("delta", [-2, -1, 0, 1, 2])
def test_truncation_around_a_boundary(delta: int) -> None:
    old = Drive(NOISE).pieces()
    size = sum(piece.length for piece in old[:10]) + delta
    assert Drive(NOISE[:size]).pieces(old) == Drive(NOISE[:size]).pieces()


@pytest.mark.slow
@pytest.mark.parametrize("delta", [-2, -1, 0, 1, 2])
def test_a_changed_byte_around_every_boundary(delta: int) -> None:
    """The first byte after a boundary helped to decide it: the chunk before must be looked at."""
    old = Drive(NOISE).pieces()
    position = 0
    for piece in old[:20]:
        position += piece.length
        for value in range(0, 256, 51):
            data = bytearray(NOISE)
            data[position + delta] = value
            drive = Drive(bytes(data))
            pieces = drive.pieces(old, [(position + delta, position + delta + 1)])
            assert pieces == Drive(bytes(data)).pieces()
            assert drive.read <= 4 * max_size(AVERAGE)


def test_a_hole_ends_a_chunk_and_cutting_begins_again_behind_it() -> None:
    data = NOISE[:50_000] + bytes(50_000) + NOISE[:50_000]
    drive = Drive(data)
    pieces = drive.pieces(holes=[(50_000, 100_000)])
    around = cut(NOISE[:50_000], AVERAGE, final=True)
    assert [piece.length for piece in pieces] == [*around, 50_000, *around]
    assert drive.read < 110_000


def test_short_holes_are_data_and_neighbours_are_one() -> None:
    data = NOISE[:10_000] + bytes(2_000) + NOISE[:10_000]
    assert HOLE not in [piece.id for piece in Drive(data).pieces(holes=[(10_000, 10_100)])]
    pieces = Drive(data).pieces(holes=[(11_000, 12_000), (10_000, 11_000)])
    assert pieces.count(Piece(HOLE, 2_000)) == 1


def test_a_huge_hole_costs_nothing() -> None:
    cutter = Cutter(MIB, 10**15, [Piece(b"i" * 32, 5)], [], [(5, 10**15)])
    assert list(cutter) == [Keep(Piece(b"i" * 32, 5), 0), Hole(5, 10**15 - 5)]


def test_old_holes_stay_holes_where_nothing_was_written() -> None:
    data = bytearray(NOISE[:20_000] + bytes(100_000) + NOISE[:20_000])
    old = Drive(bytes(data)).pieces(holes=[(20_000, 120_000)])
    data[60_000:60_100] = NOISE[:100]
    drive = Drive(bytes(data))
    pieces = drive.pieces(old, [(60_000, 60_100)])
    assert [p.length for p in pieces if p.id == HOLE] == [40_000, 59_900]
    assert drive.read == 100


def of_pieces(*pieces: Piece) -> Manifest:
    return Manifest(sum(piece.length for piece in pieces), MIB, list(pieces))


def test_a_file_of_nothing_but_tails_and_holes_is_well_cut() -> None:
    """The most pieces that a cut can make: between the shortest holes, one byte each."""
    tail, hole = Piece(b"i" * 32, 1), Piece(HOLE, min_size(MIB))
    check_cut(of_pieces(*[tail, hole] * 5000, tail), few=0)


@pytest.mark.parametrize(
    "around",
    [(), (Piece(HOLE, 1 << 60),), (Piece(b"j" * 32, MIB),) * 10],
    ids=["alone", "beside a huge hole", "beside long chunks"],
)
def test_too_many_pieces_for_the_size_are_refused(around: tuple[Piece, ...]) -> None:
    short = Piece(b"i" * 32, 1000)
    few, many = [short] * FEW_PIECES, [short] * (FEW_PIECES + 50)
    check_cut(of_pieces(*few, *around))
    with pytest.raises(BadContent, match="cut the file anew, with chunks and holes of at least"):
        check_cut(of_pieces(*many, *around))


def test_too_many_short_holes_are_refused() -> None:
    tail, hole = Piece(b"i" * 32, 1), Piece(HOLE, min_size(MIB) // 2)
    assert is_well_cut(of_pieces(*[tail, hole] * FEW_PIECES))
    assert not is_well_cut(of_pieces(*[tail, hole] * (2 * FEW_PIECES + 2)))


def test_the_machine_refuses_wrong_use() -> None:
    cutter = Cutter(AVERAGE, 10_000, None, [], [])
    with pytest.raises(RuntimeError, match="no bytes were asked for"):
        cutter.feed(b"x")
    assert next(cutter) == NeedData(0, 10_000)
    with pytest.raises(RuntimeError, match="feed"):
        next(cutter)
    with pytest.raises(ValueError, match="5 bytes were fed"):
        cutter.feed(b"short")
    cutter.feed(NOISE[:10_000])
    assert isinstance(next(cutter), Fresh)


ranges = st.lists(
    st.tuples(st.integers(0, 70_000), st.integers(0, 9_000)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=5,
)
sizes = st.integers(0, 70_000)


@given(sizes, ranges, sizes, ranges, ranges, st.integers(0, 20_000), st.integers(0, 99))
@example(0, [], 5, [], [], 0, 0)
@settings(deadline=None, max_examples=amount(200, 40))
def test_an_incremental_cut_equals_a_full_cut(
    old_size: int,
    old_holes: list[Range],
    new_size: int,
    dirty: list[Range],
    holes: list[Range],
    extra: int,
    seed: int,
) -> None:
    """Whatever was overwritten, punched, truncated and extended."""
    before = with_zeros(NOISE[:old_size], old_holes)
    old = Drive(before).pieces(holes=old_holes)
    changed = bytearray(before[:new_size].ljust(new_size, b"\0"))
    other = noise(new_size, seed + 2)
    grown = (min(old_size, new_size), new_size)
    for start, end in [*dirty, grown]:
        changed[start : min(end, new_size)] = other[start : min(end, new_size)]
    after = with_zeros(bytes(changed), holes)
    known_zero = [*holes, *still_zero(old, [*dirty, *holes])]
    incremental = Drive(after, extra=extra).pieces(old, [*dirty, *holes], holes)
    assert incremental == Drive(after).pieces(holes=known_zero)
    assert all(a.id != HOLE or b.id != HOLE for a, b in pairwise(incremental))
    check_cut(Manifest(new_size, AVERAGE, incremental), few=0)


def with_zeros(data: bytes, zeros: list[Range]) -> bytes:
    made = bytearray(data)
    for start, end in zeros:
        start, end = min(start, len(made)), min(end, len(made))
        made[start:end] = bytes(end - start)
    return bytes(made)


def still_zero(old: list[Piece], dirty: list[Range]) -> list[Range]:
    """Every byte of an old hole that is not dirty, found the slow way."""
    offset, found = 0, []
    touched = {byte for start, end in dirty for byte in range(start, end)}
    for piece in old:
        if piece.id == HOLE:
            free = [b for b in range(offset, offset + piece.length) if b not in touched]
            found += [(byte, byte + 1) for byte in free]
        offset += piece.length
    return found
