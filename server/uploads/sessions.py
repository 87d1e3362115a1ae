"""Upload sessions: begun, found again, gone on with, abandoned.

Knows: whose a session is, for which drive, and when it is over. Must not know: what it holds
(`leases`), how bytes arrive (`edge`), what a version is for (`versions`).

A session belongs to the account that began it (begun with a token for a single folder: to that
device) and dies `upload_days` after its last use, or with the token for a single folder. From then
on it is unknown to everybody, whether or not its rows are still there. When an account loses a
share in the drive, or the device that began it is revoked, it ends at once, and what it had
promised is free for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, select, update

from remote.protocol.content import Descriptor
from remote.protocol.errors import Exists, Forbidden, Refused, UploadUnknown
from remote.protocol.messages import StartUpload, UploadState
from server.metadata.schema import devices, files, grants, uploads, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.uploads import leases
from server.uploads.leases import Sign, Upload
from server.uploads.quota import Budget


class Terms(NamedTuple):
    """How uploads are leased in one write transaction: for how long, within what, by which URLs."""

    lease_ns: int
    budget: Budget
    sign: Sign


_SESSION = (
    select(
        uploads, devices.c.account, devices.c.folder, devices.c.expires_ns.label("token_ends_ns")
    )
    .join(devices, uploads.c.device == devices.c.id)
    .where(uploads.c.version == bindparam("version"))
)

_EDITED = (
    select(grants.c.file)
    .join(files, grants.c.file == files.c.id)
    .where(
        grants.c.account == bindparam("account"),
        grants.c.role == "editor",
        files.c.drive == bindparam("drive"),
        files.c.links > 0,
    )
    .limit(1)
)


def start(
    conn: Connection, caller: Caller, wanted: StartUpload, terms: Terms, now_ns: int
) -> UploadState:
    """Begin or find again the session of one version. Raises `Refused`."""
    drive = _drive_for(conn, caller, wanted)
    if _is_committed(conn, wanted):
        return UploadState(version=wanted.version, status="uploaded", expires_ns=now_ns, chunks=[])
    row = conn.execute(_SESSION, {"version": wanted.version}).first()
    if row is not None and row.expires_ns <= now_ns:
        leases.end(conn, [wanted.version])
        row = None
    if row is None:
        row = _begin(conn, caller, wanted, drive, terms, now_ns)
    elif not _is_of(row, caller) or row.drive != drive:
        message = f"version {wanted.version} is being uploaded by another"
        raise Refused(Exists(message=message, taken="version"))
    elif row.file != wanted.file:
        _move(conn, wanted.version, wanted.file)
    return _lease(conn, caller, row, wanted.file, wanted.descriptors, terms, now_ns)


def extend(
    conn: Connection,
    caller: Caller,
    version: str,
    descriptors: Sequence[Descriptor],
    terms: Terms,
    now_ns: int,
) -> UploadState:
    """Lease more chunks, or the same again: a ticket for each, with a fresh URL where needed."""
    row = session(conn, caller, version, now_ns)
    _check_access(conn, caller, row)
    return _lease(conn, caller, row, row.file, descriptors, terms, now_ns)


def state(conn: Connection, caller: Caller, version: str, now_ns: int) -> UploadState:
    """Which of the session's chunks are there, for resuming. No URLs."""
    row = session(conn, caller, version, now_ns)
    found = leases.tickets(conn, version)
    return UploadState(version=version, status="uploading", expires_ns=row.expires_ns, chunks=found)


def abandon(conn: Connection, caller: Caller, version: str, now_ns: int) -> None:
    """End the session, its leases and the promises that nobody else leases."""
    session(conn, caller, version, now_ns)
    if caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))
    leases.end(conn, [version])


def end_of_account(conn: Connection, drive: str, account: str) -> None:
    """End every session of `account` in `drive`, in which it has less to write by now. What it may
    still do there it begins again."""
    mine = (uploads.c.drive == drive) & (devices.c.account == account)
    _end_all(conn, mine)


def end_of_device(conn: Connection, device: str) -> None:
    """End every session that `device` began. Its account's other devices begin theirs again."""
    _end_all(conn, devices.c.id == device)


def end_of_drive(conn: Connection, drive: Any) -> None:
    """End every session in `drive`, an id or a query for it."""
    _end_all(conn, uploads.c.drive == drive)


def _end_all(conn: Connection, which: ColumnElement[bool]) -> None:
    query = select(uploads.c.version).join(devices, uploads.c.device == devices.c.id)
    leases.end(conn, conn.execute(query.where(which)).scalars().all())


def session(conn: Connection, caller: Caller, version: str, now_ns: int) -> Row[Any]:
    """The caller's own live session. Raises `Refused(UploadUnknown)`."""
    row = conn.execute(_SESSION, {"version": version}).first()
    if row is None or not _is_of(row, caller) or row.expires_ns <= now_ns:
        raise Refused(UploadUnknown(message=f"no upload of version {version}; begin it again"))
    return row


def _is_of(row: Row[Any], caller: Caller) -> bool:
    """Whether the session is the caller's. The account's other devices may have shown possession of
    what a token for a single folder must not be told of."""
    if caller.folder is not None and row.device != caller.device:
        return False
    return bool(row.account == caller.account)


def _check_access(conn: Connection, caller: Caller, row: Row[Any]) -> None:
    """A grant may have been revoked since the session began. A file that is yet to be born has no
    role of its own: the commit checks where it is to be."""
    file = access.find(conn, row.file)
    if file is not None and file.drive == row.drive:
        access.require(conn, caller, row.file, "editor")
    elif row.drive != caller.drive and not _edits_in(conn, caller, row.drive):
        raise Refused(UploadUnknown(message="nothing of that drive is shared with you any more"))
    elif caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))


def _edits_in(conn: Connection, caller: Caller, drive: str) -> bool:
    """Whether there is a place in `drive`, which is another's, where the file could be born."""
    if caller.folder is not None:
        return False
    given = {"account": caller.account, "drive": drive}
    return conn.execute(_EDITED, given).first() is not None


def _drive_for(conn: Connection, caller: Caller, wanted: StartUpload) -> str:
    """The drive the version will be in: that of its file, else of the parent it will be born in,
    else the caller's own (the parent may be a directory the server has not heard of yet)."""
    if access.find(conn, wanted.file) is not None:
        return str(access.require(conn, caller, wanted.file, "editor").drive)
    if wanted.parent is not None:
        return str(access.require(conn, caller, wanted.parent, "editor").drive)
    if caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))
    return caller.drive


def _is_committed(conn: Connection, wanted: StartUpload) -> bool:
    query = select(versions.c.file).where(versions.c.id == wanted.version)
    of = conn.execute(query.where(versions.c.status == "uploaded")).scalars().all()
    if of and wanted.file not in of:
        message = f"version {wanted.version} is of another file"
        raise Refused(Exists(message=message, taken="version"))
    return bool(of)


def _move(conn: Connection, version: str, file: str) -> None:
    """The session goes on for another file: that which it was begun for was renamed over it."""
    uploading = (versions.c.id == version) & (versions.c.status == "uploading")
    conn.execute(update(versions).where(uploading).values(file=file))
    conn.execute(update(uploads).where(uploads.c.version == version).values(file=file))


def _begin(
    conn: Connection, caller: Caller, wanted: StartUpload, drive: str, terms: Terms, now_ns: int
) -> Row[Any]:
    holder = caller.account if caller.folder is None else caller.device
    terms.budget.begin(drive, holder)
    both = {"file": wanted.file, "drive": drive, "device": caller.device, "created_ns": now_ns}
    version = {"id": wanted.version, "status": "uploading", "size": 0, "mtime_ns": now_ns}
    conn.execute(insert(versions), both | version | {"base": wanted.base})
    conn.execute(insert(uploads), both | {"version": wanted.version, "expires_ns": now_ns})
    return conn.execute(_SESSION, {"version": wanted.version}).one()


def _lease(
    conn: Connection,
    caller: Caller,
    row: Row[Any],
    file: str,
    descriptors: Sequence[Descriptor],
    terms: Terms,
    now_ns: int,
) -> UploadState:
    """Lease for the session `row`, which is of `file` by now."""
    holder, expires_ns = row.account, now_ns + terms.lease_ns
    if row.folder is not None:
        holder = row.device
        expires_ns = min(expires_ns, row.token_ends_ns or expires_ns)
    moved = update(uploads).where(uploads.c.version == row.version)
    conn.execute(moved.values(expires_ns=expires_ns))
    upload = Upload(row.version, file, row.drive, holder)
    found = leases.take(conn, caller, upload, descriptors, terms.budget, terms.sign, now_ns)
    return UploadState(version=row.version, status="uploading", expires_ns=expires_ns, chunks=found)
