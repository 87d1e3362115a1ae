"""The share table: giving, taking back and listing grants.

Knows: who may share what with whom, and whom to tell. Must not know: how a grant reaches down the
tree (`access`), how shared files are shown (`views`), HTTP.

The rules: only the owner of a drive shares what is in it; an editor may not share on, nor make
links. A directory or a regular file is shared, never a symlink, and never the whole drive. A grant
follows its file through renames and moves, sleeps while the file is in the trash, and ends with it.
Who was given something may leave it. Of a file with several names, the one by which it was shared
is told, as it is by now (`Mutation.follow`); when that entry goes, what it was called last.

Every function is called in a write transaction (but `list_grants`) and returns the news to publish
after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from remote.errors import BadRequest, NotFound, Refused, Stale, TooLarge
from remote.wire_account import Entry, Grant, Invite, SharesReply
from server.changes.fanout import News, account_topic
from server.metadata.schema import accounts as people
from server.metadata.schema import drives, entries, files, grants
from server.people import access, accounts, audit
from server.people.caller import Caller

MAX_SHARED_WITH_ONE = 200
"""Files that one account may share with one other: what is shared is told as one list."""
MAX_GRANTS_ON_ONE = 1000

_GRANTS = (
    select(grants, people.c.name.label("account_name"), people.c.name_key)
    .join(people, grants.c.account == people.c.id)
    .order_by(people.c.name_key)
)


def share(
    conn: Connection,
    caller: Caller,
    file: str,
    users: Sequence[Invite],
    now_ns: int,
    entry: Entry | None = None,
) -> list[News]:
    """Give each of `users` their role on `file`, told by its name `entry`. Raises `Refused`; then
    nobody was given one."""
    row = _shareable(conn, caller, file)
    told = shared_entry(conn, file, entry)
    head = select(drives.c.head_seq).where(drives.c.id == row.drive)
    head_seq = conn.execute(head).scalar_one()
    news = []
    for user in users:
        account = _other_account(conn, caller, user.account)
        _check_room(conn, row, account)
        mine = (grants.c.file == file) & (grants.c.account == account)
        # Another role is no other grant: when it was given decides names, and what is known.
        changed = {"role": user.role} | (told if entry is not None else {})
        if not conn.execute(update(grants).where(mine).values(**changed)).rowcount:
            given = {"file": file, "account": account, "role": user.role, "since_seq": head_seq}
            by = {"granted_by": caller.account, "at_ns": now_ns}
            conn.execute(insert(grants), given | by | told)
        audit.note(conn, caller, "share", file, now_ns, account=account, role=user.role)
        news.append(News(account_topic(account)))
    return news


def shared_entry(conn: Connection, file: str, wanted: Entry | None) -> dict[str, str]:
    """The entry by which a file in the tree is shared, as columns of `grants` and `links`: the one
    that is `wanted`, else the one that has been there longest.

    Raises `Refused(Stale)` when what is wanted is no entry of the file.
    """
    query = select(entries.c.parent.label("place"), entries.c.name).where(entries.c.file == file)
    if wanted is not None:
        query = query.where(entries.c.parent == wanted.parent, entries.c.name == wanted.name)
    row = conn.execute(query.order_by(entries.c.rev, entries.c.parent, entries.c.name)).first()
    if row is None:
        message = "the file has not this name any more; look what it is called, and share it then"
        raise Refused(Stale(message=message))
    return dict(row._mapping)


def unshare(
    conn: Connection, caller: Caller, file: str, account_name: str, now_ns: int
) -> list[News]:
    """Take the grant of an account on `file` back; its own grant anybody may give up.

    Raises `Refused(NotFound)` if there is no such grant.
    """
    access.require_whole(caller)
    account = _account(conn, account_name)
    if account is None or account != caller.account:
        access.require(conn, caller, file, "owner")
    gone = conn.execute(
        delete(grants).where(grants.c.file == file, grants.c.account == account)
    ).rowcount
    if not gone:
        raise Refused(NotFound(message=f"this file itself is not shared with {account_name!r}"))
    audit.note(conn, caller, "unshare", file, now_ns, account=account)
    return [News(account_topic(str(account)))]


def list_grants(conn: Connection, caller: Caller, file: str) -> SharesReply:
    """The grants at and above `file`, nearest first: all of them for the drive's owner, for others
    their own."""
    row = access.require(conn, caller, file, "viewer")
    query = _GRANTS.where(grants.c.file.in_(access.ancestors(conn, file)))
    if not access.owns_drive(caller, row.drive):
        query = query.where(grants.c.account == caller.account)
    found = sorted(conn.execute(query).all(), key=lambda each: each.file != file)
    by = {each.granted_by for each in found} | {row.owner}
    named = select(people.c.id, people.c.name).where(people.c.id.in_(by))
    names = {each.id: each.name for each in conn.execute(named)}
    told = [
        Grant(
            file=each.file,
            account=each.account_name,
            role=each.role,
            granted_by=names[each.granted_by],
            at_ns=each.at_ns,
        )
        for each in found
    ]
    return SharesReply(owner=names[row.owner], grants=told)


def _shareable(conn: Connection, caller: Caller, file: str) -> Row[Any]:
    row = access.require(conn, caller, file, "owner")
    access.require_whole(caller)
    if row.kind not in ("directory", "file"):
        raise Refused(BadRequest(message=f"a {row.kind} cannot be shared; share what holds it"))
    if row.id == row.root:
        raise Refused(BadRequest(message="the whole drive cannot be shared; share a directory"))
    if row.links == 0:
        raise Refused(NotFound(message="the file is in the trash; restore it first"))
    return row


def _account(conn: Connection, name: str) -> str | None:
    found = accounts.find_account(conn, name)
    return None if found is None else found[0]


def _other_account(conn: Connection, caller: Caller, name: str) -> str:
    account = _account(conn, name)
    if account is None:
        raise Refused(NotFound(message=f"there is no account {name!r} on this server"))
    if account == caller.account:
        raise Refused(BadRequest(message="that is your own account; name another"))
    return account


def _check_room(conn: Connection, row: Row[Any], account: str) -> None:
    on_file = select(func.count()).select_from(grants).where(grants.c.file == row.id)
    if conn.execute(on_file).scalar_one() >= MAX_GRANTS_ON_ONE:
        raise Refused(TooLarge(message=f"a file is shared with at most {MAX_GRANTS_ON_ONE}"))
    to_one = select(func.count()).select_from(grants).join(files, grants.c.file == files.c.id)
    to_one = to_one.where(files.c.drive == row.drive, grants.c.account == account)
    if conn.execute(to_one).scalar_one() >= MAX_SHARED_WITH_ONE:
        message = f"at most {MAX_SHARED_WITH_ONE} files are shared with one account; share a folder"
        raise Refused(TooLarge(message=message))
