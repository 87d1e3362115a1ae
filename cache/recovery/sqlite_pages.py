"""SQLite's file format, as far as rows can be read out of a damaged file. Pure: bytes in, rows out.

Knows: pages, b-trees, records, the write-ahead log (https://sqlite.org/fileformat2.html). Must not
know: what our tables are (`salvage`).

Why not SQL: SQLite refuses everything behind a damaged page, and all of a table whose root is
damaged. Here each page is read for itself, so only the rows of damaged pages are lost.

Checksums of the log are not looked at: the newest page is taken even when a byte of it is wrong,
because its other rows are right and an older page has none of what happened since.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

# SQLite's default; we never ask for another.
PAGE = 4096
LOG_HEADER, FRAME_HEADER = 32, 24
INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE = 2, 5, 10, 13
FAMILY = {INTERIOR_TABLE: 0, LEAF_TABLE: 0, INTERIOR_INDEX: 1, LEAF_INDEX: 1}
MAX_DEPTH = 20

Value = int | float | str | bytes | None
Values = tuple[Value, ...]
Buffer = bytes | memoryview


class Broken(ValueError):
    """The bytes are not what the format says."""


@dataclass(frozen=True)
class Cell:
    """One cell of a b-tree page: a row, a child, or both (an interior cell of an index)."""

    rowid: int | None = None
    values: Values | None = None  # None: no row, or one that cannot be read
    child: int = 0
    is_broken: bool = False


@dataclass(frozen=True)
class Page:
    number: int
    kind: int
    cells: list[Cell]

    @property
    def is_interior(self) -> bool:
        return self.kind in (INTERIOR_TABLE, INTERIOR_INDEX)

    @property
    def family(self) -> int:
        """0: a table with rowids; 1: an index, or a table without."""
        return FAMILY[self.kind]


class Image:
    """A database file with its log laid over it."""

    def __init__(self, file: Buffer, log: Buffer = b"") -> None:
        self._file, self._log = memoryview(file), memoryview(log)
        self._newest = dict(_committed(self._log))  # page number: where it is in the log
        known = max(self._newest, default=0)
        self.page_count = max(len(self._file) // PAGE, known)

    def bytes(self, number: int) -> memoryview:
        """One page. Raises Broken when there is none of that number."""
        at = self._newest.get(number)
        if at is not None:
            return self._log[at : at + PAGE]
        start = (number - 1) * PAGE
        if number < 1 or start + PAGE > len(self._file):
            raise Broken(f"no page {number}")
        return self._file[start : start + PAGE]

    def page(self, number: int) -> Page:
        """The page as one of a b-tree. Raises Broken when it is none; single cells that cannot be
        read are marked."""
        data = self.bytes(number)
        head = 100 if number == 1 else 0
        kind = data[head]
        if kind not in FAMILY:
            raise Broken(f"page {number} is not of a b-tree")
        count = int.from_bytes(data[head + 3 : head + 5], "big")
        interior = kind in (INTERIOR_TABLE, INTERIOR_INDEX)
        first = head + (12 if interior else 8)
        if first + 2 * count > PAGE:
            raise Broken(f"page {number} has {count} cells")
        pointers = struct.unpack_from(f">{count}H", data, first)
        cells = [self._cell(data, kind, at, first + 2 * count) for at in pointers]
        if interior:
            cells.append(Cell(child=int.from_bytes(data[head + 8 : head + 12], "big")))
        return Page(number, kind, cells)

    def _cell(self, data: memoryview, kind: int, at: int, least: int) -> Cell:
        child, rowid = 0, None
        try:
            if not least <= at < PAGE:
                raise Broken("a cell outside its page")
            if kind in (INTERIOR_TABLE, INTERIOR_INDEX):
                child = int.from_bytes(data[at : at + 4], "big")
                at += 4
            if kind == INTERIOR_TABLE:
                return Cell(child=child)
            size, at = varint(data, at)
            if kind == LEAF_TABLE:
                rowid, at = varint(data, at)
            values = record(self._payload(data, at, size, kind == LEAF_TABLE))
            return Cell(rowid, values, child)
        except (ValueError, IndexError, struct.error, RecursionError):
            return Cell(rowid, None, child, is_broken=True)

    def _payload(self, data: memoryview, at: int, size: int, is_table: bool) -> Buffer:
        most = PAGE - 35 if is_table else (PAGE - 12) * 64 // 255 - 23
        if size <= most:
            if at + size > PAGE:
                raise Broken("a row that leaves its page")
            return data[at : at + size]
        if size > self.page_count * PAGE:
            raise Broken("a row larger than the file")
        least = (PAGE - 12) * 32 // 255 - 23
        local = least + (size - least) % (PAGE - 4)
        local = local if local <= most else least
        parts = [bytes(data[at : at + local])]
        following = int.from_bytes(data[at + local : at + local + 4], "big")
        left = size - local
        while left > 0:
            data = self.bytes(following)
            parts.append(bytes(data[4 : 4 + min(left, PAGE - 4)]))
            left -= PAGE - 4
            following = int.from_bytes(data[:4], "big")
        return b"".join(parts)

    def walk(self, root: int) -> Iterator[Page | None]:
        """The pages of a b-tree in the order of their keys, interior ones of an index cut into
        single cells; None in place of each part that is damaged."""
        seen: set[int] = set()
        yield from self._walk(root, None, seen, 0)

    def _walk(
        self, number: int, family: int | None, seen: set[int], depth: int
    ) -> Iterator[Page | None]:
        try:
            if number in seen or depth > MAX_DEPTH:
                raise Broken("a tree that is none")
            page = self.page(number)
            if family is not None and page.family != family:
                raise Broken("a page of another tree")
        except Broken:
            yield None
            return
        seen.add(number)
        if not page.is_interior:
            yield page
            return
        yield Page(number, page.kind, [])  # so that who walks knows that it is of this tree
        for cell in page.cells:
            if cell.child:
                yield from self._walk(cell.child, page.family, seen, depth + 1)
            if cell.is_broken:
                yield None
            elif cell.values is not None:
                yield Page(number, page.kind, [cell])

    def free_pages(self) -> set[int] | None:
        """Pages that belong to nothing; None when the list of them is damaged."""
        free: set[int] = set()
        try:
            head = self.bytes(1)
            trunk, count = struct.unpack_from(">II", head, 32)
            while trunk:
                if trunk in free:
                    raise Broken("a list that does not end")
                data = self.bytes(trunk)
                following, leaves = struct.unpack_from(">II", data, 0)
                if leaves > PAGE // 4 - 2:
                    raise Broken("a list longer than its page")
                free |= {trunk, *struct.unpack_from(f">{leaves}I", data, 8)}
                trunk = following
        except Broken:
            return None
        return free if len(free) == count else None


def varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    number = 0
    for place in range(at, at + 8):
        byte = data[place]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, place + 1
    number = number << 8 | data[at + 8]
    return number - (1 << 64) if number >> 63 else number, at + 9


def record(payload: Buffer) -> Values:
    """The values of a row. Raises Broken, IndexError, UnicodeDecodeError."""
    length, at = varint(payload, 0)
    if length > len(payload):
        raise Broken("a row without values")
    body, values = length, []
    while at < length:
        kind, at = varint(payload, at)
        value, body = _value(payload, kind, body)
        values.append(value)
    if at != length or body != len(payload):
        raise Broken("a row of another length")
    return tuple(values)


_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(payload: Buffer, kind: int, at: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], at + 8
    size = _INTEGERS.get(kind) or (kind - 12) // 2
    if kind in (10, 11) or kind < 0 or at + size > len(payload):
        raise Broken("a value of no kind")
    data = bytes(payload[at : at + size])
    if kind < 7:
        return int.from_bytes(data, "big", signed=True), at + size
    return (data.decode() if kind % 2 else data), at + size


# The log.


def _frames(log: memoryview) -> Iterator[tuple[int, int, int, bytes]]:
    """(where the page is, its number, the file's size if a transaction ends here, salts)."""
    for at in range(LOG_HEADER, len(log) - FRAME_HEADER - PAGE + 1, FRAME_HEADER + PAGE):
        number, size = struct.unpack_from(">II", log, at)
        yield at + FRAME_HEADER, number, size, bytes(log[at + 8 : at + 16])


def _committed(log: memoryview) -> Iterator[tuple[int, int]]:
    """(page number, where it is) of all that belongs to a finished transaction, oldest first."""
    frames = list(_frames(log))
    salts = Counter(frame[3] for frame in frames)
    current = bytes(log[16:24])
    if frames and not salts[current]:  # the log's own head is damaged
        current = frames[0][3]
    ours = [frame for frame in frames if frame[3] == current]
    ends = [place for place, frame in enumerate(ours) if frame[2]]
    for at, number, _, _ in ours[: ends[-1] + 1 if ends else 0]:
        if number:
            yield number, at


def lost_of_log(log: Buffer, valid: int) -> bool:
    """True if SQLite, which takes only the first `valid` frames of the log, leaves out a
    transaction that was finished. (The last frame may have been on its way when the process
    died, and one of the log's past is nothing new.)"""
    view = memoryview(log)
    frames = list(_frames(view))
    if not frames:
        return False
    if not _is_whole_head(view):
        return True  # and so hides everything
    current = bytes(view[16:24])
    rest = [frame for frame in frames[valid:] if frame[3] == current]
    return any(frame[2] for frame in rest[:-1])


def _is_whole_head(log: memoryview) -> bool:
    order = {0x377F0682: "<", 0x377F0683: ">"}.get(int.from_bytes(log[:4], "big"))
    if order is None:
        return False
    one = two = 0
    words = struct.unpack_from(f"{order}6I", log, 0)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return struct.unpack_from(">II", log, 24) == (one, two)
