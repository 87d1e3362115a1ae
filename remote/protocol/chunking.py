"""Where a file is cut: FastCDC over whole files, and over only what changed.

Knows: boundaries, and how far a change can move them. Must not know: where bytes come from, what
they hash to, when anything is uploaded. `Cutter` is a machine without I/O: it says which bytes it
wants to see, its caller reads and feeds them.

The algorithm is FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
Deduplication Based Storage Systems", IEEE TPDS 31(9)) as `pyfastcdc` has it, with the normalised
chunking level 2 that its section 4.4 recommends. Measured over random bytes: chunks are 1.15 to
1.25 times `average` long with a standard deviation of 0.35 to 0.45; 3 GB/s.

What the rest of this module rests on, and tests hold it to:
- A boundary is decided from the start of its own chunk forward, by the bytes up to and *including*
  the first byte of the next chunk. A change before a chunk can move its start, and only so affect
  it; once a new boundary falls on an old one, every following boundary falls too.
- A decision needs at least 2 bytes after the boundary (the gear hash rolls over pairs) or the end
  of the segment; `max_size` bytes always suffice.
- A segment is a run of data between holes. The end of a segment forces a boundary, and such a
  chunk is cut again when its segment goes on further than it used to.

Hence: `Cutter` given an old version and what changed cuts exactly as it would with nothing given.
Changing anything that moves a boundary is a format change: new golden vectors.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from pyfastcdc import FastCDC

from remote.protocol.content import HOLE, BadContent, Manifest, Piece

Buffer: TypeAlias = bytes | bytearray | memoryview
Range: TypeAlias = tuple[int, int]

# pyfastcdc takes an average of at most 4 MiB and a maximum of at most 16 MiB.
MIN_AVERAGE = 4 * 1024
MAX_AVERAGE = 4 * 1024 * 1024
DEFAULT_AVERAGE = 1024 * 1024
SLOW_LINK_AVERAGE = 256 * 1024
GIB = 1 << 30

# A chunk of average size should cross the uplink in about this time, so that a broken connection
# costs seconds and progress is seen to move.
CHUNK_SECONDS = 4.0

# So many pieces of any length are always fine: what they cost is no more than a request's.
FEW_PIECES = 1024

# One boundary rolls over pairs of bytes: it is certain when so many bytes follow it.
_LOOKAHEAD = 2


def average_for(size: int, uplink_bytes_per_second: float | None) -> int:
    """The average chunk size, in bytes, of a file that is first uploaded with `size` bytes.

    1 MiB below 1 GiB, 2 MiB below 8 GiB, 4 MiB above: the manifest of a large file stays small
    while a small edit to it stays cheap. On a measured uplink that would need more than
    `CHUNK_SECONDS` for such a chunk it is halved, down to 256 KiB. Always a power of two.
    """
    average = DEFAULT_AVERAGE
    limit = GIB
    while size >= limit and average < MAX_AVERAGE:
        average, limit = average * 2, limit * 8
    if uplink_bytes_per_second is not None:
        while average > SLOW_LINK_AVERAGE and average > uplink_bytes_per_second * CHUNK_SECONDS:
            average //= 2
    return average


def usable_average(average: int) -> int:
    """The power of two this module can cut at that is nearest below `average`.

    A manifest may come from another program, and its average must not stop an upload.
    """
    clamped = max(MIN_AVERAGE, min(average, MAX_AVERAGE))
    return 1 << (clamped.bit_length() - 1)


def min_size(average: int) -> int:
    """No chunk is shorter, except the last of a segment. Equally, no hole is: a shorter run of
    zeros costs less as data than as two pieces, and breaks the chunk it is in."""
    return usable_average(average) // 4


def max_size(average: int) -> int:
    """No chunk is longer; and so many bytes always suffice to find the next boundary."""
    return usable_average(average) * 4


def check_cut(manifest: Manifest, few: int = FEW_PIECES) -> None:
    """Raise `BadContent` if `manifest` has more pieces than its size and average explain.

    What `Cutter` makes always passes: of each segment only the last chunk is shorter than
    `min_size`, and no hole is. Beyond `few` pieces others are held to that too, because whoever
    reads a file pays for each of its pieces, however short.
    """
    shortest = min_size(manifest.average)
    holes = [piece.length for piece in manifest.pieces if piece.id == HOLE]
    chunks = len(manifest.pieces) - len(holes)
    zeros = sum(holes)
    most_chunks = few + (manifest.size - zeros) // shortest + len(holes) + 1
    most_holes = few + zeros // shortest
    if chunks > most_chunks or len(holes) > most_holes:
        raise BadContent(
            f"{chunks} chunks and {len(holes)} holes are more than {manifest.size} bytes cut at an"
            f" average of {manifest.average} have; cut the file anew, with chunks and holes of at"
            f" least {shortest} bytes"
        )


def is_well_cut(manifest: Manifest) -> bool:
    """True if `check_cut` lets `manifest` pass."""
    try:
        check_cut(manifest)
    except BadContent:
        return False
    return True


def cut(data: Buffer, average: int, *, final: bool) -> list[int]:
    """The lengths of the chunks at the start of `data`, a run of bytes that begins at a boundary.

    Without `final` more bytes may follow, and a tail whose boundary they could move is left over:
    `sum(lengths) <= len(data)`. Feed the tail again, with more behind it: the boundaries do not
    depend on how the bytes were dealt out. With `final` the data is a segment's end and everything
    is cut. Never more than `max_size(average)` bytes are left over.
    """
    return list(_cuts(_chunker(average), memoryview(data).cast("B"), final))


def _chunker(average: int) -> FastCDC:
    # Made anew for each caller: it costs a microsecond, and it is not for use by two threads.
    usable = usable_average(average)
    return FastCDC(usable, min_size=usable // 4, max_size=usable * 4, normalized_chunking=2, seed=0)


def _cuts(chunker: FastCDC, view: memoryview, final: bool) -> Iterator[int]:
    left = len(view)
    for chunk in chunker.cut_buf(view):
        sure = chunk.length + _LOOKAHEAD <= left or left >= chunker.max_size
        if not (final or sure):
            return
        left -= chunk.length
        yield chunk.length


# --- the machine --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keep:
    """The old chunk `piece` is still at `offset`: nothing to read, nothing to upload."""

    piece: Piece
    offset: int


@dataclass(frozen=True, slots=True)
class Hole:
    """Zeros that nobody stores."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """A chunk to encode. `data` is a view of its bytes in the buffer that was fed."""

    offset: int
    length: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class NeedData:
    """Feed the bytes from `offset` on: `length` of them, or more if they are at hand."""

    offset: int
    length: int


Step: TypeAlias = Keep | Hole | Fresh | NeedData


class Cutter:
    """Cuts one version of a file, reading only the neighbourhood of what changed.

        cutter = Cutter(average, size, old_pieces, dirty, holes)
        for step in cutter:
            if isinstance(step, NeedData):
                cutter.feed(read(step.offset, step.length))

    The `Keep`, `Hole` and `Fresh` steps, in order, cover the file exactly, without two neighbouring
    holes. `average` is that of the old manifest. `old` is the old version's piece list (None or
    empty for a new file). `dirty` are the byte ranges [start, end) that may differ from the old
    version, at the same offsets (overwritten, not shifted); bytes beyond the old end need not be
    named. `holes` are ranges [start, end) known to read as zeros. Both may overlap, be unsorted
    and reach past `size`. Old holes that are not dirty are known already and need not be named.

    A `NeedData` asks for at most twice `max_size(average)` bytes, and always lies within one
    segment. The buffer that was fed is referred to until the next `NeedData` comes, and must not
    be changed before. Not for use by two tasks at once.
    """

    def __init__(
        self,
        average: int,
        size: int,
        old: Sequence[Piece] | None,
        dirty: Sequence[Range],
        holes: Sequence[Range],
    ) -> None:
        self._size = size
        self._chunker = _chunker(average)
        self._changed = _Ranges(_clip(dirty, size))
        self._old = list(old or ())
        self._offsets = list(accumulate((piece.length for piece in self._old), initial=0))
        zeros = _Ranges(_clip([*holes, *self._old_zeros()], size))
        self._holes = [(a, b) for a, b in zeros.ranges if b - a >= min_size(average)]
        self._run = self._steps()
        self._wanted: NeedData | None = None

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._wanted is not None:
            raise RuntimeError(f"feed {self._wanted} before asking for the next step")
        return self._take(next(self._run))

    def feed(self, data: Buffer) -> None:
        """Give the bytes that the last step, a `NeedData`, asked for.

        Raises `ValueError` if they are fewer, `RuntimeError` if none were asked for.
        """
        if self._wanted is None:
            raise RuntimeError("no bytes were asked for")
        view = memoryview(data).cast("B")
        if len(view) < self._wanted.length:
            raise ValueError(f"{len(view)} bytes were fed to {self._wanted}")
        self._wanted = None
        self._run.send(view)

    def _take(self, step: Step | None) -> Step:
        assert step is not None  # _steps yields None only in answer to a send
        self._wanted = step if isinstance(step, NeedData) else None
        return step

    def _steps(self) -> Generator[Step | None, memoryview, None]:
        position = 0
        for start, end in self._holes:
            yield from self._segment(position, start)
            yield Hole(start, end - start)
            position = end
        yield from self._segment(position, self._size)

    def _segment(self, position: int, end: int) -> Generator[Step | None, memoryview, None]:
        """Cut the data [position, end), which a hole or the end of the file ends."""
        window = memoryview(b"")  # bytes from `position` on that were fed and not yet cut
        while position < end:
            kept = self._keepable(bisect_left(self._offsets, position), position, end)
            if kept is not None:
                yield Keep(kept, position)
                position += kept.length
                window = memoryview(b"")
                continue
            length = next(_cuts(self._chunker, window, len(window) == end - position), None)
            if length is None:
                wanted = self._ask(position, end, len(window))
                window = (yield NeedData(position, wanted))[: end - position]
                yield None
                continue
            yield Fresh(position, length, window[:length])
            position, window = position + length, window[length:]

    def _keepable(self, index: int, position: int, end: int) -> Piece | None:
        """Old piece number `index`, if it begins at `position` and a full cut of the segment that
        ends at `end` would make it again."""
        if index >= len(self._old) or self._offsets[index] != position:
            return None
        piece, after = self._old[index], self._offsets[index + 1]
        ends_here = after == end
        goes_on = after + _LOOKAHEAD <= end and not self._was_forced(index)
        if piece.id == HOLE or not (ends_here or goes_on):
            return None
        seen = after if ends_here else after + 1
        return None if self._changed.touches(position, seen) else piece

    def _was_forced(self, index: int) -> bool:
        """True if old piece `index` may have ended only because its segment did."""
        return index + 1 == len(self._old) or self._old[index + 1].id == HOLE

    def _ask(self, position: int, end: int, had: int) -> int:
        """The number of bytes to ask for from `position`, `had` of them having decided nothing: up
        to the next old boundary that the cut may meet; failing that, all that a decision can
        need."""
        limit = min(end - position, 2 * self._chunker.max_size)
        first = bisect_left(self._offsets, position + self._chunker.min_size)
        for index in range(first, bisect_right(self._offsets, position + limit - 1)):
            if self._keepable(index, self._offsets[index], end) is not None:
                limit = min(limit, self._offsets[index] - position + _LOOKAHEAD)
                break
        return limit if limit > had else min(end - position, self._chunker.max_size)

    def _old_zeros(self) -> Iterator[Range]:
        for piece, start in zip(self._old, self._offsets, strict=False):
            if piece.id == HOLE:
                yield from self._changed.gaps(start, start + piece.length)


# --- ranges -------------------------------------------------------------------------------------


class _Ranges:
    """A set of integers as sorted, disjoint, non-touching ranges [start, end)."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.ranges: list[Range] = []
        for start, end in sorted(ranges):
            if self.ranges and start <= self.ranges[-1][1]:
                last_start, last_end = self.ranges[-1]
                self.ranges[-1] = (last_start, max(last_end, end))
            else:
                self.ranges.append((start, end))

    def touches(self, start: int, end: int) -> bool:
        """True if any of [start, end) is in the set."""
        before = bisect_left(self.ranges, (end, end)) - 1
        return before >= 0 and self.ranges[before][1] > start

    def gaps(self, start: int, end: int) -> Iterator[Range]:
        """The parts of [start, end) that are not in the set, in order."""
        for index in range(max(0, bisect_left(self.ranges, (start, start)) - 1), len(self.ranges)):
            taken_start, taken_end = self.ranges[index]
            if taken_start >= end:
                break
            if taken_start > start:
                yield start, taken_start
            start = max(start, taken_end)
        if start < end:
            yield start, end


def _clip(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    for start, end in ranges:
        if start < min(end, size):
            yield start, min(end, size)
