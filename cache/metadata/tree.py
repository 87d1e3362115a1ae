"""The tree as this device sees it: nodes, entries, extended attributes.

Knows: how nodes and entries are stored and found, and the counts that follow from them. Must not
know: what a system call means (`edits`), what the server says (`merge`), bytes (`contents`).

Concurrency: see `database`; every method is synchronous, and the ones that write must be
called inside a transaction. Nobody else writes rows of `node` while there is a tree, because nodes
are kept in memory (`hot_nodes`), and none makes two trees over one database.

Invariants:
- A directory is either listed (every entry the server has is here) or not. In one that is not,
  there are entries only where a listing has no end yet, or is not believed any more.
- A file of the drive has at most one live node. A node that is not live has no entries.
- `subdirs` of a directory equals the number of its entries whose node is a directory.
- A name that is always there keeps its cookie, whatever it means; so does a file that is renamed
  within its directory. So neither is missed by who reads up to what was once the last cookie.

Why one class: entries, nodes and attributes are three tables of which none may be changed without
the others (`subdirs`, `links`, cookies).
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import astuple

from cache.metadata.clock import Moment
from cache.metadata.database import Database
from cache.metadata.hot_nodes import HotNodes
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import Child, FileRecord, Kind

ROOT = 1
# Inodes in one query.
ASKED_AT_ONCE = 500

# Instead of a drive's id, in `Node.drive`:
LOCAL = ""  # directories that are on this device only: Shared, and those of the owners in it
# Old versions of files, and the directories that show them.
HISTORY = "@"
# What is not shared any more; only open handles still refer to it.
REVOKED = "-"


class Node(Struct):
    """A row of `node`; see the columns there."""

    ino: int
    file: FileId
    drive: str
    live: bool
    kind: Kind
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    links: int
    target: str | None
    version: VersionId | None
    base_size: int
    base_file: FileId | None
    subdirs: int
    rev: int
    listed: int | None
    made_under: bytes | None = None

    @property
    def is_directory(self) -> bool:
        return self.kind == "directory"

    @property
    def is_regular(self) -> bool:
        return self.kind == "file"


COLUMNS = Node.__struct_fields__
_SELECT = ", ".join(f"node.{name}" for name in COLUMNS)
_INSERT = f"INSERT INTO node ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_BELOW = (
    "WITH RECURSIVE below (ino) AS (SELECT ? UNION"
    " SELECT entry.ino FROM entry JOIN below ON parent = below.ino)"
)


Dropped = Callable[[Node], None]


class Entry(Struct):
    """A name in a directory, with its node."""

    cookie: int
    name: str
    node: Node


def _node(row: sqlite3.Row) -> Node:
    return Node(*tuple(row)[-len(COLUMNS) :])


def _nothing(parent: int) -> None:
    pass


class Tree:
    """`on_left` is told, inside the transaction, of a directory from which a name has gone."""

    def __init__(self, db: Database, on_left: Callable[[int], None] = _nothing) -> None:
        self.db, self._on_left = db, on_left
        self._own_drive = ""
        self._hot = HotNodes[Node]()
        db.on_rollback.append(self._hot.clear)

    @property
    def own_drive(self) -> str:
        """The drive of the account that is mounted; "" before the first contact."""
        if not self._own_drive:
            self._own_drive = str(self.db.meta("drive") or "")
        return self._own_drive

    # --- finding ----------------------------------------------------------------------------------

    def find(self, ino: int) -> Node | None:
        node = self._hot.get(ino)
        if node is not None:
            return node
        return self._read(self.db.one(f"SELECT {_SELECT} FROM node WHERE ino = ?", ino))

    def _read(self, row: sqlite3.Row | None) -> Node | None:
        return None if row is None else self._hot.put(_node(row))

    def node(self, ino: int) -> Node:
        """Raises OSError (ESTALE) when there is no such inode."""
        node = self.find(ino)
        if node is None:
            raise OSError(errno.ESTALE, f"no inode {ino}")
        return node

    def live(self, file: FileId) -> Node | None:
        """The node that `file` is now."""
        return self._read(self.db.one(f"SELECT {_SELECT} FROM node WHERE file = ? AND live", file))

    def is_gone(self, ino: int) -> bool:
        """No name will mean the inode any more, here or elsewhere."""
        node = self.find(ino)
        return node is None or not node.live

    def is_listed(self, ino: int) -> bool:
        """True when every name that the directory has is known here. What is gone has none."""
        row = self.db.one("SELECT listed IS NOT NULL OR NOT live FROM node WHERE ino = ?", ino)
        return row is None or bool(row[0])

    def dead(self, inodes: Sequence[int]) -> list[int]:
        """Those of the inodes that are not live any more, and are still here."""
        hot = {ino: node for ino in inodes if (node := self._hot.get(ino)) is not None}
        found = [ino for ino, node in hot.items() if not node.live]
        others = [ino for ino in inodes if ino not in hot]
        for first in range(0, len(others), ASKED_AT_ONCE):
            some = others[first : first + ASKED_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.db.all(f"SELECT ino FROM node WHERE NOT live AND ino IN ({marks})", *some)
            found += [row[0] for row in rows]
        return found

    def child(self, parent: int, name: str) -> Node | None:
        row = self.db.one(
            f"SELECT {_SELECT} FROM entry JOIN node USING (ino) WHERE parent = ? AND name = ?",
            parent,
            name,
        )
        return self._read(row)

    def entries(self, parent: int, after: int, limit: int) -> list[Entry]:
        """Up to `limit` entries in readdir order, beginning behind cookie `after`."""
        return self.entries_behind(parent, "cookie", after, limit)

    def listing(self, parent: int, after: int, last: int) -> Generator[Entry, None, None]:
        """The entries with cookies behind `after` up to `last`, in readdir order. Each is read when
        it is asked for; the tree must not change before the iterator is closed."""
        rows = self.db.each(
            f"SELECT cookie, name, {_SELECT} FROM entry JOIN node USING (ino)"
            " WHERE parent = ? AND cookie > ? AND cookie <= ? ORDER BY cookie",
            parent,
            after,
            last,
        )
        with contextlib.closing(rows):
            for row in rows:
                yield Entry(row[0], row[1], Node(*row[2:]))

    def entries_named(
        self, parent: int, names: Sequence[str]
    ) -> dict[str, tuple[int, FileId, int]]:
        """Of those names that mean something in the directory: the name's `rev`, the file, the
        file's `rev`."""
        found: dict[str, tuple[int, FileId, int]] = {}
        for first in range(0, len(names), ASKED_AT_ONCE):
            some = names[first : first + ASKED_AT_ONCE]
            rows = self.db.all(
                "SELECT name, entry.rev, file, node.rev FROM entry JOIN node USING (ino)"
                f" WHERE parent = ? AND name IN ({','.join('?' * len(some))})",
                parent,
                *some,
            )
            found |= {row[0]: (row[1], row[2], row[3]) for row in rows}
        return found

    def which_live(self, files: Sequence[FileId]) -> set[FileId]:
        """Those of the files that have a live node."""
        found = set[FileId]()
        for first in range(0, len(files), ASKED_AT_ONCE):
            some = files[first : first + ASKED_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.db.all(f"SELECT file FROM node WHERE live AND file IN ({marks})", *some)
            found.update(row[0] for row in rows)
        return found

    def unlisted_below(self, parent: int) -> list[int]:
        """Directories in the directory that are not listed, in readdir order."""
        rows = self.db.all(
            "SELECT node.ino FROM entry JOIN node USING (ino) WHERE parent = ?"
            " AND kind = 'directory' AND listed IS NULL AND live ORDER BY cookie",
            parent,
        )
        return [row[0] for row in rows]

    def place(self, ino: int) -> tuple[int, int, str] | None:
        """Directory, cookie and name of one of the inode's names."""
        row = self.db.one("SELECT parent, cookie, name FROM entry WHERE ino = ? LIMIT 1", ino)
        return None if row is None else (row[0], row[1], row[2])

    def count_between(
        self, parent: int, by: Literal["cookie", "name"], after: object, last: object, most: int
    ) -> int:
        """The number of entries of the directory behind `after` up to `last`, it included, in
        readdir order or by name; `most` at most."""
        row = self.db.one(
            "SELECT COUNT(*) FROM (SELECT 1 FROM entry"
            f" WHERE parent = ? AND {by} > ? AND {by} <= ? LIMIT ?)",
            parent,
            after,
            last,
            most,
        )
        return 0 if row is None else int(row[0])

    def entries_behind(
        self, parent: int, by: Literal["cookie", "name"], after: object, limit: int
    ) -> list[Entry]:
        """As `entries`, in readdir order or by name."""
        rows = self.db.all(
            f"SELECT cookie, name, {_SELECT} FROM entry JOIN node USING (ino)"
            f" WHERE parent = ? AND {by} > ? ORDER BY {by} LIMIT ?",
            parent,
            after,
            limit,
        )
        return [Entry(row["cookie"], row["name"], _node(row)) for row in rows]

    def last_cookie(self, parent: int) -> int:
        """The last entry's, in readdir order; 0 when there is none."""
        row = self.db.one("SELECT MAX(cookie) FROM entry WHERE parent = ?", parent)
        return 0 if row is None else int(row[0] or 0)

    def is_empty(self, parent: int) -> bool:
        return self.db.one("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", parent) is None

    def names(self, ino: int) -> list[tuple[int, str]]:
        """Every (parent, name) known here that means `ino`."""
        rows = self.db.all("SELECT parent, name FROM entry WHERE ino = ?", ino)
        return [(row[0], row[1]) for row in rows]

    def parent(self, ino: int) -> int:
        """The directory that holds directory `ino`; the root is its own."""
        row = self.db.one("SELECT parent FROM entry WHERE ino = ?", ino)
        return ROOT if row is None else int(row[0])

    def path(self, ino: int) -> str:
        """One path of the inode from the drive's root, for people to read."""
        parts: list[str] = []
        while ino != ROOT and len(parts) < 4096:
            row = self.db.one("SELECT parent, name FROM entry WHERE ino = ? LIMIT 1", ino)
            if row is None:
                parts.append(f"(removed {ino})")
                break
            parts.append(row["name"])
            ino = row["parent"]
        return "/".join(reversed(parts)) or "/"

    def is_under(self, ino: int, ancestor: int) -> bool:
        """True if `ancestor` is the directory `ino` or above it."""
        while ino != ancestor:
            if ino == ROOT:
                return False
            row = self.db.one("SELECT parent FROM entry WHERE ino = ? LIMIT 1", ino)
            if row is None:
                return False
            ino = row["parent"]
        return True

    def files_below(self, ino: int) -> list[FileId]:
        """Of a directory, and of all that is known to be in it."""
        rows = self.db.all(f"{_BELOW} SELECT file FROM node JOIN below USING (ino)", ino)
        return [row["file"] for row in rows]

    def inodes_below(self, ino: int) -> list[int]:
        """The same, by inode."""
        return [row[0] for row in self.db.all(f"{_BELOW} SELECT ino FROM below", ino)]

    # --- changing: inside a transaction -----------------------------------------------------------

    def insert(self, node: Node) -> Node:
        """Add the node under a fresh inode number (its `ino` is ignored unless it is the root)."""
        values = [getattr(node, name) for name in COLUMNS]
        values[0] = ROOT if node.ino == ROOT else None
        cursor = self.db.run(_INSERT, *values)
        assert cursor.lastrowid is not None
        node.ino = cursor.lastrowid
        return self._hot.put(node)

    def add_fresh(self, parent: Node, children: Sequence[Child]) -> None:
        """Entries of a directory with a new node each: neither name nor file may be known here."""
        if not children:
            return
        last = self.db.one("SELECT seq FROM sqlite_sequence WHERE name = 'node'")
        first = 1 + (0 if last is None else int(last[0]))
        nodes = [node_from(child.file, parent.drive) for child in children]
        for ino, node in enumerate(nodes, first):
            node.ino = ino
        self.db.many(_INSERT, map(astuple, nodes))
        self.db.many(
            "INSERT INTO entry (parent, name, ino, rev) VALUES (?, ?, ?, ?)",
            [
                (parent.ino, child.entry.name, ino, child.entry.rev)
                for ino, child in enumerate(children, first)
            ],
        )
        xattrs = [
            (ino, name, value)
            for ino, child in enumerate(children, first)
            for name, value in child.file.xattrs.items()
        ]
        if xattrs:
            self.db.many("INSERT INTO xattr VALUES (?, ?, ?)", xattrs)
        directories = sum(node.is_directory for node in nodes)
        if directories:
            self._more_subdirs(parent.ino, directories)

    def update(self, ino: int, **fields: object) -> None:
        names = ", ".join(f"{name} = ?" for name in fields)
        self.db.run(f"UPDATE node SET {names} WHERE ino = ?", *fields.values(), ino)
        self._hot.changed(ino, fields)

    def _more_subdirs(self, ino: int, more: int) -> None:
        self.db.run("UPDATE node SET subdirs = subdirs + ? WHERE ino = ?", more, ino)
        self._hot.drop(ino)

    def delete_drive(self, drive: str) -> None:
        """Nodes and names, at once: nobody knows them."""
        held = "SELECT ino FROM node WHERE drive = ?"
        self.db.run(f"DELETE FROM entry WHERE parent IN ({held})", drive)
        self.db.run("DELETE FROM node WHERE drive = ?", drive)
        self._hot.clear()

    def reidentify(self, old: FileId, new: FileId) -> None:
        """A file of which the server has not heard has another id from now on."""
        self.db.run("UPDATE node SET file = ?, rev = 0 WHERE file = ?", new, old)
        self._hot.clear()

    def touch(self, ino: int, now: Moment) -> None:
        """A directory's entries, or a file's bytes, changed."""
        node = self.node(ino)
        mtime, ctime = now.after(node.mtime_ns), now.after(node.ctime_ns)
        self.update(ino, mtime_ns=mtime, ctime_ns=ctime)

    def add_entry(self, parent: int, name: str, node: Node, rev: int = 0) -> None:
        self.db.run(
            "INSERT INTO entry (parent, name, ino, rev) VALUES (?, ?, ?, ?)",
            parent,
            name,
            node.ino,
            rev,
        )
        if node.is_directory:
            self._more_subdirs(parent, 1)

    def drop_entry(self, parent: int, name: str, node: Node) -> None:
        self.db.run("DELETE FROM entry WHERE parent = ? AND name = ?", parent, name)
        if node.is_directory:
            self._more_subdirs(parent, -1)
        self._on_left(parent)

    def point_entry(self, parent: int, name: str, old: Node, new: Node, rev: int = 0) -> None:
        """The name, which meant `old`, means `new`, at the same place in readdir order."""
        self.db.run(
            "UPDATE entry SET ino = ?, rev = ? WHERE parent = ? AND name = ?",
            new.ino,
            rev,
            parent,
            name,
        )
        more = new.is_directory - old.is_directory
        if more:
            self._more_subdirs(parent, more)

    def rename_entry(self, parent: int, name: str, new_name: str) -> None:
        """Within its directory, to a name that means nothing."""
        self.db.run(
            "UPDATE entry SET name = ?, rev = 0 WHERE parent = ? AND name = ?",
            new_name,
            parent,
            name,
        )

    def entry_rev(self, parent: int, name: str) -> int:
        row = self.db.one("SELECT rev FROM entry WHERE parent = ? AND name = ?", parent, name)
        return 0 if row is None else int(row[0])

    def set_entry_rev(self, parent: int, name: str, rev: int) -> None:
        self.db.run("UPDATE entry SET rev = ? WHERE parent = ? AND name = ?", rev, parent, name)

    def ranges(self, table: Literal["entry", "node"], rows: int) -> Iterator[tuple[int, int]]:
        """(first, last) cookies or inodes between which are about so many rows, up to the last one
        that there is when it is come to."""
        key, at = {"entry": "cookie", "node": "ino"}[table], 0
        while True:
            row = self.db.one(
                f"SELECT MAX({key}) FROM"
                f" (SELECT {key} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?)",
                at,
                rows,
            )
            if row is None or row[0] is None:
                return
            yield at + 1, row[0]
            at = row[0]

    def names_between(self, drive: str | None, first: int, last: int) -> list[tuple[int, str]]:
        """(parent, name) of each entry with those cookies in the drive (None: in any)."""
        where, here = _entries_between(drive, first, last)
        rows = self.db.all(f"SELECT parent, name FROM entry WHERE {where}", *here)
        return [(row[0], row[1]) for row in rows]

    def doubt_entries(self, drive: str | None, first: int, last: int) -> None:
        """Any record is newer than entries with those cookies in the drive (None: in any)."""
        where, here = _entries_between(drive, first, last)
        self.db.run(f"UPDATE entry SET rev = 0 WHERE rev > 0 AND {where}", *here)

    def doubt_nodes(self, drive: str | None, first: int, last: int) -> None:
        """Any record is newer than nodes with those inodes in the drive (None: in any). A directory
        that was made here, and of which the server has told since, counts as listed by that: as
        `doubt_listings` wants it."""
        self.db.run(
            "UPDATE node SET rev = 0, listed = CASE listed WHEN 0 THEN 1 ELSE listed END"
            " WHERE rev > 0 AND ino BETWEEN ? AND ? AND drive = IFNULL(?, drive)",
            first,
            last,
            drive,
        )
        self._hot.clear()

    def doubt_listings(self, drive: str | None, first: int, last: int) -> None:
        """Directories with those inodes in the drive (None: in any) are not listed, but for those
        of which the server has told nothing. It has told of the root, also when nothing was ever
        in that."""
        self.db.run(
            "UPDATE node SET listed = NULL WHERE (listed > 0 OR ino = ?)"
            " AND ino BETWEEN ? AND ? AND drive = IFNULL(?, drive)",
            ROOT,
            first,
            last,
            drive,
        )
        self._hot.clear()

    def repoint(self, old: int, new: int) -> None:
        """Every name of inode `old` means `new` from now on (both the same kind)."""
        self.db.run("UPDATE entry SET ino = ? WHERE ino = ?", new, old)

    def delete(self, ino: int) -> None:
        self.db.run("DELETE FROM xattr WHERE ino = ?", ino)
        self.db.run("DELETE FROM node WHERE ino = ?", ino)
        self._hot.drop(ino)

    # --- extended attributes ----------------------------------------------------------------------

    def xattrs(self, ino: int) -> dict[str, bytes]:
        rows = self.db.all("SELECT name, value FROM xattr WHERE ino = ? ORDER BY name", ino)
        return {row[0]: row[1] for row in rows}

    def xattr(self, ino: int, name: str) -> bytes | None:
        row = self.db.one("SELECT value FROM xattr WHERE ino = ? AND name = ?", ino, name)
        return None if row is None else bytes(row[0])

    def xattr_sizes(self, ino: int) -> dict[str, int]:
        """Every attribute's name, with the bytes of its value."""
        query = "SELECT name, length(value) FROM xattr WHERE ino = ? ORDER BY name"
        return {row[0]: row[1] for row in self.db.all(query, ino)}

    def set_xattr(self, ino: int, name: str, value: bytes | None) -> None:
        if value is None:
            self.db.run("DELETE FROM xattr WHERE ino = ? AND name = ?", ino, name)
        else:
            self.db.run("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", ino, name, value)

    def replace_xattrs(self, ino: int, xattrs: dict[str, bytes]) -> None:
        if self.xattrs(ino) != xattrs:
            self.db.run("DELETE FROM xattr WHERE ino = ?", ino)
            for name, value in xattrs.items():
                self.set_xattr(ino, name, value)


def _entries_between(drive: str | None, first: int, last: int) -> tuple[str, list[object]]:
    """A condition on rows of `entry`, with its values: by cookie, and in the drive (None: any)."""
    if drive is None:
        return "cookie BETWEEN ? AND ?", [first, last]
    of_drive = " AND EXISTS (SELECT 1 FROM node WHERE node.ino = parent AND drive = ?)"
    return f"cookie BETWEEN ? AND ?{of_drive}", [first, last, drive]


def node_from(record: FileRecord, drive: str) -> Node:
    """A fresh, live, unlisted node of `drive` in the state the record tells."""
    return Node(
        ino=0,
        file=record.id,
        drive=drive,
        live=True,
        kind=record.kind,
        mode=record.mode,
        uid=record.uid,
        gid=record.gid,
        rdev=record.rdev,
        size=record.size if record.kind == "file" else 0,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.ctime_ns,
        atime_ns=record.mtime_ns,
        links=record.links,
        target=record.target,
        version=record.version,
        base_size=record.size if record.version else 0,
        base_file=record.id if record.version else None,
        subdirs=0,
        rev=record.rev,
        listed=None,
        made_under=record.made_under,
    )
