"""server/links/outlines.py: where pieces are, and how much of them is remembered."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol.content import HOLE, Manifest, Piece
from server.links.outlines import Outline, Outlines, Part

pieces = st.lists(
    st.builds(Piece, st.sampled_from([HOLE, b"a" * 32, b"b" * 32, bytes(32)]), st.integers(1, 9)),
    max_size=12,
)


def of(*pieces: Piece) -> Manifest:
    return Manifest(sum(piece.length for piece in pieces), 1 << 20, list(pieces))


@given(pieces, st.integers(0, 99), st.integers(0, 99))
def test_the_parts_under_a_range_are_the_range(pieces: list[Piece], start: int, end: int) -> None:
    whole = [(piece.id, number, at) for number, piece in enumerate(pieces)
             for at in range(piece.length)]  # fmt: skip
    parts = list(Outline(of(*pieces)).under(start, end))
    told = [(part.piece.id, at) for part in parts for at in range(part.start, part.end)]
    assert told == [(id, at) for id, _, at in whole[start:end]]
    assert all(part.start < part.end <= part.piece.length for part in parts)


def test_a_piece_in_the_middle_of_very_many_is_found_without_the_others() -> None:
    outline = Outline(of(*[Piece(HOLE, 5), Piece(b"a" * 32, 1)] * 100_000))
    made = []
    piece = outline._piece
    outline._piece = lambda *where: made.append(where) or piece(*where)  # type: ignore[method-assign,func-returns-value]
    assert list(outline.under(300_005, 300_006)) == [Part(Piece(b"a" * 32, 1), 0, 1)]
    assert len(made) == 1


def test_its_weight_is_what_it_takes() -> None:
    outline = Outline(of(*[Piece(b"a" * 32, 1)] * 10_000))
    held = sum(sys.getsizeof(item) for item in (outline._ends, outline._ids, outline._holes))
    assert held <= outline.weight <= 1.01 * held


@pytest.mark.parametrize("limit", [0, 3_000, 10_000])
def test_no_more_is_remembered_than_the_limit(limit: int) -> None:
    outlines, read = Outlines(limit), []
    manifest = of(*[Piece(b"a" * 32, 1)] * 20)
    weight = Outline(manifest).weight
    for number in [*range(30), *reversed(range(30))]:
        found = outlines.of(f"{number}", manifest.size, lambda: read.append(1) or manifest)  # type: ignore[func-returns-value]
        assert found.size == 20
        assert outlines._weight == sum(item.weight for item in outlines._kept.values()) <= limit
    assert len(read) == 60 - limit // weight


def test_the_same_id_with_another_size_is_read_anew() -> None:
    outlines = Outlines()
    first, second = of(Piece(HOLE, 1)), of(Piece(HOLE, 2))
    assert outlines.of("v", 1, lambda: first).size == 1
    assert outlines.of("v", 2, lambda: second).size == 2
    assert outlines._weight == Outline(second).weight
