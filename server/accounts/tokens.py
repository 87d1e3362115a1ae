"""Tokens: making them, and whom they stand for.

Knows: which token is good, and what it may reach. Must not know: HTTP, passwords, why a token is
made (`devices`).

Invariants:
- A token is 256 random bits, shown once; only its SHA-256 is stored.
- It is looked up by that hash, in an index. The time this takes may tell how far the hash agrees
  with a stored one; that is of no use, because whoever knew a stored hash whole would still have to
  find 256 random bits that give it. So there is no comparison of secrets here that would have to
  take constant time.
- A device has one token. After a rotation the one before is good too until the new one is used,
  and for `OVERLAP_NS` at most: the use says that the answer arrived, so nobody needs the one before
  any more but somebody who copied it. Whoever authenticates a caller that `is_rotated` calls
  `end_old` before anything is answered.
- The hash of a token that ended so is kept: who tries to rotate with it has a copy (`copied`).
"""

from __future__ import annotations

import hashlib
import secrets
import threading

from sqlalchemy import Connection, bindparam, insert, select, update

from remote.protocol.errors import Refused, Unauthorized
from remote.protocol.messages import Scope
from server.accounts.accounts import new_id
from server.metadata.schema import accounts, devices, drives
from server.permissions.caller import Caller

# How long the token before is good after a rotation whose answer was lost.
OVERLAP_NS = 10 * 60 * 10**9
# In `old_until_ns`: the new token was used.
_ENDED = 0
_HOUR_NS = 3600 * 10**9

_DEVICE = (
    select(
        devices.c.id,
        devices.c.account,
        devices.c.scope,
        devices.c.folder,
        devices.c.expires_ns,
        devices.c.revoked_ns,
        devices.c.old_until_ns,
        accounts.c.name,
        accounts.c.locked_ns,
        drives.c.id.label("drive"),
    )
    .join_from(devices, accounts, devices.c.account == accounts.c.id)
    .join(drives, drives.c.owner == accounts.c.id)
)
_BY_TOKEN = _DEVICE.where(devices.c.token_sha256 == bindparam("hashed"))
_BY_OLD_TOKEN = _DEVICE.where(
    devices.c.old_sha256 == bindparam("hashed"), devices.c.old_until_ns > bindparam("now")
)
_COPIED = select(devices.c.id, devices.c.account).where(
    devices.c.old_sha256 == bindparam("hashed"),
    devices.c.old_until_ns == _ENDED,
    devices.c.revoked_ns.is_(None),
)


def new_device(
    conn: Connection,
    account: str,
    name: str,
    now_ns: int,
    *,
    scope: Scope = "full",
    folder: str | None = None,
    expires_ns: int | None = None,
) -> tuple[str, str]:
    """Make a device of `account`; returns its (token, device id)."""
    token, device = secrets.token_urlsafe(32), new_id(now_ns)
    row = {"id": device, "account": account, "name": name, "token_sha256": _hash(token)}
    limits = {"scope": scope, "folder": folder, "expires_ns": expires_ns}
    head = select(drives.c.head_seq).where(drives.c.owner == account)
    since = {"created_ns": now_ns, "since_seq": conn.execute(head).scalar_one() if folder else 0}
    conn.execute(insert(devices), row | limits | since)
    return token, device


def authenticate(conn: Connection, token: str | None, now_ns: int) -> Caller:
    """The caller for whom `token` stands at this moment. Raises `Refused(Unauthorized)`."""
    row, is_rotated = None, False
    if token:
        hashed = _hash(token)
        row = conn.execute(_BY_TOKEN, {"hashed": hashed}).first()
        if row is not None:
            is_rotated = (row.old_until_ns or 0) > now_ns
        else:
            row = conn.execute(_BY_OLD_TOKEN, {"hashed": hashed, "now": now_ns}).first()
    if row is None or row.revoked_ns is not None:
        raise Refused(Unauthorized(message="the token is missing or not valid: log in"))
    if row.expires_ns is not None and row.expires_ns <= now_ns:
        raise Refused(Unauthorized(message="the token has expired: log in"))
    if row.locked_ns is not None:
        raise Refused(Unauthorized(message="the account is locked; ask who runs the server"))
    return Caller(row.account, row.name, row.id, row.scope, row.drive, row.folder, is_rotated)


def replace(conn: Connection, device: str, presented: str, now_ns: int) -> str:
    """Give `device` a new token and return it; `presented`, one of its tokens, stays good until the
    new one is used, for `OVERLAP_NS` at most.

    That it is the presented one that stays makes a rotation repeatable: when the answer was lost,
    the device still has a token, and the one that nobody received dies.
    """
    token = secrets.token_urlsafe(32)
    old = {"old_sha256": _hash(presented), "old_until_ns": now_ns + OVERLAP_NS}
    changed = update(devices).where(devices.c.id == device)
    conn.execute(changed.values(token_sha256=_hash(token), **old))
    return token


def end_old(conn: Connection, device: str, used: str | None, now_ns: int) -> None:
    """The token `used` of `device` came of a rotation and has arrived: the one before is over."""
    is_current = (devices.c.id == device) & (devices.c.token_sha256 == _hash(used or ""))
    good = is_current & (devices.c.old_until_ns > now_ns)
    conn.execute(update(devices).where(good).values(old_until_ns=_ENDED))


def copied(conn: Connection, token: str | None) -> tuple[str, str] | None:
    """The (device, account) whose token `token` was until the one after it was used. Its owner has
    that one, so whoever still has this one has a copy."""
    row = conn.execute(_COPIED, {"hashed": _hash(token or "")}).first()
    return None if row is None else (row.id, row.account)


def mark_seen(conn: Connection, device: str, now_ns: int) -> None:
    conn.execute(update(devices).where(devices.c.id == device).values(seen_ns=now_ns))


class SeenThisHour:
    """Which devices `mark_seen` need not be told of again: one write per device and hour, not one
    per request. What a restart forgets costs one more write.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._hour = -1
        self._devices: set[str] = set()

    def is_first(self, device: str, now_ns: int) -> bool:
        """True if `device` is told of for the first time in the hour of `now_ns`."""
        hour = now_ns // _HOUR_NS
        with self._lock:
            if hour != self._hour:
                self._hour, self._devices = hour, set()
            if device in self._devices:
                return False
            self._devices.add(device)
            return True


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
