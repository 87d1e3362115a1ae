"""Who reaches a place: the roots at or above it.

Knows: what a root is: a file with a grant, with a link that is good, or that is the folder of a
token that is good. Must not know: what an operation does with that (`drive.mutation`,
`drive.names`).

Whoever comes to a file without owning its drive comes through a root, so two places with the same
roots are reached by the same people. Only the drive's owner may give a file a name where that
changes.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, or_, select, union

from server.metadata.schema import devices, grants, links
from server.people.lineage import ABOVE

_ROOTS = union(
    select(grants.c.file).where(grants.c.file.in_(ABOVE)),
    *(
        select(column).where(
            column.in_(ABOVE),
            table.c.revoked_ns.is_(None),
            or_(table.c.expires_ns.is_(None), table.c.expires_ns > bindparam("now")),
        )
        for table, column in ((links, links.c.file), (devices, devices.c.folder))
    ),
)


def reach_of(conn: Connection, place: str, now_ns: int) -> frozenset[str]:
    """The roots at or above `place`, a file or directory, over all its names."""
    return frozenset(conn.execute(_ROOTS, {"id": place, "now": now_ns}).scalars())
