"""Where the bytes of a version are: from file offsets to slices of blocks.

Knows: manifests. Must not know: what is cached, how anything is fetched. Pure, immutable.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from remote.protocol.content import BLOCK_SIZE, HOLE, Manifest, block_count


class Part(NamedTuple):
    """`length` bytes of a file from `offset` on: from byte `start` of block number `block` of
    `chunk` (32-byte id, `chunk_length` bytes long), or zeros where `chunk` is empty."""

    offset: int
    length: int
    chunk: bytes
    chunk_length: int
    block: int
    start: int


class Layout:
    """A manifest that can be looked up by offset in O(log pieces)."""

    def __init__(self, manifest: Manifest) -> None:
        self.size = manifest.size
        self._pieces = manifest.pieces
        ends = accumulate(piece.length for piece in manifest.pieces)
        self._starts = array("Q", [0, *ends])  # one more than pieces: the end of the file

    def __len__(self) -> int:
        return len(self._pieces)

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The parts of [offset, offset+length), in order, clipped at the end of the file."""
        end = min(offset + length, self.size)
        index = self._index(offset)
        while offset < end:
            piece, piece_start = self._pieces[index], self._starts[index]
            stop = min(end, self._starts[index + 1])
            if piece.id == HOLE:
                yield Part(offset, stop - offset, HOLE, 0, 0, 0)
                offset = stop
            while offset < stop:
                block, start = divmod(offset - piece_start, BLOCK_SIZE)
                count = min(BLOCK_SIZE - start, stop - offset)
                yield Part(offset, count, piece.id, piece.length, block, start)
                offset += count
            index += 1

    def chunk_end(self, offset: int) -> int:
        """Where the piece under `offset` ends; the file's size at or past its end."""
        return self._starts[self._index(offset) + 1] if offset < self.size else self.size

    def chunks_after(self, offset: int, count: int) -> list[bytes]:
        """The ids of up to `count` chunks that follow the piece under `offset`."""
        after = self._index(offset) + 1
        return [p.id for p in self._pieces[after : after + count] if p.id != HOLE]

    def chunks(self) -> dict[bytes, int]:
        """Every chunk once, with its length."""
        return {piece.id: piece.length for piece in self._pieces if piece.id != HOLE}

    def _index(self, offset: int) -> int:
        return bisect_right(self._starts, offset, hi=len(self._pieces)) - 1


def all_blocks(chunk_length: int) -> range:
    return range(block_count(chunk_length))
