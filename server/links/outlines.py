"""Where the pieces of a version are, in little memory.

Knows: manifests, and how much of them is remembered. Must not know: the database, chunks, who asks.

A manifest may have hundreds of thousands of pieces, and whoever visits a link asks for its file a
byte at a time if they like. So it is decoded once, one at a time, into 41 bytes for each piece
(as objects it would be four times as much), and the outlines used last are remembered.

A version never changes. Should its id once be another's, the size or its chunks tell.

Concurrency: any thread.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

from remote.protocol.content import HOLE, Manifest, Piece

# Bytes of outlines: those of some hundred thousand ordinary files, or of two with the most pieces
# that a request has room for.
REMEMBERED = 64 * 1024 * 1024
_ID_BYTES = 32
_PIECE_BYTES = _ID_BYTES + 8 + 1
# Bytes of an outline without pieces.
_ABOUT = 1000


class Part(NamedTuple):
    """Bytes [start, end) of a piece."""

    piece: Piece
    start: int
    end: int


class Outline:
    """The pieces of one version, found by offset."""

    def __init__(self, manifest: Manifest) -> None:
        pieces = manifest.pieces
        self.size = manifest.size
        self._ends = array("Q", accumulate(piece.length for piece in pieces))
        self._ids = b"".join(piece.id or bytes(_ID_BYTES) for piece in pieces)
        self._holes = bytes(piece.id == HOLE for piece in pieces)

    @property
    def weight(self) -> int:
        """Bytes it takes in memory, about."""
        return _ABOUT + _PIECE_BYTES * len(self._ends)

    def under(self, start: int, end: int) -> Iterator[Part]:
        """The parts of pieces that lie in bytes [start, end) of the file, in order."""
        for number in range(bisect_right(self._ends, start), len(self._ends)):
            offset = self._ends[number - 1] if number else 0
            if max(offset, start) >= end:
                return
            piece = self._piece(number, self._ends[number] - offset)
            yield Part(piece, max(start - offset, 0), min(end - offset, piece.length))

    def _piece(self, number: int, length: int) -> Piece:
        if self._holes[number]:
            return Piece(HOLE, length)
        return Piece(self._ids[number * _ID_BYTES : (number + 1) * _ID_BYTES], length)


class Outlines:
    """Those that were used last, `limit` bytes of them."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # guards the two below
        self._kept: OrderedDict[str, Outline] = OrderedDict()
        self._weight = 0
        self._making = threading.Lock()  # one manifest is decoded at a time

    def of(self, version: str, size: int, read: Callable[[], Manifest]) -> Outline:
        """The outline of a version of `size` bytes; `read` gives its manifest if need be."""
        found = self._known(version, size)
        if found is None:
            with self._making:
                found = self._known(version, size)
                if found is None:
                    found = Outline(read())
                    self._keep(version, found)
        return found

    def _known(self, version: str, size: int) -> Outline | None:
        with self._lock:
            found = self._kept.get(version)
            if found is None or found.size != size:
                return None
            self._kept.move_to_end(version)
            return found

    def _keep(self, version: str, outline: Outline) -> None:
        with self._lock:
            old = self._kept.pop(version, None)
            self._weight += outline.weight - (old.weight if old is not None else 0)
            self._kept[version] = outline
            while self._weight > self._limit:
                self._weight -= self._kept.popitem(last=False)[1].weight
