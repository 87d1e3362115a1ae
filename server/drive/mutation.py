"""One operation in progress: the tables it may touch, and what it has touched.

Knows: how entries and files are read and changed so that links, times, `rev` and the change record
come out right. Must not know: what each operation means (`tree`), transactions (`commits`).

A `Mutation` is one operation of one batch on one thread; its caller keeps or undoes it. Invariant:
every file changed through it gets `rev = seq` and `ctime_ns = now_ns`, and is in the change record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, text

from remote.protocol.errors import (
    BadRequest,
    Exists,
    NotADirectory,
    NotEmpty,
    NotFound,
    OtherReach,
    Refused,
    Stale,
    TooManyLinks,
)
from remote.protocol.messages import MAX_NAMES, Change, EntryRecord, Role
from server.drive import depth
from server.drive.depth import Below
from server.drive.rules import MAX_NAMED_TWICE, MAX_NAMES_BY_OTHERS, check_name
from server.drive.working_set import EntryRow, FileRow, WorkingSet
from server.metadata.records import file_record
from server.metadata.schema import entries, files
from server.permissions import access
from server.permissions.caller import Caller
from server.permissions.lineage import Lineage

_PLACES = select(entries.c.parent).where(entries.c.file == bindparam("file")).distinct()
_NAMED_TWICE = (
    select(files.c.links)
    .where(files.c.drive == bindparam("drive"), text("links > 1"))  # as the index has it
    .limit(MAX_NAMED_TWICE)
)


class Taken(NamedTuple):
    """An entry that went; `made_by` as in the table."""

    parent: str
    file: str
    made_by: str | None


@dataclass
class Mutation:
    """`seq` is the sequence number this operation's change will have in drive `drive`. `lost` are
    the (directory, file) pairs of entries that went: who sees only a part of the drive must be told
    of a file that left it. `taken` are the same entries, with who made them. `returned` are files
    that are back from the trash: those with whom they are shared see them again, and were not
    listening. `left` are names of others that went with what the owner moved out. `moved`: a file
    that was there before, and still is, is below another directory now, or below one less. `born`
    are the files that it made.
    `rows` and `lineage` are the batch's."""

    rows: WorkingSet
    caller: Caller
    now_ns: int
    drive: str
    seq: int
    lineage: Lineage
    overtaken: str | None = None
    touched: dict[str, None] = field(default_factory=dict)
    names: dict[tuple[str, str], str | None] = field(default_factory=dict)
    lost: set[tuple[str, str]] = field(default_factory=set)
    taken: list[Taken] = field(default_factory=list)
    returned: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    moved: bool = False
    born: set[str] = field(default_factory=set)

    @property
    def is_whole(self) -> bool:
        """True if the whole drive is the caller's."""
        return access.owns_drive(self.caller, self.drive)

    @property
    def conn(self) -> Connection:
        """For what `rows` does not answer: everything that was done so far is written first."""
        return self.rows.conn

    # --- reading, with access ---

    def find(self, file: str) -> FileRow | None:
        """The row of `file`; no access is checked."""
        return self.rows.file(file)

    def require(self, file: str, need: Role) -> FileRow:
        """The row of a file on which the caller has at least role `need`."""
        row = self.rows.file(file)
        access.check(self.rows.raw, self.caller, file, row, need, self.lineage)
        assert row is not None
        return row

    def file(self, file: str) -> FileRow:
        """The row of a file that the caller may change, in this drive."""
        row = self.require(file, "editor")
        if row.drive != self.drive:
            raise Refused(BadRequest(message="both ends must be in one drive"))
        return row

    def directory(self, file: str) -> FileRow:
        """The row of a directory in the tree whose entries the caller may change."""
        row = self.file(file)
        if row.kind != "directory":
            raise Refused(NotADirectory(message=f"{file} is a {row.kind}"))
        if row.links == 0:
            raise Refused(NotFound(message=f"directory {file} was deleted"))
        return row

    def meaning(self, parent: str, name: str) -> str | None:
        """The file that `name` in `parent` means."""
        found = self.rows.entry(parent, name)
        return None if found is None else found.file

    def expect(self, parent: str, name: str, file: str) -> None:
        """Raise `Refused(Stale)` unless the name means `file`."""
        if self.meaning(parent, name) != file:
            raise Refused(Stale(message=f"{name!r} does not mean file {file} any more"))

    def check_free(self, parent: FileRow, name: str) -> None:
        """Raise `Refused` unless an entry `name` may be made in `parent`."""
        check_name(name, at_root=parent.id == parent.root)
        if self.meaning(parent.id, name) is not None:
            raise Refused(Exists(message=f"there is a {name!r} already"))

    def check_depth(self, kind: str, parent: str, name: str) -> Below | None:
        """Check that a file of this kind, with nothing below it, would not be too deep; returns
        what `add_entry` is to be told of it. Raises `Refused(NameTooLong)`."""
        if kind != "directory":
            return None
        return depth.check(_Depths(self), self.lineage.place(parent).within(name), depth.EMPTY)

    def check_move(
        self, row: FileRow, here: tuple[str, str], there: tuple[str, str]
    ) -> Below | None:
        """The same of `row`, which moves from `here` to `there`, each a directory and a name."""
        if row.kind != "directory":
            return None
        was, will_be = (self.lineage.place(parent).within(name) for parent, name in (here, there))
        return depth.check(_Depths(self), will_be, Below.of(row), (row.id, was))

    def check_empty(self, row: FileRow) -> None:
        if row.kind == "directory" and self.rows.has_child(row.id):
            raise Refused(NotEmpty(message=f"directory {row.id} is not empty"))

    def check_reach(self, place: str, *known: str) -> None:
        """Raise `Refused(OtherReach)` if a name in directory `place` changes who reaches what has
        names in the directories `known`; the owner decides that, and nobody else."""
        if self.is_whole or place in known:
            return
        reach = self.reach(place)
        if not any(self.reach(item) == reach for item in known):
            message = "there it would be reached by others than where it is; copy it instead"
            raise Refused(OtherReach(message=message))

    def reach(self, place: str) -> frozenset[str]:
        """Through what `place` is reached without owning the drive, see `lineage`."""
        return self.lineage.reach(place, self.drive, self.now_ns)

    def places(self, file: str) -> list[str]:
        """The directories in which the file has names."""
        return list(self.conn.execute(_PLACES, {"file": file}).scalars())

    # --- changing ---

    def update(self, file: str, **values: object) -> None:
        """Set columns of a file; its ctime and rev follow."""
        values |= {"ctime_ns": self.now_ns, "rev": self.seq}
        self.rows.update_file(file, values)
        self.touched[file] = None

    def insert_file(self, file: str, **values: object) -> None:
        values |= {"ctime_ns": self.now_ns, "rev": self.seq}
        self.rows.insert_file(file, self.drive, values)
        self.touched[file] = None
        self.born.add(file)
        self.lineage.born(file)

    def set_xattrs(self, file: str, values: dict[str, bytes]) -> None:
        """Make `values` the extended attributes of `file`."""
        self.rows.set_xattrs(file, values)

    def add_entry(self, parent: str, name: str, file: str, below: Below | None = None) -> None:
        """`below`: the file is a directory that `check_depth` let in, with so much below it."""
        made_by = None if self.is_whole else self.caller.account
        self.rows.set_entry(parent, name, EntryRow(file, self.seq, made_by))
        self.lineage.gained(file, parent, name)
        if below is not None:
            depth.deepen(_Depths(self), self.lineage, parent, name, below)
        if file not in self.born and (parent, file) not in self.lost:
            self.moved = True
        self._entry_changed(parent, name, file)

    def drop_entry(self, parent: str, name: str) -> None:
        row = self.rows.entry(parent, name)
        if row is not None:
            self.lost.add((parent, row.file))
            self.taken.append(Taken(parent, row.file, row.made_by))
            self.lineage.lost(row.file, parent, name)
        self.rows.set_entry(parent, name, None)
        self._entry_changed(parent, name, None)

    def _entry_changed(self, parent: str, name: str, file: str | None) -> None:
        self.names[parent, name] = file
        now = {"mtime_ns": self.now_ns, "ctime_ns": self.now_ns, "rev": self.seq}
        self.rows.update_file(parent, now)
        self.touched[parent] = None

    def follow(self, file: str, old: tuple[str, str], new: tuple[str, str]) -> None:
        """The entry `old` of `file`, a (directory, name), goes on as `new`: who was given the
        file by that name, or has a link to it, is told the new one."""
        self.rows.follow(file, old, new)

    def gain_link(self, row: FileRow) -> None:
        """One more entry names the file; a file in the trash is back in the tree."""
        most = MAX_NAMES if self.is_whole else MAX_NAMES_BY_OTHERS
        if row.links >= most:
            raise Refused(TooManyLinks(message=f"a file has at most {most} names"))
        if row.links and not self.is_whole:
            self._check_named_twice()
        if row.links == 0:
            self.returned.add(row.id)
        back = {"trashed_ns": None, "trashed_parent": None, "trashed_name": None}
        self.update(row.id, links=row.links + 1, **back)

    def _check_named_twice(self) -> None:
        found = self.conn.execute(_NAMED_TWICE, {"drive": self.drive}).scalars()
        if sum(found) >= MAX_NAMED_TWICE:
            message = "files of this drive have too many further names already; copy it instead"
            raise Refused(TooManyLinks(message=message))

    def lose_link(self, row: FileRow, parent: str | None, name: str | None) -> None:
        """One entry less names the file; without any it goes to the trash, to be put back where
        that entry was. No place: there is nothing to put back."""
        trash: dict[str, object] = {}
        if row.links == 1:
            trash = {"trashed_ns": self.now_ns, "trashed_parent": parent, "trashed_name": name}
            trash |= {"below_levels": 0, "below_bytes": 0}  # a directory was empty
        else:
            self.moved = True
        self.update(row.id, links=row.links - 1, **trash)

    # --- the record ---

    def change(self) -> Change:
        """The change that was made, as the records it left behind."""
        touched = self.rows.files([*self.touched])
        named = [
            EntryRecord(parent=parent, name=name, file=file, rev=self.seq)
            for (parent, name), file in self.names.items()
        ]
        return Change(
            drive=self.drive,
            seq=self.seq,
            at_ns=self.now_ns,
            device=self.caller.device,
            files=[file_record(row, self.rows.xattrs(row.id)) for row in touched],
            entries=named,
        )


class _Depths:
    """Depths of directories (`depth.Depths`), in one operation."""

    def __init__(self, tx: Mutation) -> None:
        self._tx = tx

    def below(self, ids: Sequence[str]) -> dict[str, Below]:
        return {row.id: Below.of(row) for row in self._tx.rows.files(ids)}

    def set_below(self, new: Mapping[str, Below]) -> None:
        for id, below in new.items():
            values = {"below_levels": below.levels, "below_bytes": below.size}
            self._tx.rows.update_file(id, values)

    def measured(self, directory: str) -> Below | None:
        return depth.measured(self._tx.conn, directory)
