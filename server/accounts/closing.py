"""Locking an account, and removing it.

Knows: what ends with a lock and with a removal, and what stays. Must not know: how a drive is
emptied (`maintenance.account_removal`), HTTP.

A locked account is refused at its next request, with every token and with its password; its links
do not open. Nothing else changes: its files stay, what it shares with other accounts they go on
using, and what was shared with it is there again when it is unlocked.

A removed account is locked for good, and its drive is emptied. In the same moment end its tokens,
its links, what it shared and what was shared with it. Its row stays, for the histories and the
audit log that name it, and so does its name: nobody is given a name under which others knew
somebody else. What it wrote into drives of others is theirs and stays.

These functions are for the machine's administrator, as in `accounts`, and work beside a running
server, which notices them (`maintenance.admin_watch`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from server.accounts.accounts import account_id, is_good, opened
from server.accounts.devices import revoke_all
from server.metadata.schema import accounts, devices, drives, files, grants, links
from server.permissions import audit
from server.uploads import sessions


class Leaving(NamedTuple):
    """Everything that a removal ends: `files` (with those in the trash) and `used_bytes` of the
    drive, links that open, tokens that are good, files shared with others (`shared`) and by others
    (`received`).
    """

    name: str
    files: int
    used_bytes: int
    links: int
    devices: int
    shared: int
    received: int


def lock(data_dir: Path, name: str) -> None:
    """Refuse the account from its next request on. Twice is no error. Raises `AccountUnknown`."""
    _set_lock(data_dir, name, "account_lock", time.time_ns())


def unlock(data_dir: Path, name: str) -> None:
    """Let the account in again. Raises `AccountUnknown`, also for one that was removed."""
    _set_lock(data_dir, name, "account_unlock", None)


def _set_lock(data_dir: Path, name: str, action: audit.Action, locked_ns: int | None) -> None:
    with opened(data_dir) as db, db.write() as conn:
        account = account_id(conn, name)
        values = {"locked_ns": locked_ns}
        conn.execute(update(accounts).where(accounts.c.id == account).values(**values))
        audit.note(conn, None, action, account, time.time_ns())


def leaving(data_dir: Path, name: str) -> Leaving:
    """Count what the removal of an account would end; of one that is removed and whose drive is not
    empty yet, what is left. Raises `AccountUnknown`."""
    with opened(data_dir) as db, db.read() as conn:
        account = account_id(conn, name, removed_too=True)
        return _leaving(conn, account, time.time_ns())


def remove(data_dir: Path, name: str) -> Leaving:
    """Lock the account for good and end what it has to do with others. Its drive is to be emptied
    (`maintenance.account_removal`). Twice is no error: then the drive is emptied on. Returns what
    `leaving` does. Raises `AccountUnknown`."""
    with opened(data_dir) as db, db.write() as conn:
        now_ns = time.time_ns()
        account = account_id(conn, name, removed_too=True)
        told = _leaving(conn, account, now_ns)
        this = accounts.c.id == account
        if conn.execute(select(accounts.c.removed_ns).where(this)).scalar() is None:
            conn.execute(update(accounts).where(this).values(locked_ns=now_ns, removed_ns=now_ns))
            audit.note(conn, None, "account_remove", account, now_ns, **told._asdict())
            _end(conn, account, now_ns)
        return told


def _end(conn: Connection, account: str, now_ns: int) -> None:
    drive = select(drives.c.id).where(drives.c.owner == account).scalar_subquery()
    revoke_all(conn, devices.c.account == account, now_ns)
    working = update(links).where(links.c.drive == drive, links.c.revoked_ns.is_(None))
    conn.execute(working.values(revoked_ns=now_ns))
    sessions.end_of_drive(conn, drive)
    ends = (grants.c.account == account) | (grants.c.granted_by == account)
    ended = conn.execute(delete(grants).where(ends).returning(grants.c.file, grants.c.account))
    for file, grantee in ended.all():
        audit.note(conn, None, "unshare", file, now_ns, account=grantee)


def _leaving(conn: Connection, account: str, now_ns: int) -> Leaving:
    row = conn.execute(
        select(accounts.c.name, drives.c.id, drives.c.root, drives.c.used_bytes)
        .join(drives, drives.c.owner == accounts.c.id)
        .where(accounts.c.id == account)
    ).one()
    opens = links.c.expires_ns.is_(None) | (links.c.expires_ns > now_ns)
    return Leaving(
        row.name,
        _count(conn, files.c.id, files.c.drive == row.id, files.c.id != row.root),
        row.used_bytes,
        _count(conn, links.c.id, links.c.drive == row.id, links.c.revoked_ns.is_(None), opens),
        _count(conn, devices.c.id, devices.c.account == account, is_good(now_ns)),
        _count(conn, grants.c.file, grants.c.granted_by == account),
        _count(conn, grants.c.file, grants.c.account == account),
    )


def _count(conn: Connection, column: Any, *which: Any) -> int:
    found: int = conn.execute(select(func.count(column)).where(*which)).scalar_one()
    return found
