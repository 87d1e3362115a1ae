"""fsck of accounts, drives, files, entries, the trash and the feed.

Knows: the invariants of the tables that make up the tree. Must not know: content (`fsck_content`).

Each check is one pass of the database over a table and yields what it found; a fix looks again in
its own transaction, because the server may run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, literal, or_, select, update

from remote.protocol.errors import Refused
from server.changes.fanout import drive_topic
from server.drive import depth
from server.drive.depth import Below
from server.drive.rules import check_name
from server.maintenance.fsck_findings import Finding, Fix, Found, Names
from server.metadata.db import damage
from server.metadata.schema import accounts, changes, drives, entries, files
from server.permissions.lineage import Lineage

RESTORE = "restore a backup, or look at the rows by hand with sqlite3 while the server is stopped"
REPAIR = "run fsck with --repair"

# --- the whole database -------------------------------------------------------------------------


def check_database(conn: Connection, names: Names) -> Iterator[Found]:
    """Pages, indexes and foreign keys."""
    for line in damage(conn):
        yield Found(Finding("database", line, RESTORE))


def check_drives(conn: Connection, names: Names) -> Iterator[Found]:
    """Every account has a drive, and every drive a root."""
    without = select(accounts.c.name).where(accounts.c.id.not_in(select(drives.c.owner)))
    for name in conn.execute(without).scalars():
        what = f"account {name} has no drive"
        yield Found(Finding("account", what, RESTORE, account=name))
    root = select(drives.c.id, drives.c.root, files.c.kind, files.c.drive, files.c.trashed_ns)
    named = select(entries.c.file).where(entries.c.file == drives.c.root).exists()
    query = root.outerjoin_from(drives, files, files.c.id == drives.c.root).where(
        or_(
            files.c.id.is_(None),
            files.c.kind != "directory",
            files.c.drive != drives.c.id,
            files.c.trashed_ns.is_not(None),
            named,
        )
    )
    for row in conn.execute(query):
        what = f"the root {row.root} of the drive is missing, or no directory of its own"
        yield Found(Finding("root", what, RESTORE, account=names.account(row.id), file=row.root))


def check_feed(conn: Connection, names: Names) -> Iterator[Found]:
    """A drive's changes are consecutive, from the last pruned one to the head."""
    count, last = func.count(changes.c.seq), func.max(changes.c.seq)
    told = select(count.label("number"), last.label("last")).where(
        changes.c.topic == bindparam("topic"), changes.c.seq > bindparam("floor")
    )
    newest = select(func.max(files.c.rev)).where(files.c.drive == bindparam("drive"))
    for drive in conn.execute(select(drives)).all():
        floor, head = drive.floor_seq, drive.head_seq
        row = conn.execute(told, {"topic": drive_topic(drive.id), "floor": floor}).one()
        rev = conn.execute(newest, {"drive": drive.id}).scalar() or 0
        if floor > head or rev > head or row.number != head - floor or row.last not in (None, head):
            what = (
                f"the feed has {row.number} changes up to {row.last} after {floor}, files up to"
                f" {rev}, but its head is {head}"
            )
            yield Found(Finding("feed", what, RESTORE, account=names.account(drive.id)))


# --- links and trash ----------------------------------------------------------------------------

_named = (
    select(entries.c.file, func.count().label("number")).group_by(entries.c.file).subquery("named")
)
_count = case((drives.c.root == files.c.id, 1), else_=func.coalesce(_named.c.number, 0))
_LINKS = (
    select(files.c.id, files.c.links, _count.label("number"))
    .join_from(files, drives, files.c.drive == drives.c.id)
    .outerjoin(_named, _named.c.file == files.c.id)
    .where(files.c.links != _count)
)
_TRASH = select(files.c.id, files.c.links, files.c.ctime_ns, files.c.drive).where(
    or_(
        (files.c.links == 0) != files.c.trashed_ns.is_not(None),
        files.c.trashed_parent.is_(None) != files.c.trashed_name.is_(None),
        files.c.trashed_ns.is_(None) & files.c.trashed_name.is_not(None),
    )
)


def check_links(conn: Connection, names: Names) -> Iterator[Found]:
    """`links` counts the names. A file that lost its names unnoticed is put into the trash."""
    for row in conn.execute(_LINKS).all():
        what = f"has {row.number} names, but says {row.links}"
        finding = names.finding("links", what, REPAIR, row.id)
        yield Found(finding, _file_fix(_LINKS, row.id, _fix_links))


def _fix_links(conn: Connection, row: Row[Any]) -> None:
    conn.execute(update(files).where(files.c.id == row.id).values(links=row.number))
    left = conn.execute(_TRASH.where(files.c.id == row.id)).first()
    if left is not None:
        _fix_trash(conn, left)


def check_trash(conn: Connection, names: Names) -> Iterator[Found]:
    """In the trash is what has no name, and says where it was."""
    for row in conn.execute(_TRASH).all():
        what = "is half in the trash: its links and where it was deleted from contradict each other"
        finding = names.finding("trash", what, REPAIR, row.id)
        yield Found(finding, _file_fix(_TRASH, row.id, _fix_trash))


def _fix_trash(conn: Connection, row: Any) -> None:
    values: dict[str, Any] = dict.fromkeys(("trashed_ns", "trashed_parent", "trashed_name"))
    if row.links == 0:
        root = select(drives.c.root).where(drives.c.id == row.drive)
        values = {
            "trashed_ns": row.ctime_ns,
            "trashed_parent": conn.execute(root).scalar(),
            "trashed_name": f"found-by-fsck-{row.id}",
        }
    conn.execute(update(files).where(files.c.id == row.id).values(**values))


def _file_fix(query: Any, file: str, fix: Callable[[Connection, Row[Any]], None]) -> Fix:
    """Fix the row of `query` that is about `file`, if there still is one."""

    def again(conn: Connection) -> bool:
        row = conn.execute(query.where(files.c.id == file)).first()
        if row is not None:
            fix(conn, row)
        return True

    return again


# --- entries ------------------------------------------------------------------------------------

_above = files.alias("above")


def check_entries(conn: Connection, names: Names) -> Iterator[Found]:
    """Names are in directories of the same drive that are in the tree; a directory has one name."""
    what = case(
        (_above.c.kind != "directory", "is in something that is no directory"),
        (_above.c.drive != files.c.drive, "is in a directory of another drive"),
        (_above.c.links == 0, "is in a directory that was deleted"),
    )
    query = (
        select(entries.c.file, what.label("what"))
        .join_from(entries, files, files.c.id == entries.c.file)
        .join(_above, _above.c.id == entries.c.parent)
        .where(what.is_not(None))
    )
    several = (
        select(entries.c.file, literal("is a directory with several names").label("what"))
        .join(files, files.c.id == entries.c.file)
        .where(files.c.kind == "directory")
        .group_by(entries.c.file)
        .having(func.count() > 1)
    )
    for row in conn.execute(query.union_all(several)).all():
        yield Found(names.finding("entry", row.what, RESTORE, row.file))


def check_names(conn: Connection, names: Names) -> Iterator[Found]:
    """Names that nobody could have made."""
    roots = set(conn.execute(select(drives.c.root)).scalars())
    for row in conn.execute(select(entries.c.parent, entries.c.name, entries.c.file)):
        try:
            check_name(row.name, at_root=row.parent in roots)
        except Refused as error:
            what = f"has a name that is none: {error.problem.message}"
            yield Found(names.finding("name", what, "rename it", row.file))


_DEPTH = (
    select(
        entries.c.file,
        entries.c.parent,
        entries.c.name,
        files.c.below_levels,
        files.c.below_bytes,
        _above.c.below_levels.label("outer_levels"),
        _above.c.below_bytes.label("outer_bytes"),
    )
    .join_from(entries, files, files.c.id == entries.c.file)
    .join(_above, _above.c.id == entries.c.parent)
    .where(files.c.kind == "directory")
)


def check_depth(conn: Connection, names: Names) -> Iterator[Found]:
    """Each directory knows how far those in it reach."""
    for row in conn.execute(_DEPTH):
        if not _is_known(row):
            what = "reaches further down than the directory it is in knows"
            fix = _deepen(row.file)
            yield Found(names.finding("depth", what, REPAIR, row.file), fix)


def _is_known(row: Any) -> bool:
    outer = Below(row.outer_levels, row.outer_bytes)
    return outer.joined(Below.of(row).under(row.name)) == outer


def _deepen(file: str) -> Fix:
    """Tell it to every directory above."""

    def fix(conn: Connection) -> bool:
        for row in conn.execute(_DEPTH.where(entries.c.file == file)).all():
            depths = depth.StoredDepths(conn)
            depth.deepen(depths, Lineage(conn), row.parent, row.name, Below.of(row))
        return True

    return fix


_down = select(drives.c.root.label("id")).cte("down", recursive=True)
_down = _down.union(select(entries.c.file).where(entries.c.parent == _down.c.id))


def check_reachable(conn: Connection, names: Names) -> Iterator[Found]:
    """Everything with a name is below its drive's root: no cycles, no islands."""
    lost = select(files.c.id).where(files.c.links > 0, files.c.id.not_in(select(_down.c.id)))
    named = select(entries.c.file)
    for id in conn.execute(lost.where(files.c.id.in_(named))).scalars().all():
        what = "cannot be reached from the root: it is in a loop, or below one"
        yield Found(names.finding("unreachable", what, RESTORE, id))


CHECKS: tuple[Callable[[Connection, Names], Iterator[Found]], ...] = (
    check_database,
    check_drives,
    check_feed,
    check_links,
    check_trash,
    check_entries,
    check_names,
    check_depth,
    check_reachable,
)
