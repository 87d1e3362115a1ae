"""Grants: giving, taking back and listing grants.

Knows: who may share what with whom, and whom to tell. Must not know: how a grant reaches down the
tree (`access`), how shared files are shown (`views`), HTTP.

The rules: only the owner of a drive shares what is in it; an editor may not share on, nor make
links. A directory or a regular file is shared, never a symlink, and never the whole drive. A grant
follows its file through renames and moves, sleeps while the file is in the trash, and ends with it.
Who was given something may leave it. Of a file with several names, the one by which it was shared
is told, as it is by now (`Mutation.follow`); when that entry goes, what it was called last. Who
loses a share, or may only read by now, loses the uploads they have under way in its drive (also
when it was deleted for good: `purge`).

A share appears at once and unasked, and costs whom it is given to something with every request. So
there is a bound on what one account is given by all others, and a lower one on what it is given by
those whom it does not know, one by one and together: strangers fill neither its view nor the room
of its friends. An account knows those with whom it has shared something itself.

Every function is called in a write transaction (but `list_grants`) and returns the news to publish
after the commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from remote.protocol.account_messages import Entry, Grant, Invite, SharesReply
from remote.protocol.errors import BadRequest, NotFound, RateLimited, Refused, Stale, TooLarge
from server.accounts import accounts
from server.changes.fanout import News, account_topic
from server.drive import remaining
from server.http.rate_limits import TokenBuckets
from server.metadata.schema import accounts as people
from server.metadata.schema import drives, entries, files, grants
from server.permissions import access, audit
from server.permissions.caller import Caller
from server.permissions.lineage import ABOVE
from server.uploads import sessions

# Files that one account may share with one other: what is shared is told as one list.
MAX_SHARED_WITH_ONE = 200
MAX_GRANTS_ON_ONE = 1000
# Files that one account is given by all others.
MAX_GIVEN = 2000
# Files that one account is given by another that it does not know.
MAX_FROM_STRANGER = 40
# Files that one account is given by all whom it does not know.
MAX_FROM_STRANGERS = 400
# Grants in one answer, the nearest first.
MAX_TOLD = 10_000

_GRANTS = (
    select(grants, people.c.name.label("account_name"), people.c.name_key)
    .join(people, grants.c.account == people.c.id)
    .order_by(grants.c.file != bindparam("id"), people.c.name_key, grants.c.file)
)


_known = grants.alias("known")


class NoSuchAccount(Refused):
    """A name that is no account's was shared with. Who tries many names finds out which are."""


class Pace:
    """A limit on the rate at which strangers share with one account: a burst for each of them, ten
    times that for all of them together, refilled one in `seconds` each. `clock` tells seconds.

    Concurrency: the write thread.
    """

    def __init__(
        self, burst: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._one = TokenBuckets(burst, seconds)
        self._all = TokenBuckets(10 * burst, seconds / 10)

    def check(self, giver: str, given: str) -> None:
        """`giver`, a stranger, shares with `given`. Raises `Refused(RateLimited)`."""
        now = self._clock()
        wait = self._one.take((giver, given), now) or self._all.take(given, now)
        if wait:
            message = f"they do not know you; share more with them in {max(1.0, wait):.0f} s"
            raise Refused(RateLimited(message=message, retry_after_seconds=round(wait, 3)))


def share(
    conn: Connection,
    caller: Caller,
    file: str,
    users: Sequence[Invite],
    now_ns: int,
    entry: Entry | None = None,
    pace: Pace | None = None,
) -> list[News]:
    """Give each of `users` their role on `file`, told by its name `entry`. Raises `Refused`; then
    nobody was given one.

    That is `NoSuchAccount` for a name that is no account's, TooLarge where there is no room for
    more, RateLimited for strangers who share faster than `pace`.
    """
    row = _shareable(conn, caller, file)
    told = shared_entry(conn, file, entry)
    head = select(drives.c.head_seq).where(drives.c.id == row.drive)
    head_seq = conn.execute(head).scalar_one()
    news = []
    for user in users:
        account = _other_account(conn, caller, user.account)
        is_known = _knows(conn, account, caller.account)
        if pace is not None and not is_known:
            pace.check(caller.account, account)
        mine = (grants.c.file == file) & (grants.c.account == account)
        # Another role is no other grant: when it was given decides names, and what is known.
        changed = {"role": user.role} | (told if entry is not None else {})
        if conn.execute(update(grants).where(mine).values(**changed)).rowcount:
            if user.role != "editor":
                sessions.end_of_account(conn, row.drive, account)
        else:
            _check_room(conn, row, account, is_known)
            given = {"file": file, "account": account, "role": user.role, "since_seq": head_seq}
            by = {"granted_by": caller.account, "at_ns": now_ns}
            conn.execute(insert(grants), given | by | told)
        audit.note(conn, caller, "share", file, now_ns, account=account, role=user.role)
        news.append(News(account_topic(account)))
    return news


def shared_entry(conn: Connection, file: str, wanted: Entry | None) -> dict[str, str]:
    """The entry by which a file in the tree is shared, as columns of `grants` and `links` (as it
    is, and as it was when that was given): the one that is `wanted`, else the one that has been
    there longest.

    Raises `Refused(Stale)` when what is wanted is no entry of the file.
    """
    query = select(entries.c.parent.label("place"), entries.c.name).where(entries.c.file == file)
    if wanted is not None:
        query = query.where(entries.c.parent == wanted.parent, entries.c.name == wanted.name)
    row = conn.execute(query.order_by(entries.c.rev, entries.c.parent, entries.c.name)).first()
    if row is None:
        message = "the file has not this name any more; look what it is called, and share it then"
        raise Refused(Stale(message=message))
    return dict(row._mapping) | {"given_place": row.place, "given_name": row.name}


def given_as(row: Row[Any]) -> Entry | None:
    """The entry of this row of `grants` or `links` as it was when it was given, if that is known
    and it is another by now: it was renamed, or is in another directory."""
    was = (row.given_place, row.given_name)
    if None in was or was == (row.place, row.name):
        return None
    return Entry(*was)


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
    drive = conn.execute(select(files.c.drive).where(files.c.id == file)).scalar_one()
    sessions.end_of_account(conn, drive, str(account))
    audit.note(conn, caller, "unshare", file, now_ns, account=account)
    return [News(account_topic(str(account)))]


def list_grants(conn: Connection, caller: Caller, file: str) -> SharesReply:
    """The grants at and above `file`, nearest first: all of them for the drive's owner, for others
    their own. And for the owner what of `file` is reached otherwise."""
    row = access.require(conn, caller, file, "viewer")
    query = _GRANTS.where(grants.c.file.in_(ABOVE)).limit(MAX_TOLD)
    is_owner = access.owns_drive(caller, row.drive)
    if not is_owner:
        query = query.where(grants.c.account == caller.account)
    found = conn.execute(query, {"id": file}).all()
    by = {item.granted_by for item in found} | {row.owner}
    named = select(people.c.id, people.c.name).where(people.c.id.in_(by))
    names = {item.id: item.name for item in conn.execute(named)}
    told = [
        Grant(
            file=item.file,
            account=item.account_name,
            role=item.role,
            granted_by=names[item.granted_by],
            at_ns=item.at_ns,
            was=given_as(item) if is_owner else None,  # others may not know that directory
        )
        for item in found
    ]
    reply = SharesReply(owner=names[row.owner], grants=told)
    if row.kind == "directory" and is_owner:
        reply.reached, reply.more_reached = remaining.remaining(conn, file, row.drive)
    return reply


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
        raise NoSuchAccount(NotFound(message=f"there is no account {name!r} on this server"))
    if account == caller.account:
        raise Refused(BadRequest(message="that is your own account; name another"))
    return account


def _knows(conn: Connection, account: str, other: str) -> bool:
    """True if `account` has shared something with `other` itself."""
    given = select(grants.c.file).where(grants.c.account == other, grants.c.granted_by == account)
    return conn.execute(given.limit(1)).first() is not None


def _check_room(conn: Connection, row: Row[Any], account: str, is_known: bool) -> None:
    def check(which: Select[Any], most: int, message: str) -> None:
        if conn.execute(which).scalar_one() >= most:
            raise Refused(TooLarge(message=message))

    count = select(func.count()).select_from(grants)
    on_file = count.where(grants.c.file == row.id)
    check(on_file, MAX_GRANTS_ON_ONE, f"a file is shared with at most {MAX_GRANTS_ON_ONE}")
    to_one = count.join(files, grants.c.file == files.c.id)
    to_one = to_one.where(files.c.drive == row.drive, grants.c.account == account)
    folder = "files are shared with one account; share a folder"
    check(to_one, MAX_SHARED_WITH_ONE, f"at most {MAX_SHARED_WITH_ONE} {folder}")
    given = count.where(grants.c.account == account)
    full = "they have been given as much as there is room for; ask them to leave some of it"
    check(given, MAX_GIVEN, full)
    if not is_known:
        first = "they do not know you; ask them to share something with you first"
        check(to_one, MAX_FROM_STRANGER, f"at most {MAX_FROM_STRANGER} {folder}, or {first}")
        check(_from_strangers(account), MAX_FROM_STRANGERS, f"they have no room left, and {first}")


def _from_strangers(account: str) -> Select[Any]:
    """The number of files that `account` is given by others with whom it has shared nothing."""
    back = exists().where(_known.c.account == grants.c.granted_by, _known.c.granted_by == account)
    return select(func.count()).select_from(grants).where(grants.c.account == account, ~back)
