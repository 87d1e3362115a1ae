"""People, their devices, and the tokens that stand for them.

Knows: password hashing, token making, which token is still good. Must not know: HTTP, files.

Invariants:
- A token is 256 random bits, shown once; only its SHA-256 is stored. It is looked up by that hash,
  so no comparison of secrets takes a time that depends on them.
- An account has exactly one drive, made with it, in one transaction.
- Whoever asks with an unknown account name waits as long as with a wrong password.

`add_account` and `issue_token` are for the machine's administrator: they open the data directory
themselves and work beside a running server.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, bindparam, insert, select

from remote.errors import Refused, Unauthorized
from remote.ids import uuid7
from remote.wire import Scope
from server.db import Database
from server.schema import accounts, devices, drives, files

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")


class AccountExists(ValueError):
    """There is an account of that name already (names differ by more than case)."""


class BadAccountName(ValueError):
    """An account name has 1 to 64 of A-Z a-z 0-9 . _ @ + - and begins with none of . @ + -"""


class AccountUnknown(LookupError):
    """There is no account of that name in this data directory."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request: an account through one of its devices, and where its drive is. The token
    may only read (`scope` "read"), or reach only `folder` and what is below it."""

    account: str
    account_name: str
    device: str
    scope: Scope
    drive: str
    folder: str | None = None


def add_account(data_dir: Path, name: str, password: str) -> None:
    """Make account `name` with an empty drive in the server's data directory `data_dir`.

    Raises `AccountExists`, `BadAccountName`, or ValueError for an empty password.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise BadAccountName(f"account name {name!r}: {BadAccountName.__doc__}")
    if not 1 <= len(password) <= 1024:
        raise ValueError("a password has 1 to 1024 characters")
    hashed = PasswordHasher().hash(password)
    with _opened(data_dir) as db, db.write() as conn:
        taken = select(accounts.c.id).where(accounts.c.name_key == name.casefold())
        if conn.execute(taken).first() is not None:
            raise AccountExists(f"there is an account {name!r} already")
        insert_account(conn, name, hashed, time.time_ns())


def issue_token(data_dir: Path, account: str, device_name: str) -> str:
    """A new token of `account` for a device called `device_name`, without its password.

    Raises `AccountUnknown`.
    """
    with _opened(data_dir) as db, db.write() as conn:
        wanted = select(accounts.c.id).where(accounts.c.name_key == account.casefold())
        found = conn.execute(wanted).scalar()
        if found is None:
            raise AccountUnknown(f"there is no account {account!r}; make it with `account add`")
        token, _ = new_device(conn, found, device_name, time.time_ns())
        return token


def new_device(conn: Connection, account: str, name: str, now_ns: int) -> tuple[str, str]:
    """Make a device of `account`; returns its (token, device id)."""
    token = secrets.token_urlsafe(32)
    device = new_id(now_ns)
    row = {
        "id": device,
        "account": account,
        "name": name,
        "token_sha256": _token_hash(token),
        "scope": "full",
        "created_ns": now_ns,
    }
    conn.execute(insert(devices), row)
    return token, device


def new_id(now_ns: int) -> str:
    """A fresh id made by the server."""
    return uuid7(now_ns, secrets.token_bytes(10))


_BY_TOKEN = (
    select(
        devices.c.id,
        devices.c.account,
        devices.c.scope,
        devices.c.folder,
        devices.c.expires_ns,
        devices.c.revoked_ns,
        accounts.c.name,
        drives.c.id.label("drive"),
    )
    .join_from(devices, accounts, devices.c.account == accounts.c.id)
    .join(drives, drives.c.owner == accounts.c.id)
    .where(devices.c.token_sha256 == bindparam("hashed"))
)


def authenticate(conn: Connection, token: str | None, now_ns: int) -> Caller:
    """Who `token` stands for at this moment. Raises `Refused(Unauthorized)`."""
    row = None
    if token:
        row = conn.execute(_BY_TOKEN, {"hashed": _token_hash(token)}).first()
    if row is None or row.revoked_ns is not None:
        raise Refused(Unauthorized(message="the token is missing or not valid: log in"))
    if row.expires_ns is not None and row.expires_ns <= now_ns:
        raise Refused(Unauthorized(message="the token has expired: log in"))
    return Caller(row.account, row.name, row.id, row.scope, row.drive, row.folder)


def find_account(conn: Connection, name: str) -> tuple[str, str, str] | None:
    """(id, name, password hash) of the account called `name`."""
    query = select(accounts.c.id, accounts.c.name, accounts.c.password)
    row = conn.execute(query.where(accounts.c.name_key == name.casefold())).first()
    return None if row is None else (row.id, row.name, row.password)


def password_matches(hashed: str | None, password: str) -> bool:
    """Whether `password` is right; takes the same time when there is no hash to compare with.

    Takes tens of milliseconds and 64 MiB: never on the event loop, and few at a time.
    """
    try:
        PasswordHasher().verify(hashed or _decoy(), password)
    except (VerificationError, InvalidHashError):
        return False
    return hashed is not None


@functools.cache
def _decoy() -> str:
    return PasswordHasher().hash(secrets.token_urlsafe(32))


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@contextmanager
def _opened(data_dir: Path) -> Iterator[Database]:
    db = Database(data_dir / "nearline.sqlite")
    try:
        db.migrate()
        yield db
    finally:
        db.close()


def insert_account(conn: Connection, name: str, hashed: str, now_ns: int) -> None:
    """Make an account with an empty drive; `hashed` is its password in PHC string format."""
    account, drive, root = new_id(now_ns), new_id(now_ns), new_id(now_ns)
    owner = {"id": account, "name": name, "name_key": name.casefold(), "password": hashed}
    conn.execute(insert(accounts), owner | {"created_ns": now_ns})
    home = {"id": drive, "owner": account, "root": root, "epoch": secrets.token_hex(8)}
    conn.execute(insert(drives), home | {"head_seq": 0, "used_bytes": 0})
    top = {"id": root, "drive": drive, "kind": "directory", "mode": 0o755, "uid": 0, "gid": 0}
    times = {"mtime_ns": now_ns, "ctime_ns": now_ns}
    rest = {"size": 0, "links": 1, "rdev": 0, "rev": 0}
    conn.execute(insert(files), top | times | rest)
