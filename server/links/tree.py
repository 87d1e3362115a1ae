"""The tree below a link: listings for its pages, content for its downloads.

Knows: the queries, and that each asks the link anew. Must not know: HTTP, HTML, the archive's
layout.

Every function looks at one moment. A directory that was moved out of the link's tree, or into the
trash, while somebody pages through it or packs it, has no entries from then on; a link that is
revoked meanwhile raises `LinkGone`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, literal, select

from remote.protocol.errors import NotFound, Refused
from server.links import links
from server.links.content import Document, Library
from server.links.way import Places
from server.links.zip import Content, Member
from server.metadata.schema import drives, entries, files

PAGE = 500

_MEMBERS = select(
    entries.c.name,
    files.c.id,
    files.c.kind,
    files.c.mode,
    files.c.mtime_ns,
    files.c.size,
    files.c.links,
).join(files, entries.c.file == files.c.id)

_HEAD = select(drives.c.head_seq).where(drives.c.id == bindparam("drive"))


class LinkGone(LookupError):
    """The link was revoked, has expired, or its file is in the trash by now."""


def listing(
    conn: Connection, directory: str, after: str | None, limit: int = PAGE
) -> Sequence[Any]:
    """Up to `limit` entries of a directory by name, after the one called `after`."""
    query = _MEMBERS.where(entries.c.parent == directory)
    if after is not None:
        query = query.where(entries.c.name > after)
    return conn.execute(query.order_by(entries.c.name).limit(limit)).all()


class Counts:
    """Numbers of entries below directories, remembered as long as nothing changes in their drive,
    of the `most` that were asked for last.

    Concurrency: any thread. One counts at a time: who asks for the same meanwhile has it then.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards the one below
        self._known: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def below(self, conn: Connection, directory: str, drive: str, limit: int) -> int:
        """As `count_below` in the snapshot of `conn`."""
        seq = conn.execute(_HEAD, {"drive": drive}).scalar_one()
        with self._lock:
            known = self._known.pop(directory, None)
            if known is None or known[:2] != (seq, limit):
                known = (seq, limit, count_below(conn, directory, limit))
            self._known[directory] = known
            while len(self._known) > self._most:
                self._known.popitem(last=False)
            return known[2]


def count_below(conn: Connection, directory: str, limit: int) -> int:
    """The number of entries below a directory; counting stops when it is over `limit`."""
    below = select(literal(directory).label("id")).cte("below", recursive=True)
    below = below.union_all(select(entries.c.file).where(entries.c.parent == below.c.id))
    some = select(below.c.id).limit(limit + 2).subquery()  # itself, and one too many
    return conn.execute(select(func.count()).select_from(some)).scalar_one() - 1


def served(
    conn: Connection, library: Library, link: str, file: str, version: str, now_ns: int
) -> tuple[links.Inside, Document]:
    """A version of a regular file, for a download that was begun through the link.

    Raises `LinkGone`, or `Refused` with NotFound.
    """
    found = _reached(conn, link, file, now_ns, library.places)
    if found is None or found.row.kind != "file":
        raise Refused(NotFound(message="the link does not show this file any more"))
    return found, library.open(conn, file, version, found.row.drive)


def served_directory(
    conn: Connection, library: Library, link: str, directory: str, now_ns: int
) -> Member:
    """A directory, for an archive that was begun through the link. Raises like `served`."""
    found = _reached(conn, link, directory, now_ns, library.places)
    if found is None or found.row.kind != "directory":
        raise Refused(NotFound(message="the link does not show this directory any more"))
    return Member(directory, found.name, "directory", found.row.mode, found.row.mtime_ns)


@dataclass(frozen=True)
class LinkTree:
    """`zip.ArchiveSource` for what a link reaches. `now_ns` is a clock."""

    library: Library
    link: str
    now_ns: Callable[[], int]

    def members(self, directory: str, after: str | None) -> list[Member]:
        with self.library.read() as conn:
            link = _link(conn, self.link, self.now_ns(), self.library.places)
            if links.inside(conn, link, directory, self.library.places) is None:
                return []
            rows = listing(conn, directory, after)
        self.library.places.note_listed(rows, link.file, directory)
        return [Member(row.id, row.name, row.kind, row.mode, row.mtime_ns) for row in rows]

    def content(self, file: str) -> Content | None:
        with self.library.read() as conn:
            found = _reached(conn, self.link, file, self.now_ns(), self.library.places)
            if found is None or found.row.version is None:
                return None
            row = found.row
            document = self.library.open(conn, file, row.version, row.drive)
        return Content(document, row.mode, row.mtime_ns)


def _reached(
    conn: Connection, link: str, file: str, now_ns: int, places: Places
) -> links.Inside | None:
    return links.inside(conn, _link(conn, link, now_ns, places), file, places)


def _link(conn: Connection, link: str, now_ns: int, places: Places) -> Row[Any]:
    row = links.still_serves(conn, link, now_ns, places)
    if row is None:
        raise LinkGone(link)
    return row
