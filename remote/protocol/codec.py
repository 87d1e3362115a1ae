"""Encoding of chunks: hashed, compressed where that pays, and taken apart again.

Knows: zstd, the hashes, and the layout of a stored object (the concatenation of its stored blocks).
Must not know: where objects live, how they travel, who asks.

Invariants:
- `decode_block` gives bytes only after they matched the block's BLAKE3 in the descriptor.
- Nothing is allocated for a block before its compressed frame has declared exactly the block's
  plain length (zstandard's `max_output_size` does not bound a frame that declares its size).
- A raw block or object is never copied: the caller's buffer comes back.

Concurrency: every function may be called from any thread. Compressors and decompressors are not
thread-safe, so each thread keeps its own. Hashing and zstd release the GIL.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import zstandard

from remote.protocol.content import (
    BLOCK_SIZE,
    MAX_CHUNK_SIZE,
    BadContent,
    Descriptor,
    block_count,
    block_hash,
    block_length,
    chunk_id,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

ZSTD_LEVEL = 1
SAMPLE_SIZE = 32 * 1024


class Encoded(NamedTuple):
    """A chunk ready to be stored. `body` is the stored object; for a raw chunk it is a view of the
    buffer that was encoded, which must stay unchanged as long as it is used."""

    descriptor: Descriptor
    body: bytes | memoryview


class StoredBlock(NamedTuple):
    """Block number `block` is bytes [start, end) of the stored object."""

    block: int
    start: int
    end: int


def encode_chunk(plain: Buffer) -> Encoded:
    """The descriptor and the stored object of the chunk `plain` (1 byte to 64 MiB).

    A sample decides whether compressing is tried at all; then each block that saves less than a
    sixteenth is stored raw. Raises `BadContent` for a length that no chunk has.
    """
    view = memoryview(plain).cast("B")
    if not 1 <= len(view) <= MAX_CHUNK_SIZE:
        raise BadContent(f"a chunk has 1 to {MAX_CHUNK_SIZE} bytes, not {len(view)}")
    blocks = [view[start : start + BLOCK_SIZE] for start in range(0, len(view), BLOCK_SIZE)]
    hashes = b"".join([block_hash(block) for block in blocks])
    stored = [_squeeze(block) for block in blocks] if _worth_trying(blocks) else blocks
    is_raw = all(len(kept) == len(block) for kept, block in zip(stored, blocks, strict=True))
    body = view if is_raw else b"".join(stored)
    descriptor = Descriptor(
        id=chunk_id(len(view), hashes),
        length=len(view),
        codec="raw" if is_raw else "zstd",
        block_hashes=hashes,
        stored_lengths=[len(kept) for kept in stored],
        sha256=hashlib.sha256(body).digest(),
    )
    return Encoded(descriptor, body)


def decode_block(descriptor: Descriptor, block: int, stored: Buffer) -> Buffer:
    """The plain bytes of block number `block`, verified, from its stored bytes.

    For a raw block that is `stored` itself. Raises `BadContent` if the bytes are not that block.
    """
    if not 0 <= block < block_count(descriptor.length):
        raise BadContent(f"a chunk of {descriptor.length} bytes has no block {block}")
    expected = descriptor.stored_lengths[block]
    if len(stored) != expected:
        raise BadContent(f"block {block} is stored in {expected} bytes, {len(stored)} came")
    plain = block_length(descriptor.length, block)
    decoded = stored if expected == plain else _inflate(stored, plain)
    if block_hash(decoded) != descriptor.block_hashes[32 * block : 32 * block + 32]:
        raise BadContent(f"block {block} does not match its hash")
    return decoded


def iter_stored(descriptor: Descriptor, first: int, last: int) -> Iterator[StoredBlock]:
    """Where blocks `first` to `last` (inclusive) lie in the stored object, in order; neighbours
    touch, so one range from the first start to the last end fetches them all."""
    start = descriptor.stored_offset(first)
    for block in range(first, last + 1):
        end = start + descriptor.stored_lengths[block]
        yield StoredBlock(block, start, end)
        start = end


# --- zstd, one context per thread ---------------------------------------------------------------


class _Contexts(threading.local):
    """This thread's zstd contexts: making one costs more than compressing a block with it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def _worth_trying(blocks: list[memoryview]) -> bool:
    """True if the beginnings of the first and of the middle block compress well enough."""
    samples = [blocks[0][:SAMPLE_SIZE]]
    if len(blocks) > 2:
        samples.append(blocks[len(blocks) // 2][:SAMPLE_SIZE])
    return any(_pays(len(_contexts.compressor.compress(item)), len(item)) for item in samples)


def _squeeze(block: memoryview) -> bytes | memoryview:
    squeezed = _contexts.compressor.compress(block)
    return squeezed if _pays(len(squeezed), len(block)) else block


def _pays(stored: int, plain: int) -> bool:
    # Strictly shorter even for a block of a few bytes: equal lengths mean raw.
    return stored < plain - plain // 16


def _inflate(stored: Buffer, plain: int) -> bytes:
    """Decompress one frame that must declare, and then be, `plain` bytes."""
    try:
        declared = zstandard.frame_content_size(stored)
        if declared != plain:
            raise BadContent(f"a frame declares {declared} bytes for a block of {plain}")
        inflated = _contexts.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadContent(f"a block does not decompress: {error}") from None
    if len(inflated) != plain:
        raise BadContent(f"a block of {plain} bytes decompressed to {len(inflated)}")
    return inflated
