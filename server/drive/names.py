"""Names that others made, when the owner takes the file out of their reach.

Knows: whose a name is, and which names go with a move. Must not know: operations (`tree`), grants
(`permissions.lineage` says what a place's reach is).

An editor may give a file further names within what is shared. When the owner then moves the file
out of that, or takes away the last of their own names that was in it, the names that others made in
there go too, in the same change: else a hidden name would go on reaching what was moved out. The
owner's own hard links stay, as POSIX has it, and so does everything while the owner has no name of
the file elsewhere: nothing goes to the trash by this.

A name is somebody else's if they made it, and also if they have since moved a directory that it is
in: else they could move the owner's name out of sight with its directory, and put one of their own
in its place for the owner to move. A name from before it was kept who made one counts as the
owner's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Boolean, Row, bindparam, exists, or_, select

from server.drive.mutation import Mutation, Taken
from server.metadata.schema import entries, files
from server.permissions.lineage import ABOVE

_NAMES = select(entries).where(entries.c.file == bindparam("file"))
_MOVED_BY_OTHERS = select(entries.c.rev).where(
    entries.c.file.in_(ABOVE), entries.c.made_by.is_not(None)
)
_below = select(bindparam("top", type_=files.c.id.type).label("id")).cte("below", recursive=True)
_below = _below.union_all(select(entries.c.file).where(entries.c.parent == _below.c.id))
# Those that `_leave` has something to do for: an owner may have very many of their own.
_LINKED_BELOW = (
    select(files.c.id)
    .distinct()
    .join(_below, files.c.id == _below.c.id)
    .where(
        files.c.links > 1,
        or_(
            bindparam("is_others", type_=Boolean),
            exists().where(entries.c.file == files.c.id, entries.c.made_by.is_not(None)),
        ),
    )
)


def take_back(tx: Mutation) -> None:
    """After an operation: drop the names of others that it has left behind."""
    if tx.is_whole and tx.taken and tx.lineage.roots(tx.drive, tx.now_ns):
        for taken in tuple(tx.taken):
            _Leaving(tx, taken).drop_others()


@dataclass
class _Leaving:
    """One entry that the owner took away."""

    tx: Mutation
    taken: Taken

    def drop_others(self) -> None:
        row = self.tx.find(self.taken.file)
        if row is None or row.links < (1 if row.kind == "directory" else 2):
            return
        was = self.tx.reach(self.taken.parent)
        if row.kind != "directory":
            self._leave(row.id, was)
        elif not was <= self.tx.reach(row.id):
            below = {"top": row.id, "is_others": self.taken.made_by is not None}
            for file in self.tx.conn.execute(_LINKED_BELOW, below).scalars().all():
                self._leave(file, was)

    def _leave(self, file: str, was: frozenset[str]) -> None:
        """`file` has left a place of reach `was`."""
        names = self.tx.conn.execute(_NAMES, {"file": file}).all()
        if self.taken.made_by is None and all(name.made_by is None for name in names):
            return
        others = [name for name in names if self._is_others(name)]
        own = [name for name in names if name not in others]
        lost = was - frozenset[str]().union(*(self.tx.reach(name.parent) for name in own))
        for name in others if own else []:
            if lost & self.tx.reach(name.parent):
                self.tx.left.append(name.name)
                self.tx.drop_entry(name.parent, name.name)
                self.tx.lose_link(self.tx.file(file), name.parent, name.name)

    def _is_others(self, name: Row[tuple[object, ...]]) -> bool:
        if self.taken.file in self.tx.lineage.above(name.parent):
            return False  # it came along
        if name.made_by is not None:
            return True
        moved: Iterable[int] = self.tx.conn.execute(_MOVED_BY_OTHERS, {"id": name.parent}).scalars()
        return any(rev > name.rev for rev in moved)
