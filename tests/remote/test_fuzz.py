"""Input from outside, at its strangest: descriptors, manifests, blocks, signed URLs.

Each either means what it says or is refused with the one error that callers expect; nothing is
allocated that was not declared and bounded.
"""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import msgspec
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import assume, given
from hypothesis import strategies as st

from remote.protocol.bundle import MAGIC, TRAILER, bundle_of, parse, tail_length
from remote.protocol.codec import decode_block, encode_chunk
from remote.protocol.content import (
    BLOCK_SIZE,
    MAX_CHUNK_SIZE,
    BadContent,
    Descriptor,
    Manifest,
    block_count,
    block_hash,
    block_length,
    check_descriptor,
    check_manifest,
    chunk_id,
)
from remote.protocol.signing import BadSignature, sign_get, sign_put, verify_get, verify_put
from tests.remote.fuzzing import fuzz, mutated

TEXT = b"a line that compresses well enough to be worth it\n" * 12_000
NOISE = hashlib.shake_256(b"noise").digest(BLOCK_SIZE + 3)
SAMPLES = [encode_chunk(data) for data in (TEXT, NOISE, TEXT[:300_000] + NOISE, b"x", TEXT[:40])]


# --- descriptors and manifests ------------------------------------------------------------------


def take_descriptor(raw: bytes, decode: Any) -> None:
    try:
        descriptor = decode(raw, type=Descriptor)
        check_descriptor(descriptor)
    except (BadContent, msgspec.DecodeError, UnicodeDecodeError):
        return
    blocks = block_count(descriptor.length)
    assert 1 <= descriptor.length <= MAX_CHUNK_SIZE
    assert len(descriptor.stored_lengths) == blocks == len(descriptor.block_hashes) // 32
    assert descriptor.stored_length <= descriptor.length
    assert chunk_id(descriptor.length, descriptor.block_hashes) == descriptor.id


def take_manifest(raw: bytes, decode: Any) -> None:
    try:
        manifest = decode(raw, type=Manifest)
        check_manifest(manifest)
    except (BadContent, msgspec.DecodeError, UnicodeDecodeError):
        return
    assert sum(piece.length for piece in manifest.pieces) == manifest.size


DECODERS = [msgspec.msgpack.decode, msgspec.json.decode]
ENCODERS = [msgspec.msgpack.encode, msgspec.json.encode]


@pytest.mark.parametrize("take", [take_descriptor, take_manifest])
@given(st.binary(max_size=2000), st.sampled_from(DECODERS))
@fuzz
def test_arbitrary_bytes_are_no_content(take: Any, raw: bytes, decode: Any) -> None:
    take(raw, decode)


@given(st.data(), st.sampled_from(SAMPLES), st.integers(0, 1))
@fuzz
def test_a_damaged_descriptor_is_refused_or_true(
    data: st.DataObject, sample: Any, form: int
) -> None:
    raw = ENCODERS[form](sample.descriptor)
    take_descriptor(data.draw(mutated(raw)), DECODERS[form])


# --- bundles ------------------------------------------------------------------------------------

BUNDLE = bundle_of([sample.descriptor for sample in SAMPLES[3:]])


def take_tail(tail: bytes, length: int) -> None:
    """As a server takes the end of an object: first the trailer, then all that it speaks of."""
    try:
        size = tail_length(tail[-TRAILER:])
        bundle = parse(tail[-size:], length)
    except BadContent:
        return
    assert bundle_of(bundle.parts) == bundle or bundle.tail == tail[-size:]
    ends = [at + part.stored_length for at, part in zip(bundle.offsets, bundle.parts, strict=True)]
    assert [*bundle.offsets, length - len(bundle.tail)] == [0, *ends]


@given(st.data(), st.integers(-3, 3))
@fuzz
def test_a_damaged_tail_is_refused_or_true(data: st.DataObject, longer: int) -> None:
    take_tail(data.draw(mutated(BUNDLE.tail)), BUNDLE.length + longer)


@given(st.data())
@fuzz
def test_a_damaged_index_with_a_good_trailer_is_refused_or_true(data: st.DataObject) -> None:
    index = data.draw(mutated(BUNDLE.tail[:-TRAILER]))
    tail = index + len(index).to_bytes(4, "big") + MAGIC
    take_tail(tail, sum(part.stored_length for part in BUNDLE.parts) + len(tail))


@given(st.binary(max_size=200))
@fuzz
def test_arbitrary_bytes_are_no_bundle(raw: bytes) -> None:
    take_tail(raw, len(raw))
    take_tail(raw + len(raw).to_bytes(4, "big") + MAGIC, len(raw) + TRAILER)


# --- descriptors and manifests that are nearly right --------------------------------------------

integers = st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 1, BLOCK_SIZE, MAX_CHUNK_SIZE])
nearly_descriptors = st.fixed_dictionaries(
    {
        "id": st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
        "length": integers | st.integers(1, 3 * BLOCK_SIZE),
        "codec": st.sampled_from(["raw", "zstd", "", "RAW", "zstd\n"]),
        "block_hashes": st.integers(0, 4).map(lambda n: bytes(32 * n)) | st.binary(max_size=70),
        "stored_lengths": st.lists(integers | st.integers(1, BLOCK_SIZE), max_size=4),
        "sha256": st.binary(min_size=32, max_size=32) | st.binary(max_size=33),
    }
)


@given(nearly_descriptors, st.booleans())
@fuzz
def test_what_is_nearly_a_descriptor_is_refused_or_true(
    fields: dict[str, Any], right_id: bool
) -> None:
    if right_id and 0 < fields["length"] < 1 << 60:
        fields = fields | {"id": chunk_id(fields["length"], fields["block_hashes"])}
    try:
        raw = msgspec.msgpack.encode(fields)
    except OverflowError:  # no integer of MessagePack
        assume(False)
    take_descriptor(raw, msgspec.msgpack.decode)


nearly_manifests = st.fixed_dictionaries(
    {
        "size": integers,
        "average": integers | st.just(1 << 20),
        "pieces": st.lists(
            st.tuples(st.sampled_from([b"", bytes(32), bytes(31), bytes(33)]), integers), max_size=6
        ),
    }
)


@given(nearly_manifests, st.booleans())
@fuzz
def test_what_is_nearly_a_manifest_is_refused_or_true(
    fields: dict[str, Any], adds_up: bool
) -> None:
    if adds_up:
        fields = fields | {"size": sum(length for _, length in fields["pieces"])}
    try:
        raw = msgspec.msgpack.encode(fields)
    except OverflowError:
        assume(False)
    take_manifest(raw, msgspec.msgpack.decode)


def test_a_message_that_announces_much_takes_little() -> None:
    """An array or a byte string of 2^32 - 1 of which nothing comes."""
    head = msgspec.msgpack.encode({"size": 1, "average": 1 << 20, "pieces": []})[:-1]
    for huge in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        tracemalloc.start()
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode(head + huge, type=Manifest)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


# --- decompression ------------------------------------------------------------------------------


def take_block(descriptor: Descriptor, block: int, stored: bytes) -> None:
    """Lie about the stored length as much as `stored` needs; the hashes stay."""
    lengths = list(descriptor.stored_lengths)
    lengths[block] = len(stored)
    lie = msgspec.structs.replace(descriptor, stored_lengths=lengths)
    tracemalloc.start()
    try:
        plain = decode_block(lie, block, stored)
    except BadContent:
        pass
    else:
        wanted = descriptor.block_hashes[32 * block : 32 * block + 32]
        assert block_hash(plain) == wanted
        assert len(plain) == block_length(descriptor.length, block)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * BLOCK_SIZE + len(stored)


PACKED = SAMPLES[0].descriptor
FIRST = bytes(SAMPLES[0].body[: PACKED.stored_lengths[0]])
assert PACKED.codec == "zstd"


@given(st.binary(max_size=4000))
@fuzz
def test_arbitrary_bytes_are_no_block(stored: bytes) -> None:
    take_block(PACKED, 0, stored)


@given(st.data())
@fuzz
def test_a_damaged_frame_gives_the_right_bytes_or_none(data: st.DataObject) -> None:
    take_block(PACKED, 0, data.draw(mutated(FIRST)))


@given(
    st.sampled_from([0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 8 << 20]),
    st.booleans(),
    st.booleans(),
    st.binary(max_size=9),
)
@fuzz
def test_a_frame_of_another_size_is_refused_within_the_bound(
    length: int, says_its_size: bool, twice: bool, tail: bytes
) -> None:
    maker = zstandard.ZstdCompressor(level=1, write_content_size=says_its_size)
    frame = maker.compress(bytes(length))
    take_block(PACKED, 0, frame * (2 if twice else 1) + tail)


def forged(declared: int, actual: int) -> bytes:
    """A frame of `actual` zeros that declares `declared` (RFC 8878: magic, descriptor, window,
    content size)."""
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(actual))
    with_size = bytes([0xC0 | (frame[4] & 0x1F)])
    return frame[:4] + with_size + frame[5:6] + declared.to_bytes(8, "little") + frame[6:]


def test_forged_frames_are_frames() -> None:
    assert zstandard.frame_content_size(forged(5, 1000)) == 5
    assert zstandard.ZstdDecompressor().decompress(forged(1000, 1000)) == bytes(1000)


@given(st.sampled_from([0, 1, BLOCK_SIZE, 1 << 30, (1 << 63) - 1]), st.sampled_from([0, 1 << 24]))
@fuzz
def test_a_frame_that_lies_about_its_size_is_refused_within_the_bound(
    declared: int, actual: int
) -> None:
    take_block(PACKED, 0, forged(declared, actual))


# --- signed URLs --------------------------------------------------------------------------------

SECRET = b"s" * 32
SHA = hashlib.sha256(b"object").digest()
PATH = f"/blobs/{'a' * 32}/{'b' * 64}"
KEY = ec.derive_private_key(0xC0FFEE, ec.SECP256R1())
URL = f"https://edge.example:8443/chunks/{'a' * 32}/{'b' * 64}"
PUTS = [
    sign_put(SECRET, path=PATH, length=13, sha256=SHA, expires=2_000, proof=proof)
    for proof in (None, "c" * 32)
]
GET = sign_get(KEY, "K1", URL, 2_000)


def text_of(raw: bytes) -> str:
    return raw.decode("latin-1")


@given(st.data(), st.sampled_from(PUTS))
@fuzz
def test_a_put_query_has_one_spelling(data: st.DataObject, query: str) -> None:
    other = text_of(data.draw(mutated(query.encode())))
    assume(other not in PUTS)
    with pytest.raises(BadSignature):
        verify_put(SECRET, path=PATH, query=other, length=13, sha256=SHA, now=1_000)


@given(st.data())
@fuzz
def test_a_put_path_has_one_spelling(data: st.DataObject) -> None:
    other = text_of(data.draw(mutated(PATH.encode())))
    assume(other != PATH)
    with pytest.raises(BadSignature):
        verify_put(SECRET, path=other, query=PUTS[0], length=13, sha256=SHA, now=1_000)


@given(st.data())
@fuzz
def test_a_get_url_has_one_spelling(data: st.DataObject) -> None:
    other = text_of(data.draw(mutated(GET.encode())))
    assume(other != GET)
    with pytest.raises(BadSignature):
        verify_get({"K1": KEY.public_key()}, other, 1_000)


@given(st.text(max_size=300))
@fuzz
def test_arbitrary_text_is_no_signed_url(text: str) -> None:
    with pytest.raises(BadSignature):
        verify_get({"K1": KEY.public_key()}, text, 1_000)
    with pytest.raises(BadSignature):
        verify_put(SECRET, path=PATH, query=text, length=13, sha256=SHA, now=1_000)
