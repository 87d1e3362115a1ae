"""Names commit to content, and structures that contradict themselves are not believed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.protocol.content import (
    BLOCK_SIZE,
    EMPTY,
    HOLE,
    MAX_CHUNK_SIZE,
    BadContent,
    Descriptor,
    Manifest,
    Piece,
    block_count,
    block_hash,
    block_length,
    check_descriptor,
    check_manifest,
    chunk_id,
    fingerprint,
)
from tests.amounts import amount

A, B = Piece(b"a" * 32, 100), Piece(b"b" * 32, 50)
GAP = Piece(HOLE, 70)

pieces = st.lists(st.sampled_from([A, B, GAP, Piece(b"a" * 32, 50), Piece(HOLE, 100)]), max_size=6)


def manifest(*made: Piece) -> Manifest:
    return Manifest(sum(piece.length for piece in made), 65536, list(made))


@given(st.integers(1, MAX_CHUNK_SIZE))
def test_blocks_add_up_to_their_chunk(length: int) -> None:
    lengths = [block_length(length, block) for block in range(block_count(length))]
    assert sum(lengths) == length
    assert set(lengths[:-1]) <= {BLOCK_SIZE}
    assert 1 <= lengths[-1] <= BLOCK_SIZE


def test_a_chunk_id_commits_to_length_and_hashes() -> None:
    one = chunk_id(100, b"h" * 32)
    assert len(one) == 32
    assert len({one, chunk_id(101, b"h" * 32), chunk_id(100, b"i" * 32)}) == 3


@given(pieces, pieces)
def test_different_contents_have_different_fingerprints(a: list[Piece], b: list[Piece]) -> None:
    assert (fingerprint(manifest(*a)) == fingerprint(manifest(*b))) == (a == b)


def test_a_fingerprint_does_not_depend_on_the_average() -> None:
    assert fingerprint(Manifest(100, 65536, [A])) == fingerprint(Manifest(100, 1 << 20, [A]))


@pytest.mark.parametrize("good", [EMPTY, manifest(A), manifest(A, A), manifest(GAP, A, GAP, B)])
def test_a_manifest_that_adds_up(good: Manifest) -> None:
    check_manifest(good)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Manifest(99, 65536, [A]), "add up"),
        (Manifest(101, 65536, [A]), "add up"),
        (Manifest(1, 65536, []), "add up"),
        (manifest(GAP, GAP), "two holes"),
        (manifest(Piece(b"short", 5)), "not 32"),
        (manifest(Piece(b"a" * 32, MAX_CHUNK_SIZE + 1)), "limit"),
    ],
)
def test_a_manifest_that_contradicts_itself(bad: Manifest, why: str) -> None:
    with pytest.raises(BadContent, match=why):
        check_manifest(bad)


def descriptor(**changed: object) -> Descriptor:
    plain = b"x" * (BLOCK_SIZE + 10)
    hashes = block_hash(plain[:BLOCK_SIZE]) + block_hash(plain[BLOCK_SIZE:])
    made = Descriptor(
        chunk_id(len(plain), hashes), len(plain), "raw", hashes, [BLOCK_SIZE, 10], b"s" * 32
    )
    return msgspec.structs.replace(made, **changed)


@pytest.mark.parametrize(
    "good",
    [
        descriptor(),
        descriptor(codec="zstd"),
        descriptor(codec="zstd", stored_lengths=[5, 10]),
    ],
)
def test_a_descriptor_that_is_its_id(good: Descriptor) -> None:
    check_descriptor(good)
    assert good.stored_length == sum(good.stored_lengths)
    assert [good.stored_offset(block) for block in (0, 1, 2)] == [
        0,
        good.stored_lengths[0],
        good.stored_length,
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"id": b"i" * 32},
        {"length": BLOCK_SIZE + 11},
        {"length": BLOCK_SIZE},
        {"block_hashes": b"h" * 64},
        {"block_hashes": b"h" * 32},
        {"stored_lengths": [BLOCK_SIZE]},
        {"stored_lengths": [BLOCK_SIZE, 9]},
        {"codec": "zstd", "stored_lengths": [BLOCK_SIZE, 0]},
        {"codec": "zstd", "stored_lengths": [BLOCK_SIZE + 1, 10]},
        {"codec": "zstd", "stored_lengths": [-1, 10]},
    ],
)
def test_a_descriptor_that_contradicts_itself(changed: dict[str, object]) -> None:
    with pytest.raises(BadContent):
        check_descriptor(descriptor(**changed))


@given(pieces)
@settings(max_examples=amount(30, 10))
def test_manifests_travel(made: list[Piece]) -> None:
    sent = manifest(*made)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Manifest)
    assert packed == msgspec.json.decode(msgspec.json.encode(sent), type=Manifest) == sent


@pytest.mark.parametrize(
    "packed",
    [
        {"size": -1, "average": 65536, "pieces": []},
        {"size": 0, "average": 1, "pieces": []},
        {"size": 0, "average": 65536, "pieces": [[b"", 0]]},
        {"size": 0, "average": 65536, "pieces": [[b"", -5]]},
        {"size": 0, "average": 65536, "pieces": [[b"x" * 33, 5]]},
    ],
)
def test_what_no_manifest_can_hold_is_refused_on_arrival(packed: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Manifest)
