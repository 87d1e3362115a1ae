"""The rows that a batch of operations works on: read many at a time, written many at a time.

Knows: which rows an operation may ask for, how they are read and written in sets. Must not know:
what an operation does (`tree`), transactions, the feed.

A statement costs the server far more around the database than in it, so what the operations ahead
name is read before they are done (`load`), they change rows in memory, and what they have changed
is written by a few statements (`write_out`). Whoever needs a question that no row here answers asks
`conn`, which has everything written first.

Invariants:
- What is here is what the transaction sees. A row that was changed and is not written yet stays
  here until it is, so a row that is not here can be read by its key at any time.
- `undo` leaves rows and database as they were at `begin`. What was written in between is in a
  savepoint, which is made when it is first needed: most operations that are refused have changed
  nothing.

Memory: the rows of one `load`, and what its operations made.

Concurrency: of one transaction, and its thread.

Why one class: `undo` takes back a change of whatever row, so all changes go into one list; there is
a method or two for each kind of row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    TextClause,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    select,
    text,
    update,
)

from remote.protocol import messages
from remote.protocol.content import HOLE
from remote.protocol.errors import Refused
from server.drive.retired import retired_of
from server.drive.rules import check_length
from server.metadata import operations
from server.metadata.db import check_values
from server.metadata.records import IN_LIMIT, attribute_sizes, attributes, fitting_of, slices
from server.metadata.schema import (
    chunks,
    devices,
    drives,
    entries,
    files,
    grants,
    links,
    uploads,
    version_chunks,
    versions,
    xattrs,
)
from server.uploads import leases

AHEAD_FIRST, AHEAD = 50, 200
"""Operations whose rows are read at once, at first and then. A batch may end after any of them."""


class FileRow(NamedTuple):
    """A row of `files`, and its drive's `owner` and `root`."""

    id: str
    drive: str
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    size: int
    links: int
    version: str | None
    target: str | None
    rdev: int
    rev: int
    trashed_ns: int | None
    trashed_parent: str | None
    trashed_name: str | None
    made_under: bytes | None
    below_levels: int
    below_bytes: int
    owner: str
    root: str


class EntryRow(NamedTuple):
    """A name in a directory, as in `entries`."""

    file: str
    rev: int
    made_by: str | None


class Holder(NamedTuple):
    """A version under some file: its `status`, whose it is, and until when it is being uploaded."""

    status: str
    account: str
    expires_ns: int | None


_BORN = FileRow(
    "", "", "", 0, 0, 0, 0, 0, 0, 0, None, None, 0, 0, None, None, None, None, 0, 0, "", ""
)
_FILE_COLUMNS = [files.c[name] for name in FileRow._fields if name in files.c]
_FILES = (
    select(*_FILE_COLUMNS, drives.c.owner, drives.c.root)
    .join(drives, files.c.drive == drives.c.id)
    .where(files.c.id.in_(bindparam("ids", expanding=True)))
)
_DRIVES = select(files.c.drive).where(files.c.id.in_(bindparam("ids", expanding=True))).distinct()
_DRIVE = select(drives.c.owner, drives.c.root).where(drives.c.id == bindparam("id"))
_CHILDREN = (
    select(entries.c.name).where(entries.c.parent == bindparam("parent")).limit(bindparam("most"))
)
_HOLDERS = (
    select(versions.c.id, versions.c.status, devices.c.account, uploads.c.expires_ns)
    .join_from(versions, devices, versions.c.device == devices.c.id)
    .outerjoin(uploads, uploads.c.version == versions.c.id)
    .where(versions.c.id.in_(bindparam("ids", expanding=True)))
)
_CHUNKS = select(chunks.c.id, chunks.c.state, chunks.c.length).where(
    chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True))
)
_DROP_ENTRY = delete(entries).where(
    entries.c.parent == bindparam("p"), entries.c.name == bindparam("n")
)
_DROP_XATTR = delete(xattrs).where(xattrs.c.file == bindparam("f"), xattrs.c.name == bindparam("n"))
_SUPERSEDE = (
    update(versions)
    .where(versions.c.file == bindparam("f"), versions.c.id == bindparam("v"))
    .values(superseded_ns=bindparam("now"))
)
_FOLLOW = [
    update(table)
    .where(
        and_(
            table.c.file == bindparam("f"),
            table.c.place == bindparam("p"),
            table.c.name == bindparam("n"),
        )
    )
    .values(place=bindparam("new_p"), name=bindparam("new_n"))
    for table in (grants, links)
]
_MISSING: Any = object()


@lru_cache(maxsize=IN_LIMIT)
def _entries_at(count: int) -> TextClause:
    """Entries at so many places, (p0, n0) and so on. Joined with a list: of an IN list of pairs
    SQLite looks through the whole table for each."""
    places = ", ".join(f"(:p{number}, :n{number})" for number in range(count))
    return text(
        f"WITH wanted (parent, name) AS (VALUES {places})"
        " SELECT entries.parent, entries.name, entries.file, entries.rev, entries.made_by"
        " FROM wanted JOIN entries"
        " ON entries.parent = wanted.parent AND entries.name = wanted.name"
    )


@lru_cache(maxsize=256)
def _update_of(columns: tuple[str, ...]) -> Update:
    """Sets these columns of files."""
    values: dict[str, Any] = {column: bindparam(f"new_{column}") for column in columns}
    return update(files).where(files.c.id == bindparam("f")).values(**values)


class WorkingSet:
    """See above."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._files: dict[str, FileRow | None] = {}
        self._entries: dict[tuple[str, str], EntryRow | None] = {}
        self._xattrs: dict[str, dict[str, bytes]] = {}
        self._holders: dict[str, tuple[Holder, ...]] = {}
        self._chunks: dict[tuple[str, bytes], tuple[str, int] | None] = {}
        self._retired: dict[str, bool] = {}
        # What is to be written: of a file the columns (None: all, it is new), of an entry what the
        # database has, and so on.
        self._changed: dict[str, frozenset[str] | None] = {}
        self._named: dict[tuple[str, str], EntryRow | None] = {}
        self._marked: dict[tuple[str, str], None] = {}
        self._ended: dict[str, None] = {}
        self._made: dict[tuple[str, str], dict[str, object]] = {}
        self._refs: dict[str, list[dict[str, object]]] = {}
        self._superseded: dict[tuple[str, str], int] = {}
        self._followed: dict[int, dict[str, object]] = {}
        # Of the operation in progress: what undoes it, and what was still to be written each time
        # that it had something written.
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._written: list[tuple[int, list[dict[Any, Any]]]] = []
        self._in_operation = False

    @property
    def conn(self) -> Connection:
        """The connection, with everything written that was done so far."""
        self.write_out()
        return self._conn

    @property
    def raw(self) -> Connection:
        """The connection as it is: for questions that no operation changes the answer to."""
        return self._conn

    # --- operations ---

    def begin(self) -> None:
        """An operation begins."""
        self._in_operation = True

    def keep(self) -> None:
        """It was done."""
        if self._written:
            self._conn.exec_driver_sql("RELEASE SAVEPOINT operation")
        self._end()

    def undo(self) -> None:
        """It was refused: as if it had not begun."""
        if self._written:
            self._conn.exec_driver_sql("ROLLBACK TO SAVEPOINT operation")
            self._conn.exec_driver_sql("RELEASE SAVEPOINT operation")
        for length, waiting in reversed(self._written):
            self._undo_down_to(length)
            for table, rows in zip(self._tables(), waiting, strict=True):
                table.clear()
                table.update(rows)
        self._undo_down_to(0)
        self._end()

    def _undo_down_to(self, length: int) -> None:
        while len(self._undo) > length:
            table, key, before = self._undo.pop()
            if before is _MISSING:
                table.pop(key, None)
            else:
                table[key] = before

    def _end(self) -> None:
        self._undo.clear()
        self._written.clear()
        self._in_operation = False

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._undo.append((table, key, table.get(key, _MISSING)))
        table[key] = value

    # --- files ---

    def file(self, id: str) -> FileRow | None:
        """The row of a file; None: there is none."""
        if id not in self._files:
            self._read_files([id])
        return self._files[id]

    def files(self, ids: Sequence[str]) -> list[FileRow]:
        """The rows of files that are there, in the order of `ids`."""
        self._read_files([id for id in ids if id not in self._files])
        return [row for id in ids if (row := self._files[id]) is not None]

    def insert_file(self, id: str, drive: str, values: dict[str, Any]) -> None:
        check_values(values.values())
        owner, root = self._drive(drive)
        row = _BORN._replace(id=id, drive=drive, owner=owner, root=root, **values)
        self._put(self._files, id, row)
        self._put(self._changed, id, None)
        self._put(self._xattrs, id, {})

    def update_file(self, id: str, values: dict[str, Any]) -> None:
        """Set columns of a file that is there."""
        row = self.file(id)
        assert row is not None
        self._put(self._files, id, row._replace(**values))
        changed = self._changed.get(id, frozenset())
        if changed is not None:
            self._put(self._changed, id, changed.union(values))

    def is_retired(self, id: str) -> bool:
        """True if a file that was deleted for good had this id."""
        if id not in self._retired:
            self._retired[id] = bool(retired_of(self._conn, [id]))
        return self._retired[id]

    def _drive(self, drive: str) -> tuple[str, str]:
        for row in self._files.values():
            if row is not None and row.drive == drive:
                return row.owner, row.root
        owner, root = self._conn.execute(_DRIVE, {"id": drive}).one()
        return owner, root

    def _read_files(self, ids: Iterable[str]) -> None:
        for some in slices(ids):
            self._files.update(dict.fromkeys(some))
            for row in self._conn.execute(_FILES, {"ids": some}):
                self._files[row.id] = FileRow._make(row)

    # --- entries ---

    def entry(self, parent: str, name: str) -> EntryRow | None:
        """The row of a name in a directory; None: there is none."""
        if (parent, name) not in self._entries:
            self._read_entries([(parent, name)])
        return self._entries[parent, name]

    def set_entry(self, parent: str, name: str, row: EntryRow | None) -> None:
        """None: the name is free."""
        place, before = (parent, name), self.entry(parent, name)
        if place not in self._named:
            self._put(self._named, place, before)
        self._put(self._entries, place, row)

    def has_child(self, directory: str) -> bool:
        """True if anything is in a directory."""
        here = [place for place in self._named if place[0] == directory]
        if any(self._entries[place] is not None for place in here):
            return True
        gone = {name for _, name in here}
        found = self._conn.execute(_CHILDREN, {"parent": directory, "most": len(gone) + 1})
        return any(name not in gone for name in found.scalars())

    def _read_entries(self, places: Iterable[tuple[str, str]]) -> None:
        for some in slices(places):
            self._entries.update(dict.fromkeys(some))
            asked = {f"p{number}": parent for number, (parent, _) in enumerate(some)}
            asked |= {f"n{number}": name for number, (_, name) in enumerate(some)}
            for parent, name, *row in self._conn.execute(_entries_at(len(some)), asked):
                self._entries[parent, name] = EntryRow(*row)

    # --- extended attributes ---

    def xattrs(self, file: str) -> dict[str, bytes]:
        """The attributes of a file, not to be changed."""
        known = self._xattrs.get(file)
        # Read ahead are those that are small. What is large is read when it is needed.
        return attributes(self._conn, [file]).get(file, {}) if known is None else known

    def set_xattrs(self, file: str, values: dict[str, bytes]) -> None:
        """Make `values` the attributes of a file."""
        before, values = self.xattrs(file), dict(sorted(values.items()))  # as they are read
        for name in before.keys() | values.keys():
            if before.get(name) != values.get(name):
                self._put(self._marked, (file, name), None)
        self._put(self._xattrs, file, values)

    def _read_xattrs(self, ids: Sequence[str]) -> None:
        """Of those of `ids` that have few enough, and of those that have none."""
        sizes = attribute_sizes(self._conn, ids)
        self._xattrs.update((id, {}) for id in ids if id not in sizes)
        self._xattrs.update(attributes(self._conn, fitting_of(sizes)))

    # --- versions and chunks ---

    def holders(self, version: str) -> tuple[Holder, ...]:
        """The meanings of a version id, one for each file that has it."""
        if version not in self._holders:
            self._read_holders([version])
        return self._holders[version]

    def end_upload(self, version: str) -> None:
        """End the session that uploads a version, and what is only being uploaded of it."""
        self._put(self._ended, version, None)
        self._put(self._holders, version, ())

    def insert_version(self, row: dict[str, Any], account: str, refs: Iterable[bytes]) -> None:
        """`row` of `versions`, uploaded by `account`; `refs` are its chunks."""
        check_values(row.values())
        version: str = row["id"]
        self._put(self._made, (row["file"], version), row)
        rows = [{"version": version, "drive": row["drive"], "chunk": id} for id in refs]
        self._put(self._refs, version, rows)
        known = (*self.holders(version), Holder("uploaded", account, None))
        self._put(self._holders, version, known)

    def forget_version(self, version: str) -> None:
        """Somebody has written rows of it by `conn`."""
        self._undo.append((self._holders, version, self._holders.pop(version, _MISSING)))

    def supersede(self, file: str, version: str, now_ns: int) -> None:
        """A version of a file is not its current one any more."""
        made = self._made.get((file, version))
        if made is None:
            self._put(self._superseded, (file, version), now_ns)
        else:
            self._put(self._made, (file, version), made | {"superseded_ns": now_ns})

    def chunks(self, drive: str, ids: Iterable[bytes]) -> dict[bytes, tuple[str, int]]:
        """State and length of those of `ids` that the drive knows of."""
        wanted = list(ids)
        self._read_chunks(drive, [id for id in wanted if (drive, id) not in self._chunks])
        found = ((id, self._chunks[drive, id]) for id in wanted)
        return {id: row for id, row in found if row is not None}

    def note_revived(self, drive: str, id: bytes) -> None:
        """Somebody has written by `conn` that a chunk is not doomed any more."""
        row = self._chunks[drive, id]
        assert row is not None
        self._put(self._chunks, (drive, id), ("uploaded", row[1]))

    def _read_holders(self, ids: Iterable[str]) -> None:
        found: defaultdict[str, list[Holder]] = defaultdict(list)
        for some in slices(ids):
            self._holders.update(dict.fromkeys(some, ()))
            for id, *holder in self._conn.execute(_HOLDERS, {"ids": some}):
                found[id].append(Holder(*holder))
        for id, each in found.items():
            self._holders[id] = tuple(each)

    def _read_chunks(self, drive: str, ids: Iterable[bytes]) -> None:
        for some in slices(ids):
            self._chunks.update(dict.fromkeys((drive, id) for id in some))
            for id, *row in self._conn.execute(_CHUNKS, {"drive": drive, "ids": some}):
                self._chunks[drive, id] = (row[0], row[1])

    # --- names that are told ---

    def follow(self, file: str, old: tuple[str, str], new: tuple[str, str]) -> None:
        """Tell those who were given a file by the entry `old`, a (directory, name), that it is
        `new` instead."""
        (place, name), (new_place, new_name) = old, new
        row = {"f": file, "p": place, "n": name, "new_p": new_place, "new_n": new_name}
        self._put(self._followed, len(self._followed), row)

    # --- reading ahead ---

    def drives_of(self, ops: Sequence[messages.Op]) -> list[str]:
        """The drives that `ops` are in, in order, as far as they are known by now."""
        anchors = {operations.anchor(op) for op in ops}
        found = {row.drive for id in anchors if (row := self._files.get(id)) is not None}
        for some in slices(anchors - self._files.keys()):
            found.update(self._conn.execute(_DRIVES, {"ids": some}).scalars())
        return sorted(found)

    def load(self, ops: Sequence[messages.Op]) -> list[FileRow]:
        """Read what `ops` name. Between operations. Returns the files that are there."""
        self.write_out()
        for table in (self._files, self._entries, self._xattrs, self._holders, self._chunks):
            table.clear()
        self._retired.clear()
        named = sorted(set[str]().union(*map(operations.named, ops)))
        self._read_files(named)
        there = self.files(named)
        self._read_xattrs([row.id for row in there])
        self._read_entries(dict.fromkeys(place for op in ops for place in _places(op)))
        self._read_ids_and_contents(ops)
        return there

    def _read_ids_and_contents(self, ops: Sequence[messages.Op]) -> None:
        new = [id for op in ops for id in _new_ids(op)]
        gone = retired_of(self._conn, new)
        self._retired.update((id, id in gone) for id in new)
        contents = [(op, op.content) for op in ops if isinstance(op, _WITH_CONTENT) and op.content]
        self._read_holders(content.version for _, content in contents)
        drive_of = {id: row.drive for id, row in self._files.items() if row is not None}
        wanted: defaultdict[str, dict[bytes, None]] = defaultdict(dict)
        for op, content in contents:
            drive = drive_of.get(operations.anchor(op))
            if drive is not None:
                pieces = content.manifest.pieces
                wanted[drive].update(dict.fromkeys(item.id for item in pieces if item.id != HOLE))
        for drive, ids in wanted.items():
            self._read_chunks(drive, ids)

    # --- writing ---

    def write_out(self) -> None:
        """Write what is waiting to be written."""
        tables = self._tables()
        if not any(tables):
            if self._in_operation and not self._written:
                self._guard(tables)
            return
        if self._in_operation:
            self._guard(tables)
        self._write()
        for table in tables:
            table.clear()

    def _guard(self, tables: list[dict[Any, Any]]) -> None:
        """Make it possible to undo what the operation writes from now on."""
        if not self._written:
            self._conn.exec_driver_sql("SAVEPOINT operation")
        self._written.append((len(self._undo), [dict(table) for table in tables]))

    def _tables(self) -> list[dict[Any, Any]]:
        """All that is to be written."""
        return [
            self._changed,
            self._named,
            self._marked,
            self._ended,
            self._made,
            self._refs,
            self._superseded,
            self._followed,
        ]

    def _write(self) -> None:
        leases.end(self._conn, self._ended)
        self._write_files()
        self._write_entries()
        self._write_xattrs()
        superseded = self._superseded.items()
        self._many(_SUPERSEDE, [{"f": f, "v": v, "now": now} for (f, v), now in superseded])
        self._insert_versions()
        self._many(insert(version_chunks), [ref for rows in self._refs.values() for ref in rows])
        for statement in _FOLLOW:
            self._many(statement, list(self._followed.values()))

    def _write_files(self) -> None:
        born: list[dict[str, object]] = []
        updated: defaultdict[tuple[str, ...], list[dict[str, object]]] = defaultdict(list)
        for id, columns in self._changed.items():
            row = self._files[id]
            assert row is not None
            if columns is None:
                born.append({column.name: getattr(row, column.name) for column in _FILE_COLUMNS})
            else:
                which = tuple(sorted(columns))
                values = {f"new_{column}": getattr(row, column) for column in which}
                updated[which].append(values | {"f": id})
        self._many(insert(files), born)
        for which, rows in updated.items():
            self._many(_update_of(which), rows)

    def _write_entries(self) -> None:
        gone = [place for place, before in self._named.items() if before is not None]
        self._many(_DROP_ENTRY, [{"p": parent, "n": name} for parent, name in gone])
        named = ((place, self._entries[place]) for place in self._named)
        rows = [
            {"parent": parent, "name": name, **row._asdict()}
            for (parent, name), row in named
            if row is not None
        ]
        self._many(insert(entries), rows)

    def _write_xattrs(self) -> None:
        self._many(_DROP_XATTR, [{"f": file, "n": name} for file, name in self._marked])
        there = [(file, name) for file, name in self._marked if name in self._xattrs[file]]
        rows = [{"file": f, "name": n, "value": self._xattrs[f][n]} for f, n in there]
        self._many(insert(xattrs), rows)

    def _insert_versions(self) -> None:
        blank = {"superseded_ns": None, "restored_from": None}
        self._many(insert(versions), [blank | row for row in self._made.values()])

    def _many(self, statement: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._conn.execute(statement, rows)


_WITH_CONTENT = (messages.Create, messages.Write)
_NAMED = (("parent", "name"), ("new_parent", "new_name"), ("other_parent", "other_name"))
_RETAKEN = (("parent", "name"), ("parent", "new_name"))


def _places(op: messages.Op) -> Iterator[tuple[str, str]]:
    """The (directory, name) that an operation speaks of, but for names that none can have: the
    operation will be refused, and the database is not asked for them."""
    spoken_of = _RETAKEN if isinstance(op, messages.Retake) else _NAMED
    for directory, name in spoken_of:
        place = getattr(op, directory, None), getattr(op, name, None)
        if place[0] is not None and place[1] is not None and _is_askable(place[1]):
            yield place[0], place[1]


def _is_askable(name: str) -> bool:
    try:
        check_length(name)
    except Refused:
        return False
    return True


def _new_ids(op: messages.Op) -> Iterator[str]:
    """The ids of files that an operation makes."""
    if isinstance(op, messages.Create):
        yield op.file
    elif isinstance(op, messages.Retake):
        yield op.backup
