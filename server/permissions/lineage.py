"""Where files are, as remembered during one transaction: what is above each, and who was given it.

Knows: how the tree is climbed, that a batch asks for the same directories again and again, and what
a root is: a file with a grant, with a link that is good, or that is the folder of a token that is
good. Must not know: what may be done where (`access`), what an operation does.

Whoever comes to a file without owning its drive comes through a root, so two places with the same
roots at or above them are reached by the same people: these are a place's *reach*.

Climbing costs the database a row for each level, so it is climbed once for all operations of a
batch. Invariant: what is remembered is what the transaction sees; whoever changes an entry says so
(`born`, `gained`, `lost`), after each operation `keep`, or `forget` if it was rolled back. Memory
is bounded.

Concurrency: of one transaction, and its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Table, bindparam, or_, select, union

from remote.protocol.messages import Role
from server.metadata.records import slices
from server.metadata.schema import devices, drives, entries, files, grants, links

# Files of which it is remembered what is above them.
MAX_KNOWN = 50_000
# What has more names is not climbed ahead with others.
MANY_NAMES = 50

_above = select(bindparam("id", type_=files.c.id.type).label("id")).cte("above", recursive=True)
_above = _above.union(select(entries.c.parent).where(entries.c.file == _above.c.id))
# `id` and every directory above it, over all links.
ABOVE = select(_above.c.id)
# A row if `directory` is one of those.
IS_ABOVE = select(_above.c.id).where(_above.c.id == bindparam("directory")).limit(1)
_NAMES = select(entries.c.file, entries.c.parent, entries.c.name).join(
    _above, entries.c.file == _above.c.id
)
_all_above = (
    select(entries.c.parent)
    .where(entries.c.file.in_(bindparam("ids", expanding=True)))
    .cte("all_above", recursive=True)
)
_all_above = _all_above.union(select(entries.c.parent).where(entries.c.file == _all_above.c.parent))
_NAMES_OF_MANY = select(entries.c.file, entries.c.parent, entries.c.name).where(
    or_(
        entries.c.file.in_(bindparam("ids", expanding=True)),
        entries.c.file.in_(select(_all_above.c.parent)),
    )
)
_names = entries.alias("names")
_MANY_NAMES = select(files.c.id).where(
    files.c.id.in_(bindparam("ids", expanding=True)),
    select(_names.c.file).where(_names.c.file == files.c.id).limit(1).offset(MANY_NAMES).exists(),
)
_GRANTED = (
    select(grants.c.file, grants.c.role)
    .join(files, grants.c.file == files.c.id)
    .where(grants.c.account == bindparam("account"), files.c.drive == bindparam("drive"))
)
_owner = select(drives.c.owner).where(drives.c.id == bindparam("drive")).scalar_subquery()


def _is_good(table: Table) -> ColumnElement[bool]:
    """Of a link, or the token of a device."""
    unexpired = or_(table.c.expires_ns.is_(None), table.c.expires_ns > bindparam("now"))
    return table.c.revoked_ns.is_(None) & unexpired


# By who gave them: only the owner of a drive shares what is in it, and files there are many.
_ROOTS = union(
    select(grants.c.file).where(grants.c.granted_by == _owner),
    select(links.c.file).where(links.c.drive == bindparam("drive"), _is_good(links)),
    select(devices.c.folder).where(
        devices.c.account == _owner, devices.c.folder.is_not(None), _is_good(devices)
    ),
)


class Place(NamedTuple):
    """The depth of a directory below its root, and the bytes of its path, a slash before each name.
    The root itself is (0, 0)."""

    levels: int
    size: int

    def within(self, name: str) -> Place:
        """The place called `name` in this directory."""
        return Place(self.levels + 1, self.size + 1 + len(name.encode()))


class Lineage:
    """See above. Ids of files and directories."""

    def __init__(self, conn: Connection, write_out: Callable[[], None] | None = None) -> None:
        """`write_out` has entries written that were changed and are not written yet."""
        self._conn, self._write_out = conn, write_out
        self._names: dict[str, set[tuple[str, str]]] = {}
        self._is_changed = False  # since the last operation
        self._roles: dict[tuple[str, str], dict[str, Role]] = {}
        self._roots: dict[str, frozenset[str]] = {}

    def above(self, file: str) -> set[str]:
        """`file` and every directory above it, over all links."""
        found, waiting = {file}, [file]
        while waiting:
            for parent, _ in self._names_of(waiting.pop()):
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def chain(self, directory: str) -> list[tuple[str, str]]:
        """`directory` and those above it up to the top, each with its name; the top has none."""
        found, at = list[tuple[str, str]](), directory
        seen = set[str]()
        while at not in seen:  # a damaged tree may have a loop
            seen.add(at)
            parent, name = next(iter(self._names_of(at)), ("", ""))
            found.append((at, name))
            at = parent or at
        return found

    def place(self, directory: str) -> Place:
        names = [name for _, name in self.chain(directory) if name]
        return Place(len(names), sum(1 + len(name.encode()) for name in names))

    def granted(self, account: str, drive: str) -> dict[str, Role]:
        """The files of `drive` that are shared with `account`, each with its role."""
        if (account, drive) not in self._roles:
            rows = self._conn.execute(_GRANTED, {"account": account, "drive": drive})
            self._roles[account, drive] = {row.file: row.role for row in rows}
        return self._roles[account, drive]

    def roots(self, drive: str, now_ns: int) -> frozenset[str]:
        """Every root in `drive`."""
        if drive not in self._roots:
            found = self._conn.execute(_ROOTS, {"drive": drive, "now": now_ns}).scalars()
            self._roots[drive] = frozenset(found)
        return self._roots[drive]

    def reach(self, place: str, drive: str, now_ns: int) -> frozenset[str]:
        """The roots at or above `place`, a file or directory of `drive`, over all its names."""
        roots = self.roots(drive, now_ns)
        return roots & self.above(place) if roots else roots

    def born(self, file: str) -> None:
        """A file was made that has no name yet."""
        self._is_changed = True
        self._names[file] = set()

    def gained(self, file: str, parent: str, name: str) -> None:
        self._is_changed = True
        if file in self._names:
            self._names[file].add((parent, name))

    def lost(self, file: str, parent: str, name: str) -> None:
        self._is_changed = True
        if file in self._names:
            self._names[file].discard((parent, name))

    def keep(self) -> None:
        """An operation was done: its changes stay."""
        self._is_changed = False

    def forget(self) -> None:
        """An operation was rolled back. Most that are refused have changed nothing yet."""
        if self._is_changed:
            self._names.clear()
        self._is_changed = False

    def _names_of(self, file: str) -> set[tuple[str, str]]:
        if file not in self._names:
            self._climb(file)
        return self._names[file]

    def _climb(self, file: str) -> None:
        if len(self._names) > MAX_KNOWN:
            self._names.clear()
        if self._write_out is not None:
            self._write_out()
        self._note([file], self._conn.execute(_NAMES, {"id": file}))

    def learn(self, ids: Sequence[str]) -> None:
        """Climb from all of these at once. Between operations, when everything is written. Not from
        what has very many names: others wait while ten thousand are read, so that is done when its
        operation comes, after which a batch can make way."""
        for some in slices(id for id in ids if id not in self._names):
            if len(self._names) > MAX_KNOWN:
                self._names.clear()
            many = set(self._conn.execute(_MANY_NAMES, {"ids": some}).scalars())
            part = [id for id in some if id not in many]
            self._note(part, self._conn.execute(_NAMES_OF_MANY, {"ids": part}))

    def _note(self, files: Iterable[str], rows: Iterable[Row[Any]]) -> None:
        found: dict[str, set[tuple[str, str]]] = {file: set() for file in files}
        for row in rows:
            found.setdefault(row.file, set()).add((row.parent, row.name))
            found.setdefault(row.parent, set())
        self._names |= found
