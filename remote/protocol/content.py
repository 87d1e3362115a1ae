"""The content model: blocks, chunks, descriptors, manifests, and how each is named.

Knows: sizes, hashes and the commitments between them. Must not know: how boundaries are chosen
(`chunking`), how bytes are stored (`codec`), where they are fetched from, the clock.

A file version is a manifest: an ordered list of pieces, each a chunk or a hole (zeros that nobody
stores). A chunk is a run of 256 KiB blocks, the last one shorter. The chunk id commits to the
length and to the BLAKE3 of every block's plaintext, so whoever holds a manifest can verify any
single block, whoever served it. How a block happens to be stored (codec, stored lengths) is not
committed to: two devices may compress the same chunk differently and must still agree on its name.

Invariants:
- `sum(piece.length) == manifest.size`; no piece is empty; no two neighbouring holes.
- `chunk_id(d.length, d.block_hashes) == d.id` for every descriptor that is believed.
- Changing anything that feeds a hash below is a format change: new tag, new golden vectors.
"""

from __future__ import annotations

from typing import Annotated

from blake3 import blake3
from msgspec import Meta, Struct

from remote.protocol.ids import ChunkId

BLOCK_SIZE = 256 * 1024
MAX_CHUNK_SIZE = 64 * 1024 * 1024
MAX_FILE_SIZE = 1 << 62
CHUNK_TAG = b"nearline chunk v1\x00"
MANIFEST_TAG = b"nearline manifest v1\x00"
HOLE = b""


class Piece(Struct, frozen=True, array_like=True):
    """One run of a file: chunk `id` (32 bytes) or a hole (`id` empty), `length` bytes long."""

    id: Annotated[bytes, Meta(max_length=32)]
    length: Annotated[int, Meta(ge=1, le=MAX_FILE_SIZE)]


class Manifest(Struct, frozen=True):
    """The content of one version. `average` is the chunker's target size in bytes, kept so that
    later versions are cut alike and deduplicate."""

    size: Annotated[int, Meta(ge=0, le=MAX_FILE_SIZE)]
    average: Annotated[int, Meta(ge=64 * 1024, le=16 * 1024 * 1024)]
    pieces: list[Piece]


class Descriptor(Struct, frozen=True):
    """The stored form of a chunk. `block_hashes` is the concatenated 32-byte BLAKE3 of each block's
    plaintext. With codec `zstd`, a block whose stored length equals its plain length is raw."""

    id: ChunkId
    length: Annotated[int, Meta(ge=1, le=MAX_CHUNK_SIZE)]
    codec: Annotated[str, Meta(pattern="^(raw|zstd)$")]
    block_hashes: bytes
    stored_lengths: list[int]
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]

    @property
    def stored_length(self) -> int:
        return sum(self.stored_lengths)

    def stored_offset(self, block: int) -> int:
        """Where block number `block` starts in the stored object."""
        return sum(self.stored_lengths[:block])


EMPTY = Manifest(size=0, average=1 << 20, pieces=[])


class BadContent(ValueError):
    """A manifest, descriptor, block or stored object that contradicts itself or its id."""


def block_count(length: int) -> int:
    """The number of blocks that a chunk of `length` bytes has."""
    return -(-length // BLOCK_SIZE)


def block_length(length: int, block: int) -> int:
    """The plain length of block number `block` of a chunk of `length` bytes."""
    return min(BLOCK_SIZE, length - block * BLOCK_SIZE)


def block_hash(plain: bytes | bytearray | memoryview) -> bytes:
    return blake3(plain).digest()


def chunk_id(length: int, block_hashes: bytes) -> bytes:
    """BLAKE3(tag, block size, length, block hashes): the chunk's name."""
    sizes = BLOCK_SIZE.to_bytes(4, "big") + length.to_bytes(8, "big")
    return blake3(CHUNK_TAG + sizes + block_hashes).digest()


def fingerprint(manifest: Manifest) -> bytes:
    """The 32-byte name of a whole content, independent of its version and file."""
    hasher = blake3(MANIFEST_TAG + manifest.size.to_bytes(8, "big"))
    for piece in manifest.pieces:
        hasher.update(len(piece.id).to_bytes(1, "big") + piece.id + piece.length.to_bytes(8, "big"))
    return hasher.digest()


def check_manifest(manifest: Manifest) -> None:
    """Raise `BadContent` unless the manifest's pieces add up and are well formed."""
    total, after_hole = 0, False
    for piece in manifest.pieces:
        if len(piece.id) not in (0, 32):
            raise BadContent(f"a piece names a chunk id of {len(piece.id)} bytes, not 32")
        is_hole = piece.id == HOLE
        if is_hole and after_hole:
            raise BadContent("two holes in a row: they must be one")
        if not is_hole and piece.length > MAX_CHUNK_SIZE:
            raise BadContent(f"a chunk of {piece.length} bytes is over the {MAX_CHUNK_SIZE} limit")
        total, after_hole = total + piece.length, is_hole
    if total != manifest.size:
        raise BadContent(f"pieces add up to {total} bytes, the manifest says {manifest.size}")


def check_descriptor(descriptor: Descriptor) -> None:
    """Raise `BadContent` unless the descriptor is consistent and hashes to its own id."""
    blocks = block_count(descriptor.length)
    if len(descriptor.block_hashes) != 32 * blocks or len(descriptor.stored_lengths) != blocks:
        raise BadContent(f"a chunk of {descriptor.length} bytes has {blocks} blocks")
    for index, stored in enumerate(descriptor.stored_lengths):
        plain = block_length(descriptor.length, index)
        if not 1 <= stored <= plain or (descriptor.codec == "raw" and stored != plain):
            raise BadContent(f"block {index} of {plain} bytes cannot be stored in {stored}")
    if chunk_id(descriptor.length, descriptor.block_hashes) != descriptor.id:
        raise BadContent("the descriptor does not hash to its chunk id")
