"""A bundle says by itself what is in it, and one that contradicts itself is not believed."""

from __future__ import annotations

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from remote.protocol import bundle
from remote.protocol.bundle import MAGIC, MAX_PART, TRAILER, bundle_of, parse, tail_length
from remote.protocol.codec import encode_chunk
from remote.protocol.content import BadContent, Descriptor

contents = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20, unique=True)


def made(*plain: bytes) -> tuple[bundle.Bundle, bytes]:
    """The bundle of these chunks, and the object."""
    encoded = [encode_chunk(one) for one in plain]
    found = bundle_of([item.descriptor for item in encoded])
    return found, b"".join(bytes(item.body) for item in encoded) + found.tail


def tail_of(parts: list[Descriptor]) -> bytes:
    index = msgspec.msgpack.encode(parts)
    return index + len(index).to_bytes(4, "big") + MAGIC


@given(contents)
def test_what_was_bundled_is_found_again(plain: list[bytes]) -> None:
    found, body = made(*plain)
    assert len(body) == found.length
    size = tail_length(body[-TRAILER:])
    again = parse(body[-size:], len(body))
    assert again == found
    for part, offset, one in zip(again.parts, again.offsets, plain, strict=True):
        encoded = encode_chunk(one)
        assert part == encoded.descriptor
        assert body[offset : offset + part.stored_length] == bytes(encoded.body)


@given(contents, contents)
def test_an_id_commits_to_the_parts_and_their_order(a: list[bytes], b: list[bytes]) -> None:
    assert (made(*a)[0].id == made(*b)[0].id) == (a == b)


def test_an_id_is_never_that_of_a_chunk() -> None:
    (found, _), chunk = made(b"x"), encode_chunk(b"x").descriptor
    assert found.id != chunk.id
    assert found.id == blake3(b"nearline bundle v1\x00" + found.tail[:-TRAILER]).digest()


@pytest.mark.parametrize(
    "end", [b"", b"x" * TRAILER, bytes(4) + MAGIC, b"\xff" * 4 + MAGIC, (5).to_bytes(4, "big")]
)
def test_other_objects_are_no_bundles(end: bytes) -> None:
    with pytest.raises(BadContent):
        tail_length(end)


def test_a_tail_that_is_cut_or_damaged_is_refused() -> None:
    found, body = made(b"one", b"two")
    for tail, length in (
        (found.tail[1:], len(body)),
        (b"x" + found.tail, len(body)),
        (found.tail, len(body) - 1),
        (b"\xc1" + found.tail[1:], len(body)),
        (found.tail.replace(b"raw", b"xxx"), len(body)),
    ):
        with pytest.raises(BadContent):
            parse(tail, length)


def test_parts_that_make_no_bundle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = encode_chunk(b"one").descriptor, encode_chunk(b"two").descriptor
    monkeypatch.setattr(bundle, "MAX_PARTS", 2)
    monkeypatch.setattr(bundle, "MAX_PARTS_LENGTH", 5)
    large = encode_chunk(blake3(b"large").digest(length=MAX_PART + 1)).descriptor
    wrong = msgspec.structs.replace(one, length=4)
    three = encode_chunk(b"x").descriptor
    for parts in ([], [one, one], [large], [wrong], [one, two], [three, one, two]):
        with pytest.raises(BadContent):
            bundle_of(parts)
        with pytest.raises(BadContent):
            parse(tail_of(parts), sum(p.stored_length for p in parts) + len(tail_of(parts)))
