"""The bound on depth: no directory is more than `MAX_LEVELS` below its drive's root, and no path of
one has more than `MAX_PATH_BYTES`.

Knows: the bound, and what is stored to keep it cheaply. Must not know: operations, access.

Whoever climbs a tree, or writes paths down, does work for each level; a bound keeps that from being
a way to wear the server out. Files that are no directories need none: they are one level and one
name more.

`files.below_levels` and `below_bytes` of a directory say how far the directories below it reach at
most. So moving a tree costs a climb from its new place, not a walk through it. Invariant: for each
directory in another, the outer one's numbers are at least the inner one's and one level, or slash
and name, more. They never shrink when what is below goes; when they forbid what would fit, the tree
is looked at, as far as that is not too much.

Trees that were deeper before there was a bound stay. They can be read, deleted, and moved to where
they are no deeper than they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, bindparam, select, update

from remote.protocol.errors import NameTooLong, Refused
from remote.protocol.messages import MAX_LEVELS, MAX_PATH_BYTES
from server.metadata.records import slices
from server.metadata.schema import entries, files
from server.permissions.lineage import Lineage, Place

# Entries of a tree that are looked at for how deep it really is.
LOOKED_AT = 10_000

_BELOW = select(files.c.id, files.c.below_levels, files.c.below_bytes).where(
    files.c.id.in_(bindparam("ids", expanding=True))
)
_DEEPEN = (
    update(files)
    .where(files.c.id == bindparam("directory"))
    .values(below_levels=bindparam("new_levels"), below_bytes=bindparam("new_bytes"))
)
_CHILDREN = (
    select(entries.c.file, entries.c.name, files.c.kind)
    .join(files, entries.c.file == files.c.id)
    .where(entries.c.parent == bindparam("parent"))
    .limit(bindparam("room"))
)


class Below(NamedTuple):
    """The reach of directories below one: levels, and bytes of the longest path from it."""

    levels: int
    size: int

    @classmethod
    def of(cls, row: Any) -> Below:
        """Of a row of `files`."""
        return cls(row.below_levels, row.below_bytes)

    def under(self, name: str) -> Below:
        """The same, seen from the directory that holds this one as `name`."""
        return Below(self.levels + 1, self.size + 1 + len(name.encode()))

    def joined(self, other: Below) -> Below:
        """As far as either."""
        return Below(max(self.levels, other.levels), max(self.size, other.size))


EMPTY = Below(0, 0)


class Depths(Protocol):
    """The depths that are stored of directories, and their changes."""

    def below(self, ids: Sequence[str]) -> dict[str, Below]:
        """The stored reach of the directories below each."""

    def set_below(self, new: Mapping[str, Below]) -> None: ...

    def measured(self, directory: str) -> Below | None:
        """Their real reach; None: there are too many to look at."""


class StoredDepths:
    """Of the rows themselves, in a write transaction."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def below(self, ids: Sequence[str]) -> dict[str, Below]:
        return {row.id: Below.of(row) for row in self._conn.execute(_BELOW, {"ids": ids})}

    def set_below(self, new: Mapping[str, Below]) -> None:
        rows = [
            {"directory": id, "new_levels": below.levels, "new_bytes": below.size}
            for id, below in new.items()
        ]
        self._conn.execute(_DEEPEN, rows)

    def measured(self, directory: str) -> Below | None:
        return measured(self._conn, directory)


def check(
    depths: Depths, there: Place, below: Below, moved: tuple[str, Place] | None = None
) -> Below:
    """Check that a directory with `below` below it may be `there`. `moved` says which one it is, if
    it is not new, and where it was: no deeper than that it may always be.

    Returns what is below it, perhaps better known by now. Raises `Refused(NameTooLong)`.
    """
    if _fits(there, below, moved):
        return below
    if moved is not None:
        exact = depths.measured(moved[0])
        if exact is not None and _fits(there, exact, moved):
            depths.set_below({moved[0]: exact})
            return exact
    message = (
        f"a directory is at most {MAX_LEVELS} levels deep and has a path of at most"
        f" {MAX_PATH_BYTES} bytes; put it, or what is in it, elsewhere"
    )
    raise Refused(NameTooLong(message=message))


def _fits(there: Place, below: Below, moved: tuple[str, Place] | None) -> bool:
    before = Place(0, 0) if moved is None else moved[1]
    levels = there.levels <= max(before.levels, MAX_LEVELS - below.levels)
    return levels and there.size <= max(before.size, MAX_PATH_BYTES - below.size)


def deepen(depths: Depths, lineage: Lineage, parent: str, name: str, below: Below) -> None:
    """Note that `parent` holds, as `name`, a directory with `below` below it. Stops at the first
    directory above that reaches so far already."""
    chain, need = lineage.chain(parent), below.under(name)
    for part in (chain[:1], *slices(chain[1:])):
        known = depths.below([id for id, _ in part])
        changed: dict[str, Below] = {}
        for id, called in part:
            more = known[id].joined(need)
            if more == known[id]:
                break
            changed[id] = more
            need = need.under(called)
        if changed:
            depths.set_below(changed)
        if len(changed) < len(part):
            return


def measured(conn: Connection, top: str) -> Below | None:
    """The real reach of the directories below `top`; None: there are too many to look at."""
    found, waiting, left = EMPTY, [(top, EMPTY)], LOOKED_AT
    while waiting:
        directory, here = waiting.pop()
        rows = conn.execute(_CHILDREN, {"parent": directory, "room": left}).all()
        left -= len(rows)
        if left <= 0:
            return None
        for row in rows:
            if row.kind == "directory":
                inner = here.under(row.name)
                found = found.joined(inner)
                waiting.append((row.file, inner))
    return found
