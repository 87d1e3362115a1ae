"""The way from a link's own file down to another, by the names that there are at this moment.

Knows: entries, of which a directory has one and a file any number. Must not know: links, who asks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, func, select

from server.metadata.records import IN_LIMIT
from server.metadata.schema import drives, entries

# Directories of a file's names looked at: almost always the first is good. Then `IN_LIMIT`.
_PLACES_AT_A_TIME = (1, 49)

_NAME_IN = (
    select(entries.c.name)
    .where(entries.c.file == bindparam("file"), entries.c.parent == bindparam("parent"))
    .order_by(entries.c.name)
    .limit(1)
)
_place = (
    select(func.min(entries.c.parent).label("parent"))
    .where(entries.c.file == bindparam("file"), entries.c.parent > bindparam("after"))
    .cte("place", recursive=True)
)
_next = (
    select(func.min(entries.c.parent))
    .where(entries.c.file == bindparam("file"), entries.c.parent > _place.c.parent)
    .correlate(_place)
    .scalar_subquery()
)
_place = _place.union_all(select(_next).where(_place.c.parent.is_not(None)))
# The directories that have names of a file, each once: one step through the index for each, however
# many names there are in one.
_PLACES = select(_place.c.parent).where(_place.c.parent.is_not(None)).limit(bindparam("count"))
_entry = (entries.c.file, entries.c.parent, entries.c.name)
_above = (
    select(*_entry)
    .where(entries.c.file.in_(bindparam("ids", expanding=True)))
    .cte("above", recursive=True)
)
_ABOVE = select(_above.union(select(*_entry).where(entries.c.file == _above.c.parent)))
_HEAD = select(drives.c.head_seq).where(drives.c.id == bindparam("drive"))


class Step(NamedTuple):
    """One file on the way from a link's own file down to another."""

    file: str
    name: str


class Places:
    """In which directory a file was found below another, and since which change of the drive it was
    found in none: of the `most` that were asked for last.

    A file may have tens of thousands of names (backups make such), and whoever visits a link must
    not have them gone through each time. What is remembered is looked at again before it is
    believed, so it may be wrong. Concurrency: any thread.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards the one below
        self._known: OrderedDict[tuple[str, str], str | int] = OrderedDict()

    def recall(self, file: str, top: str) -> str | int | None:
        """The directory, or the `head_seq` at which there was none."""
        with self._lock:
            found = self._known.get((file, top))
            if found is not None:
                self._known.move_to_end((file, top))
            return found

    def note(self, file: str, top: str, found: str | int) -> None:
        with self._lock:
            self._known[file, top] = found
            self._known.move_to_end((file, top))
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def note_listed(self, files: Iterable[Row[Any]], top: str, directory: str) -> None:
        """These were seen in a directory below `top`, and may be asked for next."""
        for file in files:
            if file.links > 1:
                self.note(file.id, top, directory)


def find(conn: Connection, file: Row[Any], top: str, places: Places) -> list[Step] | None:
    """The way from below `top` to `file`; None: there is none."""
    known = places.recall(file.id, top)
    if isinstance(known, str) and (way := _by_way_of(conn, file.id, [known], top)) is not None:
        return way[1]
    seq: int = conn.execute(_HEAD, {"drive": file.drive}).scalar_one()
    if known == seq:
        return None
    for some in _places(conn, file.id):
        found = _by_way_of(conn, file.id, some, top)
        if found is not None:
            places.note(file.id, top, found[0])
            return found[1]
    places.note(file.id, top, seq)
    return None


def _by_way_of(
    conn: Connection, file: str, directories: Sequence[str], top: str
) -> tuple[str, list[Step]] | None:
    """The first of `directories` that is below `top` and has a name of `file`, and the way through
    it."""
    above = {row.file: row for row in conn.execute(_ABOVE, {"ids": directories})}
    for directory in directories:
        way = _climb(above, directory, top)
        if way is not None:
            name = conn.execute(_NAME_IN, {"file": file, "parent": directory}).scalar()
            if name is not None:
                return directory, [*way, Step(file, name)]
    return None


def _places(conn: Connection, file: str) -> Iterator[Sequence[str]]:
    """The directories that have names of `file`, some at a time."""
    after = ""
    for count in chain(_PLACES_AT_A_TIME, repeat(IN_LIMIT)):
        where = {"file": file, "after": after, "count": count}
        found = conn.execute(_PLACES, where).scalars().all()
        if found:
            yield found
        if len(found) < count:
            return
        after = found[-1]


def _climb(above: Mapping[str, Any], directory: str, top: str) -> list[Step] | None:
    """The way from below `top` down to `directory`; `above` has the one name of each directory."""
    way: list[Step] = []
    while directory != top:
        entry = above.get(directory)
        if entry is None:
            return None
        way.append(Step(directory, entry.name))
        directory = entry.parent
    return way[::-1]
