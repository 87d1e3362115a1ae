"""Permissions: the one place that decides who may do what.

Knows: owners and grants, and how grants reach down the tree. Must not know: endpoints, operations.

A role on a file is: owner of its drive; else the strongest grant on the file or on any directory
above it, over every link of a file that has several. What is in the trash is its owner's alone. A
token for a single folder is an editor there, whosever it is, and has no role elsewhere; a token
that may only read is refused everything that a viewer may not do.

What has no role is answered `not_found`, so that nobody learns that it exists; a role that is too
weak is answered `forbidden`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, bindparam, select

from remote.protocol.errors import Forbidden, NotFound, Refused
from remote.protocol.messages import Role
from server.metadata.records import slices
from server.metadata.schema import drives, files, grants
from server.permissions.caller import Caller
from server.permissions.lineage import ABOVE, IS_ABOVE, Lineage

_RANK: Final[dict[Role, int]] = {"viewer": 1, "editor": 2, "owner": 3}

_FILES = select(files, drives.c.owner, drives.c.root).join(drives, files.c.drive == drives.c.id)
_FILE = _FILES.where(files.c.id == bindparam("id"))
_SEVERAL = _FILES.where(files.c.id.in_(bindparam("ids", expanding=True)))

_GRANTED = select(grants.c.role).where(
    grants.c.account == bindparam("account"), grants.c.file.in_(ABOVE)
)


def find(conn: Connection, file: str) -> Row[Any] | None:
    """The row of `file` with its drive's `owner` and `root`; no access is checked."""
    return conn.execute(_FILE, {"id": file}).first()


def find_all(conn: Connection, ids: Iterable[str]) -> dict[str, Row[Any]]:
    """The same of many: those that are there, by their ids."""
    rows = (conn.execute(_SEVERAL, {"ids": some}) for some in slices(ids))
    return {row.id: row for page in rows for row in page}


def above(file: str) -> Select[str]:
    """A query for `file` and every directory above it, over all links, to ask others with: there
    may be more of them than a statement has parameters."""
    return ABOVE.params(id=file)


def ancestors(conn: Connection, file: str) -> set[str]:
    """`file` and every directory above it, over all links."""
    return set(conn.execute(ABOVE, {"id": file}).scalars())


def is_below(conn: Connection, file: str, directory: str) -> bool:
    """True if `file` is `directory`, or below it by one of its names."""
    return conn.execute(IS_ABOVE, {"id": file, "directory": directory}).first() is not None


def role_of(
    conn: Connection, caller: Caller, file: Any | str, lineage: Lineage | None = None
) -> Role | None:
    """The role of `caller` on `file` (an id, or a row from `find`); None: none. `lineage` is what
    the transaction remembers of the tree, where it asks more than once."""
    row = find(conn, file) if isinstance(file, str) else file
    if row is None:
        return None
    if caller.folder is not None:
        if row.owner != caller.account:
            return None
        if lineage is None:
            reaches = is_below(conn, row.id, caller.folder)
        else:
            reaches = caller.folder in lineage.above(row.id)
        return "editor" if reaches else None
    if row.owner == caller.account:
        return "owner"
    if row.links == 0:
        return None
    granted: Iterable[Role]
    if lineage is None:
        granted = conn.execute(_GRANTED, {"id": row.id, "account": caller.account}).scalars()
    else:
        roles = lineage.granted(caller.account, row.drive)
        granted = [roles[item] for item in lineage.above(row.id) if item in roles] if roles else ()
    return max(granted, key=_RANK.__getitem__, default=None)


def entrance(conn: Connection, caller: Caller, place: str) -> str:
    """The topmost directory at or above directory `place` on which the caller has a role: what they
    see of the drive from there."""
    if caller.folder is not None:
        return caller.folder
    above = ancestors(conn, place)
    given = select(grants.c.file).where(grants.c.account == caller.account)
    found = above.intersection(conn.execute(given).scalars())
    return min(found, key=lambda each: len(ancestors(conn, each)), default=place)


def owns_drive(caller: Caller, drive: str) -> bool:
    """True if everything in `drive` is the caller's to see: what is not may not be told apart from
    what is not there."""
    return caller.drive == drive and caller.folder is None


def require_whole(caller: Caller) -> None:
    """Raise `Refused(Forbidden)` unless the token may do everything its account may."""
    if caller.scope != "full" or caller.folder is not None:
        raise Refused(Forbidden(message="this token is for less; log in to do that"))


def require(
    conn: Connection, caller: Caller, file: str, need: Role, lineage: Lineage | None = None
) -> Row[Any]:
    """The row of `file` if `caller` has at least role `need` on it. `lineage` as in `role_of`.

    Raises `Refused` with NotFound (no role, or no such file) or Forbidden (a weaker role, or a
    token that may only read).
    """
    row = find(conn, file)
    role = None if row is None else role_of(conn, caller, row, lineage)
    _check(caller, file, role, need)
    assert row is not None
    return row


def check(
    conn: Connection, caller: Caller, file: str, row: Any | None, need: Role, lineage: Lineage
) -> None:
    """As `require`, for who has the row of `file`, or knows that there is none (None)."""
    _check(caller, file, None if row is None else role_of(conn, caller, row, lineage), need)


def _check(caller: Caller, file: str, role: Role | None, need: Role) -> None:
    if role is None:
        raise Refused(NotFound(message=f"there is no file {file}"))
    if _RANK[role] < _RANK[need]:
        raise Refused(Forbidden(message=f"a {role} may not change this; ask its owner"))
    if need != "viewer" and caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))
