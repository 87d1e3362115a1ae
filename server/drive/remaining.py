"""The files that accounts reach by other ways than a grant at or above them.

Knows: the grants below a directory, and the further names, elsewhere in the drive, of what it
holds. Must not know: who may ask (`sharing`).

That is what remains to an account when its grant on the directory is taken back. Names that an
editor makes never reach further than the file did; those of the owner may, and so may a folder that
was shared by itself when there were names in it.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from remote.protocol.account_messages import Reached
from server.metadata.schema import accounts, entries, files, grants

# Told in one answer; it says when there are more.
MOST = 1000

_drive = files.c.drive == bindparam("drive")

# Grants of the drive, with every directory above each.
_over = (
    select(grants.c.file, grants.c.file.label("at"))
    .join(files, grants.c.file == files.c.id)
    .where(_drive)
    .cte("over", recursive=True)
)
_over = _over.union(select(_over.c.file, entries.c.parent).where(entries.c.file == _over.c.at))
_BELOW = (
    select(entries, grants.c.role, accounts.c.name.label("account"))
    .join_from(_over, grants, grants.c.file == _over.c.file)
    .join(entries, entries.c.file == _over.c.file)
    .join(accounts, accounts.c.id == grants.c.account)
    .where(_over.c.at == bindparam("file"), _over.c.file != bindparam("file"))
    .limit(MOST + 1)
)

# Directories with a name of a file that has several, with every directory above each.
_linked = select(files.c.id).where(_drive, files.c.links > 1)
_up = (
    select(entries.c.parent.label("place"), entries.c.parent.label("at"))
    .where(entries.c.file.in_(_linked))
    .distinct()
    .cte("up", recursive=True)
)
_up = _up.union(select(_up.c.place, entries.c.parent).where(entries.c.file == _up.c.at))
_inside = select(_up.c.place).where(_up.c.at == bindparam("file"))
_inner = entries.alias("inner_name")
_ELSEWHERE = (
    select(entries, grants.c.role, accounts.c.name.label("account"))
    .join_from(_up, grants, grants.c.file == _up.c.at)
    .join(entries, entries.c.parent == _up.c.place)
    .join(accounts, accounts.c.id == grants.c.account)
    .where(
        _up.c.place.not_in(_inside),
        entries.c.file.in_(_linked),
        entries.c.file.in_(select(_inner.c.file).where(_inner.c.parent.in_(_inside))),
    )
    .limit(MOST + 1)
)


def remaining(conn: Connection, file: str, drive: str) -> tuple[list[Reached], bool]:
    """Accounts that reach something of `file`, a directory of `drive`, not by a grant at or above
    it; by account and name. True beside them if there is more than `MOST`, which is not told."""
    found: dict[tuple[str, str, str], Reached] = {}
    named = {"file": file, "drive": drive}
    for query in (_BELOW, _ELSEWHERE):
        for row in conn.execute(query, named):
            key = row.account, row.parent, row.name
            if key not in found or row.role == "editor":
                found[key] = Reached(
                    account=row.account,
                    role=row.role,
                    file=row.file,
                    parent=row.parent,
                    name=row.name,
                )
    told = [found[key] for key in sorted(found)]
    return told[:MOST], len(told) > MOST
