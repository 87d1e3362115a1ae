"""People: their accounts, passwords and limits.

Knows: password hashing, what an account begins with, its quota and retention. Must not know: HTTP,
files, tokens (`tokens`, `devices`).

Invariants:
- An account has exactly one drive, made with it, in one transaction.
- Whoever asks with an unknown account name waits as long as with a wrong password.
- A name is never given a second time: an account that was removed (`closing`) keeps its row.

The functions that take a `data_dir` are for the machine's administrator: they open the data
directory themselves and work beside a running server. Each change is in the audit log, without an
account or a device: whoever can write the data needs neither.
"""

from __future__ import annotations

import functools
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, func, insert, select, update

from remote.protocol.ids import uuid7
from server import datadir
from server.metadata.db import Database
from server.metadata.schema import accounts, devices, drives, files
from server.permissions import audit

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")
# Bytes: more than any disk, and a column holds it.
MAX_LIMIT = 1 << 62
# Days and versions.
MAX_KEPT = 1_000_000
SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 1024
"""Characters of a new password; one that was set before this was asked is good as it is."""

# Argon2id with the second choice of RFC 9106, section 4, named here so that what a library prefers
# changes nothing by itself. Whoever logs in with a hash of others is given one of these.
HASHER = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4)


class AccountExists(ValueError):
    """There is an account of that name already (names differ by more than case)."""


class BadAccountName(ValueError):
    """An account name has 1 to 64 of A-Z a-z 0-9 . _ @ + - and begins with none of . @ + -"""


class BadPassword(ValueError):
    """Such a password is not taken; the message says why."""


class AccountUnknown(LookupError):
    """There is no account of that name in this data directory."""


class AccountInfo(NamedTuple):
    """An account as its administrator sees it. Bytes; `created_ns` in nanoseconds since 1970; None
    means no quota, or as the server's settings say. `devices` counts tokens that are still good."""

    name: str
    created_ns: int
    quota_bytes: int | None
    keep_days: int | None
    keep_versions: int | None
    used_bytes: int
    reserved_bytes: int
    devices: int
    locked_ns: int | None


# --- for the administrator ----------------------------------------------------------------------


def add_account(data_dir: Path, name: str, password: str) -> None:
    """Make account `name` with an empty drive in the server's data directory `data_dir`.

    Raises `AccountExists`, `BadAccountName`, `BadPassword`.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise BadAccountName(f"account name {name!r}: {BadAccountName.__doc__}")
    check_new_password(name, password)
    hashed = hash_password(password)
    with opened(data_dir) as db, db.write() as conn:
        _check_name(conn, name)
        now_ns = time.time_ns()
        account = insert_account(conn, name, hashed, now_ns)
        audit.note(conn, None, "account_add", account, now_ns, name=name)


def _check_name(conn: Connection, name: str) -> None:
    query = select(accounts.c.removed_ns).where(accounts.c.name_key == name.casefold())
    taken = conn.execute(query).first()
    if taken is not None and taken.removed_ns is not None:
        raise AccountExists(
            f"{name!r} was an account that was removed; its name is not given again"
        )
    if taken is not None:
        raise AccountExists(f"there is an account {name!r} already")


def set_account(
    data_dir: Path,
    name: str,
    *,
    quota_bytes: int | UnsetType | None = UNSET,
    keep_days: int | UnsetType | None = UNSET,
    keep_versions: int | UnsetType | None = UNSET,
) -> AccountInfo:
    """Change what is given of account `name`; None: no quota, or as the server's settings say.

    Returns how the account is then. Raises `AccountUnknown`, or ValueError for a number that
    cannot be.
    """
    wanted = {"quota_bytes": quota_bytes, "keep_days": keep_days, "keep_versions": keep_versions}
    values = {column: value for column, value in wanted.items() if value is not UNSET}
    for column, value in values.items():
        highest = MAX_LIMIT if column == "quota_bytes" else MAX_KEPT
        if isinstance(value, int) and not 0 <= value <= highest:
            raise ValueError(f"{column} is between 0 and {highest}")
    with opened(data_dir) as db, db.write() as conn:
        account, now_ns = account_id(conn, name), time.time_ns()
        if values:
            conn.execute(update(accounts).where(accounts.c.id == account).values(**values))
            audit.note(conn, None, "account_set", account, now_ns, **values)
        return _infos(conn, now_ns, accounts.c.id == account)[0]


def list_accounts(data_dir: Path) -> list[AccountInfo]:
    """Every account, by name."""
    with opened(data_dir) as db, db.read() as conn:
        return _infos(conn, time.time_ns())


def _infos(conn: Connection, now_ns: int, *which: Any) -> list[AccountInfo]:
    good = (
        select(func.count())
        .where(devices.c.account == accounts.c.id, is_good(now_ns))
        .scalar_subquery()
    )
    query = (
        select(
            accounts.c.name,
            accounts.c.created_ns,
            accounts.c.quota_bytes,
            accounts.c.keep_days,
            accounts.c.keep_versions,
            drives.c.used_bytes,
            drives.c.reserved_bytes,
            good,
            accounts.c.locked_ns,
        )
        .join(drives, drives.c.owner == accounts.c.id)
        .where(accounts.c.removed_ns.is_(None), *which)
        .order_by(accounts.c.name_key)
    )
    return [AccountInfo(*row) for row in conn.execute(query)]


def is_good(now_ns: int) -> Any:
    """The condition on `devices` that a token is neither revoked nor expired."""
    unexpired = devices.c.expires_ns.is_(None) | (devices.c.expires_ns > now_ns)
    return devices.c.revoked_ns.is_(None) & unexpired


@contextmanager
def opened(data_dir: Path) -> Iterator[Database]:
    """The database of a data directory, brought up to date, for as long as the block runs. Raises
    `datadir.NotPrivate`."""
    with datadir.private():
        datadir.secure(data_dir)
        db = Database(data_dir / "nearline.sqlite")
        try:
            db.migrate()
            yield db
        finally:
            db.close()


# --- in a transaction ---------------------------------------------------------------------------


def new_id(now_ns: int) -> str:
    """A fresh id made by the server."""
    return uuid7(now_ns, secrets.token_bytes(10))


def find_account(
    conn: Connection, name: str, *, removed_too: bool = False
) -> tuple[str, str, str] | None:
    """(id, name, password hash) of the account called `name`, unless it was removed."""
    query = select(accounts.c.id, accounts.c.name, accounts.c.password)
    query = query.where(accounts.c.name_key == name.casefold())
    if not removed_too:
        query = query.where(accounts.c.removed_ns.is_(None))
    row = conn.execute(query).first()
    return None if row is None else (row.id, row.name, row.password)


def account_id(conn: Connection, name: str, *, removed_too: bool = False) -> str:
    """The id of the account called `name`. Raises `AccountUnknown`."""
    found = find_account(conn, name, removed_too=removed_too)
    if found is None:
        raise AccountUnknown(f"there is no account {name!r}; make it with `account add`")
    return found[0]


def is_locked(conn: Connection, account: str) -> bool:
    """True if the account with this id is refused everywhere."""
    query = select(accounts.c.locked_ns).where(accounts.c.id == account)
    return conn.execute(query).scalar() is not None


def insert_account(conn: Connection, name: str, hashed: str, now_ns: int) -> str:
    """Make an account with an empty drive; `hashed` is its password in PHC string format. Returns
    its id."""
    account, drive, root = new_id(now_ns), new_id(now_ns), new_id(now_ns)
    owner = {"id": account, "name": name, "name_key": name.casefold(), "password": hashed}
    conn.execute(insert(accounts), owner | {"created_ns": now_ns})
    home = {"id": drive, "owner": account, "root": root, "epoch": secrets.token_hex(8)}
    conn.execute(insert(drives), home | {"head_seq": 0, "used_bytes": 0})
    top = {"id": root, "drive": drive, "kind": "directory", "mode": 0o755, "uid": 0, "gid": 0}
    times = {"mtime_ns": now_ns, "ctime_ns": now_ns}
    rest = {"size": 0, "links": 1, "rdev": 0, "rev": 0}
    conn.execute(insert(files), top | times | rest)
    return account


# --- passwords ----------------------------------------------------------------------------------


def check_new_password(name: str, password: str) -> None:
    """Raise `BadPassword` unless account `name` may have this as its new password.

    Long and not the name is all that is asked: rules about kinds of characters make people choose
    what is easier to guess (NIST SP 800-63B, section 5.1.1.2).
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        bounds = f"{SHORTEST_PASSWORD} to {LONGEST_PASSWORD}"
        raise BadPassword(f"a password has {bounds} characters; choose another one")
    if password.casefold() == name.casefold():
        raise BadPassword("the account's name is no password; choose another one")


def hash_password(password: str) -> str:
    """Argon2id in PHC string format. As dear as `password_matches`."""
    return HASHER.hash(password)


def password_matches(hashed: str | None, password: str) -> bool:
    """True if `password` is right; takes the same time when there is no hash to compare with.

    Takes tens of milliseconds and 64 MiB: never on the event loop, and few at a time.
    """
    try:
        HASHER.verify(hashed or _decoy(), password)
    except (VerificationError, InvalidHashError):
        return False
    return hashed is not None


class Checked(NamedTuple):
    """`renewed` is a new hash of the right password, if the one that is stored is of older
    parameters."""

    is_right: bool
    renewed: str | None = None


def check_password(hashed: str | None, password: str) -> Checked:
    """`password_matches`, and the hash to store from now on. Twice as dear when there is one."""
    if not password_matches(hashed, password):
        return Checked(False)
    is_old = hashed is not None and HASHER.check_needs_rehash(hashed)
    return Checked(True, hash_password(password) if is_old else None)


def renew_password(conn: Connection, account: str, old: str, new: str) -> None:
    """Store `new`, of the same password as the hash `old`; nothing if that is there no more."""
    mine = (accounts.c.id == account) & (accounts.c.password == old)
    conn.execute(update(accounts).where(mine).values(password=new))


@functools.cache
def _decoy() -> str:
    return hash_password(secrets.token_urlsafe(32))
