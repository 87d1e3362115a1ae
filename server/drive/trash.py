"""The trash of a drive: what is in it, where that was, and emptying it.

Knows: what was deleted together, how that is shown, in which order it goes. Must not know: how long
things are kept (`retention`), how they come back (`tree.recover`), HTTP.

A file is in the trash from the moment its last name goes. Deleting a directory means deleting what
is in it first, so "deleted with its directory" is told by time: a file whose last name was in that
directory and went at most `TOGETHER_NS` before it. Those are shown inside it, and go with it.
Files without a place (their content went on as another file's) are not shown; they go when
everything goes, and when their time has come.

The trash is its owner's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
)

from remote.protocol.account_messages import EmptiedReply, TrashItem, TrashPage
from remote.protocol.errors import NotADirectory, Refused
from remote.protocol.messages import MAX_LEVELS, MAX_PATH_BYTES
from server.changes.fanout import News
from server.drive import purge
from server.drive.listing import read_mark, write_mark
from server.metadata.records import PAGE_BYTES, attributes, file_record, fitting, slices
from server.metadata.schema import drives, entries, files
from server.permissions import access, audit
from server.permissions.caller import Caller

TOGETHER_NS: Final = 10 * 60 * 10**9
MAX_ITEMS: Final = 200
# `inside` is not counted further: so many, or more.
MAX_INSIDE: Final = 1000
# Files that one call deletes for good, at most.
EMPTY_FILES: Final = 500
# Begins a path whose upper part is not known any more.
UNKNOWN: Final = "…/"
# Files that are deleted between two looks at the time.
_DROPPED: Final = 20
_MAX_TOLD: Final = 50

_directory = files.alias("directory")


def _together(file: FromClause, directory: FromClause) -> ColumnElement[bool]:
    """True where `file` was deleted with `directory`."""
    since = directory.c.trashed_ns - TOGETHER_NS
    return and_(
        file.c.drive == directory.c.drive,
        file.c.trashed_parent == directory.c.id,
        file.c.trashed_ns.between(since, directory.c.trashed_ns),
    )


_ALONE = (
    select(files)
    .outerjoin(_directory, _together(files, _directory))
    .where(
        files.c.drive == bindparam("drive"),
        files.c.trashed_ns.is_not(None),
        files.c.trashed_parent.is_not(None),
        _directory.c.id.is_(None),
    )
)
_ANY = select(files).where(
    files.c.drive == bindparam("drive"),
    files.c.trashed_ns.is_not(None),
    files.c.trashed_parent.is_not(None),
)
_FROM_LIVE = select(files).where(
    files.c.drive == bindparam("drive"),
    files.c.trashed_parent == bindparam("parent"),
    files.c.trashed_ns.is_not(None),
)
_WITH = (
    select(files)
    .join(_directory, _together(files, _directory))
    .where(_directory.c.id == bindparam("parent"), _directory.c.drive == bindparam("drive"))
)

_deleted = select(files.c.id, files.c.drive, files.c.trashed_ns)
_inside = _deleted.where(files.c.id == bindparam("top")).cte("inside", recursive=True)
_inside = _inside.union(_deleted.join(_inside, _together(files, _inside)))
_COUNT = select(func.count()).select_from(
    select(_inside.c.id).limit(bindparam("most")).subquery("first")
)


def page(
    conn: Connection,
    caller: Caller,
    keep_ns: int,
    parent: str | None,
    cursor: str | None,
    limit: int,
    *,
    name: str | None = None,
    ending: str | None = None,
) -> TrashPage:
    """Files that were deleted by themselves, newest first; with `parent`, a directory in the trash,
    those deleted with it; with one that is in the tree, all that were deleted from it. With `name`
    only those called so. With `ending` instead of them: all in the trash, also with a directory,
    whose id ends so (hex digits).

    `keep_ns` is how long the trash is kept. Raises `Refused` with Forbidden, NotFound or
    NotADirectory.
    """
    access.require_whole(caller)
    limit = max(1, min(limit, MAX_ITEMS))
    if ending is not None:
        query = _ANY.where(files.c.id.like("%" + ending))
    else:
        query = _ALONE if parent is None else _of_directory(conn, caller, parent)
    if name is not None:
        query = query.where(files.c.trashed_name == name)
    if cursor is not None:
        at, last = read_mark(cursor, tuple[int, str])
        same = and_(files.c.trashed_ns == at, files.c.id < last)
        query = query.where(or_(files.c.trashed_ns < at, same))
    query = query.order_by(files.c.trashed_ns.desc(), files.c.id.desc()).limit(limit + 1)
    found = conn.execute(query, {"drive": caller.drive, "parent": parent}).all()
    shown = found[: fitting(conn, [item.id for item in found[:limit]])]
    items = _items(conn, caller.drive, shown, keep_ns)
    more = len(found) > len(items)
    mark = write_mark((items[-1].trashed_ns, items[-1].file.id)) if more else None
    return TrashPage(items=items, next=mark)


def _of_directory(conn: Connection, caller: Caller, parent: str) -> Any:
    row = access.require(conn, caller, parent, "owner")
    if row.kind != "directory":
        raise Refused(NotADirectory(message=f"{parent} is a {row.kind}"))
    return _FROM_LIVE if row.links else _WITH


def _items(conn: Connection, drive: str, rows: Sequence[Row[Any]], keep_ns: int) -> list[TrashItem]:
    """As many of `rows`, from the first, as a page has room for paths; at least one."""
    attrs = attributes(conn, [row.id for row in rows])
    paths, size = _Paths(conn, drive), 0
    items: list[TrashItem] = []
    for row in rows:
        path = paths.of(row.trashed_parent) + row.trashed_name
        size += len(path.encode())
        if items and size > PAGE_BYTES:
            break
        item = TrashItem(
            file=file_record(row, attrs.get(row.id, {})),
            path=path,
            parent=row.trashed_parent,
            name=row.trashed_name,
            trashed_ns=row.trashed_ns,
            expires_ns=row.trashed_ns + keep_ns,
            inside=_count_inside(conn, row),
        )
        items.append(item)
    return items


def _count_inside(conn: Connection, row: Row[Any]) -> int:
    if row.kind != "directory":
        return 0
    with_itself: int = conn.execute(_COUNT, {"top": row.id, "most": MAX_INSIDE + 1}).scalar_one()
    return with_itself - 1


# --- paths --------------------------------------------------------------------------------------

_parent = func.coalesce(entries.c.parent, files.c.trashed_parent).label("parent")
_name = func.coalesce(entries.c.name, files.c.trashed_name).label("name")
_up = (
    select(files.c.id, _parent, _name, literal(1).label("level"))
    .outerjoin(entries, entries.c.file == files.c.id)
    .where(files.c.id == bindparam("id"), files.c.drive == bindparam("drive"))
    .cte("up", recursive=True)
)
_up = _up.union_all(
    select(files.c.id, _parent, _name, _up.c.level + 1)
    .join_from(_up, files, files.c.id == _up.c.parent)
    .outerjoin(entries, entries.c.file == files.c.id)
    .where(_up.c.level <= MAX_LEVELS, files.c.drive == bindparam("drive"))
)
_UP = select(_up).order_by(_up.c.level)


class _Paths:
    """Paths of directories of one drive from its root, through the trash where they are there.

    One question for each directory, however deep it is. The trash may be deeper than any tree: what
    was moved before it was deleted makes a chain of places that never were one path. So a path has
    at most `MAX_LEVELS` names and `MAX_PATH_BYTES`.
    """

    def __init__(self, conn: Connection, drive: str) -> None:
        self._conn, self._drive = conn, drive
        root = conn.execute(select(drives.c.root).where(drives.c.id == drive)).scalar_one()
        self._root: str = root
        self._known: dict[str, str] = {}

    def of(self, directory: str) -> str:
        """With a slash at the end; empty for the root. Begins with `UNKNOWN` where the directories
        above have been deleted for good, or are too many."""
        if directory not in self._known:
            self._known[directory] = self._climb(directory)
        return self._known[directory]

    def _climb(self, directory: str) -> str:
        names, size, start = list[str](), 0, UNKNOWN
        for row in self._conn.execute(_UP, {"id": directory, "drive": self._drive}):
            if row.id == self._root:
                start = ""
                break
            if row.parent is None or len(names) == MAX_LEVELS:
                break
            size += len(row.name.encode()) + 1
            if size > MAX_PATH_BYTES:
                break
            names.append(row.name)
        return start + "".join(f"{name}/" for name in reversed(names))


# --- emptying -----------------------------------------------------------------------------------

_ALL = (
    select(files.c.id)
    .where(files.c.drive == bindparam("drive"), files.c.trashed_ns.is_not(None))
    .order_by(files.c.trashed_ns)
    .limit(bindparam("room"))
)
_THESE = select(files.c.id, files.c.kind).where(
    files.c.id.in_(bindparam("ids", expanding=True)),
    files.c.drive == bindparam("drive"),
    files.c.trashed_ns.is_not(None),
)
_CHILDREN = (
    select(files.c.id, files.c.kind)
    .join(_directory, _together(files, _directory))
    .where(_directory.c.id == bindparam("parent"), _directory.c.drive == bindparam("drive"))
    .limit(bindparam("room"))
)


def empty(
    conn: Connection,
    caller: Caller,
    wanted: list[str] | None,
    now_ns: int,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[Sequence[News], EmptiedReply]:
    """Delete for good these files of the caller's trash with what was deleted with them, or all.
    When `is_over` says that the time for that is over, some.

    What is not in the caller's trash is passed over: the same is sent again while there is `more`.
    Returns the news to publish after the commit, too. Raises `Refused(Forbidden)`.
    """
    access.require_whole(caller)
    if wanted is None:
        ids = list(conn.execute(_ALL, {"drive": caller.drive, "room": EMPTY_FILES + 1}).scalars())
        ids, more = ids[:EMPTY_FILES], len(ids) > EMPTY_FILES
    else:
        ids, more = _from_below(conn, caller.drive, wanted)
    gone, news = _drop(conn, caller, ids, now_ns, is_over)
    more = more or gone < len(ids)
    if gone:
        of = "everything" if wanted is None else wanted[:_MAX_TOLD]
        subject = wanted[0] if wanted is not None and len(wanted) == 1 else None
        audit.note(conn, caller, "trash_empty", subject, now_ns, files=gone, of=of, more=more)
    return news, EmptiedReply(files=gone, more=more)


def _drop(
    conn: Connection, caller: Caller, ids: list[str], now_ns: int, is_over: Callable[[], bool]
) -> purge.Dropped:
    """Delete files for good, some at least, from the front."""
    gone, news = 0, dict[News, None]()
    for part in slices(ids, _DROPPED):
        dropped = purge.drop_files(conn, caller, part, now_ns)
        gone += dropped.files
        news |= dict.fromkeys(dropped.news)
        if dropped.files < len(part) or is_over():
            break
    return purge.Dropped(gone, tuple(news))


def _from_below(conn: Connection, drive: str, wanted: list[str]) -> tuple[list[str], bool]:
    """The first files to go: what was deleted with a directory before the directory itself, which
    is how it is known. And whether there are others."""
    found: dict[str, None] = {}
    stack: list[tuple[str, bool]] = []
    for part in slices(dict.fromkeys(wanted)):
        rows = conn.execute(_THESE, {"ids": part, "drive": drive})
        stack += [(row.id, row.kind == "directory") for row in rows]
    while stack and len(found) < EMPTY_FILES:
        id, is_closed = stack.pop()
        if not is_closed:
            found[id] = None
            continue
        stack.append((id, False))
        room = EMPTY_FILES - len(found)
        rows = conn.execute(_CHILDREN, {"parent": id, "drive": drive, "room": room})
        stack += [(row.id, row.kind == "directory") for row in rows]
    return list(found), bool(stack)
