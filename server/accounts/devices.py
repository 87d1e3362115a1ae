"""Devices: who has tokens of an account, and taking them away.

Knows: who may list, make, rotate and revoke tokens, and how weak one may be made. Must not know:
HTTP, how a token is checked (`tokens`).

A token with the whole of its account's rights lists and revokes every device of the account and
makes new tokens; a weaker one rotates itself and logs itself out, and no more: what it cannot do
itself it cannot have done by a token that it makes.

The functions that take a `data_dir` are for the machine's administrator, as in `accounts`. A
running server refuses what they revoke when the token is used next, and looks a moment later for
sockets and polls that are open (`admin_watch`).
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select, update

from remote.protocol.account_messages import DeviceInfo, DevicesReply, MakeToken, TokenReply
from remote.protocol.errors import BadRequest, Forbidden, NotADirectory, NotFound, Refused
from remote.protocol.messages import Scope
from server.accounts import tokens
from server.accounts.accounts import account_id, is_good, opened
from server.metadata.schema import accounts, devices, drives, entries
from server.permissions import access, audit
from server.permissions.caller import Caller
from server.uploads import sessions

# Good tokens of one account, beyond which none is made but by logging in.
MAX_TOKENS = 1000
_INT64 = 1 << 63


class DeviceUnknown(LookupError):
    """There is no such device, or its token is revoked already."""


class FolderUnknown(LookupError):
    """There is no such directory in the account's drive."""


# --- for callers --------------------------------------------------------------------------------


def devices_of(conn: Connection, caller: Caller, now_ns: int) -> DevicesReply:
    """The account's devices, oldest first. Raises `Refused(Forbidden)`."""
    access.require_whole(caller)
    query = select(devices).where(devices.c.account == caller.account, is_good(now_ns))
    found = conn.execute(query.order_by(devices.c.created_ns, devices.c.id))
    return DevicesReply([_info(row, caller) for row in found])


def _info(row: Row[Any], caller: Caller) -> DeviceInfo:
    return DeviceInfo(
        id=row.id,
        name=row.name,
        scope=row.scope,
        folder=row.folder,
        created_ns=row.created_ns,
        expires_ns=row.expires_ns,
        seen_ns=row.seen_ns,
        current=row.id == caller.device,
    )


def make_token(conn: Connection, caller: Caller, wanted: MakeToken, now_ns: int) -> TokenReply:
    """A new device of the caller's account. Raises `Refused`."""
    access.require_whole(caller)
    if wanted.expires_ns is not None and not now_ns < wanted.expires_ns < _INT64:
        raise Refused(BadRequest(message="expires_ns must be in the future"))
    if wanted.folder is not None:
        _check_folder(conn, caller, wanted.folder)
    good = select(func.count()).where(devices.c.account == caller.account, is_good(now_ns))
    if conn.execute(good).scalar_one() >= MAX_TOKENS:
        raise Refused(Forbidden(message=f"there are {MAX_TOKENS} tokens; revoke some first"))
    limits: dict[str, Any] = {
        "scope": wanted.scope,
        "folder": wanted.folder,
        "expires_ns": wanted.expires_ns,
    }
    token, device = tokens.new_device(conn, caller.account, wanted.name, now_ns, **limits)
    audit.note(conn, caller, "token_make", device, now_ns, name=wanted.name, **limits)
    return TokenReply(token=token, device_id=device)


def _check_folder(conn: Connection, caller: Caller, folder: str) -> None:
    """Only of one's own drive: what others share may be withdrawn, and the token would outlive
    that."""
    row = access.find(conn, folder)
    if row is None or row.drive != caller.drive or row.links == 0:
        raise Refused(NotFound(message=f"there is no directory {folder} in your drive"))
    if row.kind != "directory":
        raise Refused(NotADirectory(message=f"{folder} is a {row.kind}; name its directory"))


def rotate(conn: Connection, caller: Caller, presented: str, now_ns: int) -> TokenReply:
    """A new token for the caller's own device, as good for as long as the one before was. The
    caller's token, `presented`, stays good until that is used, for ten minutes at most."""
    token = tokens.replace(conn, caller.device, presented, now_ns)
    audit.note(conn, caller, "token_rotate", caller.device, now_ns)
    return TokenReply(token=token, device_id=caller.device)


def note_copied(conn: Connection, device: str, account: str, address: str, now_ns: int) -> None:
    """Somebody tried to rotate with a token of `device` that its owner does not use any more."""
    said = {"device": device, "address": address}
    audit.note(conn, None, "token_copied", account, now_ns, **said)


def revoke(conn: Connection, caller: Caller, device: str, now_ns: int) -> None:
    """From now on the token of `device` is refused. Raises `Refused`."""
    if device != caller.device:
        access.require_whole(caller)
    mine = (devices.c.id == device) & (devices.c.account == caller.account)
    if _revoke(conn, mine, now_ns) is None:
        raise Refused(NotFound(message=f"you have no device {device}"))
    audit.note(conn, caller, "device_revoke", device, now_ns)


def _revoke(conn: Connection, which: Any, now_ns: int) -> str | None:
    """Returns the name of the device, None if there is none such with a token. Its uploads end."""
    alive = update(devices).where(which, devices.c.revoked_ns.is_(None)).values(revoked_ns=now_ns)
    row = conn.execute(alive.returning(devices.c.id, devices.c.name)).first()
    if row is None:
        return None
    sessions.end_of_device(conn, row.id)
    return str(row.name)


def revoke_all(conn: Connection, which: Any, now_ns: int) -> int:
    """Revoke the devices for which the condition `which` holds; returns how many had a token that
    was good. Their uploads end."""
    good = conn.execute(select(devices.c.id).where(which, is_good(now_ns))).scalars().all()
    alive = update(devices).where(which, devices.c.revoked_ns.is_(None)).values(revoked_ns=now_ns)
    for device in conn.execute(alive.returning(devices.c.id)).scalars().all():
        sessions.end_of_device(conn, device)
    return len(good)


# --- for the administrator ----------------------------------------------------------------------


class DeviceRow(NamedTuple):
    """A device as the administrator sees it. `folder` is the id of the one directory it reaches;
    times are nanoseconds since 1970, None: never, or not yet."""

    account: str
    id: str
    name: str
    scope: Scope
    folder: str | None
    created_ns: int
    expires_ns: int | None
    seen_ns: int | None


def list_devices(data_dir: Path, account: str | None = None) -> list[DeviceRow]:
    """The devices whose token is still good, of `account` or of all. Raises `AccountUnknown`."""
    shown = [accounts.c.name, *(devices.c[item] for item in DeviceRow._fields[1:])]
    with opened(data_dir) as db, db.read() as conn:
        query = select(*shown).join(accounts, devices.c.account == accounts.c.id)
        query = query.where(is_good(time.time_ns()))
        if account is not None:
            query = query.where(devices.c.account == account_id(conn, account))
        found = conn.execute(query.order_by(accounts.c.name_key, devices.c.created_ns))
        return [DeviceRow(*row) for row in found]


def issue_token(
    data_dir: Path,
    account: str,
    device_name: str,
    *,
    scope: Scope = "full",
    folder: str | None = None,
    expires_ns: int | None = None,
) -> str:
    """A new token of `account` for a device called `device_name`, without its password. `folder` is
    a path in the account's drive (`/a/b`) or a directory's id.

    Raises `AccountUnknown`, `FolderUnknown`, or ValueError for a moment that has passed.
    """
    now_ns = time.time_ns()
    if expires_ns is not None and not now_ns < expires_ns < _INT64:
        raise ValueError("a token's end must be in the future")
    with opened(data_dir) as db, db.write() as conn:
        owner = account_id(conn, account)
        reached = None if folder is None else _directory(conn, owner, folder)
        limits: dict[str, Any] = {"scope": scope, "folder": reached, "expires_ns": expires_ns}
        token, device = tokens.new_device(conn, owner, device_name, now_ns, **limits)
        said = limits | {"name": device_name, "account": account}
        audit.note(conn, None, "token_make", device, now_ns, **said)
        return token


def _directory(conn: Connection, owner: str, folder: str) -> str:
    """The directory at a path below the owner's root, or of that id. A name that looks like an id
    is found by writing its path from `/`."""
    home = conn.execute(select(drives.c.id, drives.c.root).where(drives.c.owner == owner)).one()
    found: str | None = folder
    if "/" in folder or access.find(conn, folder) is None:
        found = home.root
        for name in PurePosixPath("/", folder).parts[1:]:
            meaning = select(entries.c.file).where(entries.c.parent == found)
            found = conn.execute(meaning.where(entries.c.name == name)).scalar()
    row = None if found is None else access.find(conn, found)
    if row is None or row.drive != home.id or row.kind != "directory" or row.links == 0:
        raise FolderUnknown(f"{folder!r} is no directory of that account; write its path from /")
    return str(row.id)


def revoke_device(data_dir: Path, device: str) -> str:
    """Revoke a device of any account; returns its name. Raises `DeviceUnknown`."""
    with opened(data_dir) as db, db.write() as conn:
        now_ns = time.time_ns()
        name = _revoke(conn, devices.c.id == device, now_ns)
        if name is None:
            raise DeviceUnknown(f"there is no device {device!r} with a token; see `token list`")
        whose = conn.execute(select(devices.c.account).where(devices.c.id == device)).scalar_one()
        audit.note(conn, None, "device_revoke", device, now_ns, account=whose)
        return name
