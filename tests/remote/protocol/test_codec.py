"""Stored bytes decode to those that were encoded, and nothing else is ever given out."""

from __future__ import annotations

import hashlib
import itertools
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.protocol.codec import Encoded, decode_block, encode_chunk, iter_stored
from remote.protocol.content import BLOCK_SIZE, BadContent, Descriptor, block_hash, check_descriptor
from tests.amounts import amount

NOISE = random.Random(1).randbytes(3 * BLOCK_SIZE)
TEXT = b"the quick brown fox jumps over the lazy dog. " * 20_000


def decode_all(encoded: Encoded) -> bytes:
    descriptor, body = encoded
    last = len(descriptor.stored_lengths) - 1
    parts = [
        bytes(decode_block(descriptor, block, memoryview(body)[start:end]))
        for block, start, end in iter_stored(descriptor, 0, last)
    ]
    return b"".join(parts)


plains = st.builds(
    lambda kind, start, length: kind[start : start + length] or b"x",
    st.sampled_from([NOISE, TEXT, bytes(700_000), TEXT[:BLOCK_SIZE] + NOISE, NOISE + TEXT]),
    st.integers(0, 1_000),
    st.one_of(
        st.integers(1, 700_000), st.integers(1, 20), st.sampled_from([BLOCK_SIZE, 2 * BLOCK_SIZE])
    ),
)


@given(plains)
@settings(deadline=None, max_examples=amount(60, 12))
def test_a_chunk_comes_back_and_its_descriptor_is_true(plain: bytes) -> None:
    encoded = encode_chunk(plain)
    check_descriptor(encoded.descriptor)
    assert len(encoded.body) == encoded.descriptor.stored_length <= len(plain)
    assert encoded.descriptor.sha256 == hashlib.sha256(encoded.body).digest()
    assert decode_all(encoded) == plain


def test_noise_is_stored_raw_without_a_copy() -> None:
    plain = bytearray(NOISE)
    encoded = encode_chunk(plain)
    assert encoded.descriptor.codec == "raw"
    assert isinstance(encoded.body, memoryview)
    assert encoded.body.obj is plain
    stored = encoded.body[:BLOCK_SIZE]
    assert decode_block(encoded.descriptor, 0, stored) is stored


def test_text_is_compressed() -> None:
    encoded = encode_chunk(TEXT)
    assert encoded.descriptor.codec == "zstd"
    assert encoded.descriptor.stored_length < len(TEXT) // 20


def test_a_block_that_does_not_shrink_is_raw_among_compressed_ones() -> None:
    encoded = encode_chunk(TEXT[:BLOCK_SIZE] + NOISE)
    assert encoded.descriptor.codec == "zstd"
    assert encoded.descriptor.stored_lengths[1:] == [BLOCK_SIZE] * 3
    assert encoded.descriptor.stored_lengths[0] < BLOCK_SIZE


def test_the_middle_is_sampled_too() -> None:
    assert encode_chunk(NOISE[:BLOCK_SIZE] + TEXT).descriptor.codec == "zstd"


def test_the_name_does_not_depend_on_how_it_is_stored() -> None:
    descriptor = encode_chunk(TEXT).descriptor
    raw = msgspec.structs.replace(
        descriptor, codec="raw", stored_lengths=[BLOCK_SIZE] * 3 + [len(TEXT) - 3 * BLOCK_SIZE]
    )
    check_descriptor(raw)
    assert raw.id == descriptor.id


@pytest.mark.parametrize("length", [0, 64 * 1024 * 1024 + 1])
def test_no_chunk_has_such_a_length(length: int) -> None:
    with pytest.raises(BadContent, match="a chunk has 1 to"):
        encode_chunk(bytes(length))


def test_many_threads_encode_and_decode_at_once() -> None:
    plains = [TEXT[:size] + NOISE[:size] for size in range(1, 400_000, 25_000)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda plain: decode_all(encode_chunk(plain)), plains)) == plains


# --- what comes back is not trusted -------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=amount(100, 20))
def test_any_damage_to_a_stored_block_is_noticed(data: st.DataObject) -> None:
    descriptor, body = encode_chunk(data.draw(st.sampled_from([NOISE[:5000], TEXT[:5000]])))
    damaged = bytearray(body)
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    # A zstd frame has a few bits that decoders ignore; then the plain bytes are still right.
    try:
        plain = decode_block(descriptor, 0, bytes(damaged))
    except BadContent:
        return
    assert block_hash(plain) == descriptor.block_hashes
    assert descriptor.codec == "zstd"


@pytest.mark.parametrize("plain", [NOISE[:5000], TEXT[:5000]])
def test_truncation_and_extension_are_noticed(plain: bytes) -> None:
    descriptor, body = encode_chunk(plain)
    for wrong in (b"", bytes(body)[:-1], bytes(body) + b"x"):
        with pytest.raises(BadContent, match="came"):
            decode_block(descriptor, 0, wrong)


def test_a_block_that_does_not_exist_is_refused() -> None:
    descriptor, body = encode_chunk(TEXT[:5000])
    for block in (-1, 1):
        with pytest.raises(BadContent, match="no block"):
            decode_block(descriptor, block, body)


def lying(frame: bytes, plain: int = 5000) -> Descriptor:
    """A descriptor that says a block of `plain` zeros is stored as `frame`."""
    hashes = block_hash(bytes(plain))
    return Descriptor(b"i" * 32, plain, "zstd", hashes, [len(frame)], b"s" * 32)


def test_a_frame_that_declares_another_size_is_refused_before_allocating() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    bomb = bomb[:4000]
    tracemalloc.start()
    try:
        with pytest.raises(BadContent, match="declares"):
            decode_block(lying(bomb), 0, bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_declares_no_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    with pytest.raises(BadContent, match="declares"):
        decode_block(lying(frame), 0, frame)


def test_two_frames_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(5000))
    with pytest.raises(BadContent, match="does not decompress"):
        decode_block(lying(frame + frame), 0, frame + frame)


def test_a_skippable_frame_is_refused() -> None:
    frame = b"\x50\x2a\x4d\x18" + (5000).to_bytes(4, "little") + bytes(4000)
    with pytest.raises(BadContent):
        decode_block(lying(frame), 0, frame)


def test_what_is_not_zstd_is_refused() -> None:
    with pytest.raises(BadContent, match="does not decompress"):
        decode_block(lying(b"not zstd at all"), 0, b"not zstd at all")


def test_iter_stored_covers_the_object() -> None:
    descriptor = encode_chunk(TEXT + NOISE).descriptor
    spans = list(iter_stored(descriptor, 0, len(descriptor.stored_lengths) - 1))
    assert spans[0].start == 0
    assert spans[-1].end == descriptor.stored_length
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    assert list(iter_stored(descriptor, 2, 3)) == spans[2:4]
