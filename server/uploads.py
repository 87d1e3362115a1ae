"""Upload sessions: which chunks a version still needs, leases on them, and chunks arriving.

Knows: the states of a chunk (pending, uploaded, doomed) and of a session. Must not know: how bytes
arrive (`edge`), what a version is for (`versions`).

A session belongs to the account that began it and dies `upload_days` after its last use. Its rows
in `upload_chunks` are leases: what they name is not collected.

Two devices may store one chunk differently (compressors differ). The first promise is in `chunks`;
a lease that differs carries its own descriptor; `arrivals` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from remote.content import BadContent, Descriptor, check_descriptor
from remote.errors import BadUpload, Exists, Forbidden, Refused, UploadUnknown
from remote.wire import ChunkTicket, PresignedPut, StartUpload, UploadState
from server import access
from server.accounts import Caller
from server.records import pages
from server.schema import chunks, devices, upload_chunks, uploads, versions

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Descriptor).decode

Sign = Callable[[str, Descriptor], PresignedPut]

_SESSION = (
    select(uploads, devices.c.account)
    .join(devices, uploads.c.device == devices.c.id)
    .where(uploads.c.version == bindparam("version"))
)
_LEASED = (
    select(
        chunks.c.id,
        chunks.c.state,
        func.coalesce(upload_chunks.c.descriptor, chunks.c.descriptor).label("descriptor"),
    )
    .join_from(
        upload_chunks,
        chunks,
        (upload_chunks.c.drive == chunks.c.drive) & (upload_chunks.c.chunk == chunks.c.id),
    )
    .where(upload_chunks.c.version == bindparam("version"))
    .order_by(chunks.c.id)
)
_KNOWN = select(chunks.c.id, chunks.c.state, chunks.c.length, chunks.c.sha256).where(
    chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True))
)

# --- sessions -----------------------------------------------------------------------------------


def start(
    conn: Connection, caller: Caller, wanted: StartUpload, lease_ns: int, now_ns: int, sign: Sign
) -> UploadState:
    """Begin or find again the session of one version. Raises `Refused`."""
    drive = _drive_for(conn, caller, wanted)
    if _is_committed(conn, wanted):
        return UploadState(version=wanted.version, status="uploaded", expires_ns=now_ns, chunks=[])
    row = conn.execute(_SESSION, {"version": wanted.version}).first()
    if row is None:
        _begin(conn, caller, wanted, drive, now_ns)
    elif row.account != caller.account or row.drive != drive:
        raise Refused(Exists(message=f"version {wanted.version} is being uploaded by another"))
    elif row.file != wanted.file:
        _move(conn, wanted.version, wanted.file)
    return _lease(conn, wanted.version, drive, wanted.descriptors, now_ns, lease_ns, sign)


def extend(
    conn: Connection,
    caller: Caller,
    version: str,
    descriptors: Sequence[Descriptor],
    lease_ns: int,
    now_ns: int,
    sign: Sign,
) -> UploadState:
    """Lease more chunks, or the same again: a ticket for each, with a fresh URL where needed."""
    row = session(conn, caller, version, now_ns)
    check_access(conn, caller, row)
    return _lease(conn, version, row.drive, descriptors, now_ns, lease_ns, sign)


def state(conn: Connection, caller: Caller, version: str, now_ns: int) -> UploadState:
    """Which of the session's chunks are there, for resuming. No URLs."""
    row = session(conn, caller, version, now_ns)
    tickets = [
        ChunkTicket(id=each.id, state="needed" if each.state == "pending" else "uploaded")
        for each in conn.execute(_LEASED, {"version": version})
    ]
    return UploadState(
        version=version, status="uploading", expires_ns=row.expires_ns, chunks=tickets
    )


def abandon(conn: Connection, caller: Caller, version: str, now_ns: int) -> None:
    """End the session and its leases; what was stored is left to garbage collection."""
    session(conn, caller, version, now_ns)
    uploading = (versions.c.id == version) & (versions.c.status == "uploading")
    conn.execute(delete(versions).where(uploading))
    conn.execute(delete(uploads).where(uploads.c.version == version))


def session(conn: Connection, caller: Caller, version: str, now_ns: int) -> Row[Any]:
    """The caller's own live session. Raises `Refused(UploadUnknown)`."""
    row = conn.execute(_SESSION, {"version": version}).first()
    if row is None or row.account != caller.account or row.expires_ns <= now_ns:
        raise Refused(UploadUnknown(message=f"no upload of version {version}; begin it again"))
    return row


def check_access(conn: Connection, caller: Caller, row: Row[Any]) -> None:
    """A grant may have been revoked since the session began."""
    if row.drive != caller.drive:
        access.require(conn, caller, row.file, "editor")
    elif caller.scope != "full":
        raise Refused(Forbidden(message="this token may only read"))


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
        raise Refused(Exists(message=f"version {wanted.version} is of another file"))
    return bool(of)


def _move(conn: Connection, version: str, file: str) -> None:
    """The session goes on for another file: that which it was begun for was renamed over it."""
    uploading = (versions.c.id == version) & (versions.c.status == "uploading")
    conn.execute(update(versions).where(uploading).values(file=file))
    conn.execute(update(uploads).where(uploads.c.version == version).values(file=file))


def _begin(conn: Connection, caller: Caller, wanted: StartUpload, drive: str, now_ns: int) -> None:
    both = {"file": wanted.file, "drive": drive, "device": caller.device, "created_ns": now_ns}
    version = {"id": wanted.version, "status": "uploading", "size": 0, "mtime_ns": now_ns}
    conn.execute(insert(versions), both | version | {"base": wanted.base})
    conn.execute(insert(uploads), both | {"version": wanted.version, "expires_ns": now_ns})


# --- leases -------------------------------------------------------------------------------------


def _lease(
    conn: Connection,
    version: str,
    drive: str,
    descriptors: Sequence[Descriptor],
    now_ns: int,
    lease_ns: int,
    sign: Sign,
) -> UploadState:
    expires_ns = now_ns + lease_ns
    moved = update(uploads).where(uploads.c.version == version)
    conn.execute(moved.values(expires_ns=expires_ns))
    wanted = _checked(descriptors)
    known = known_chunks(conn, drive, wanted)
    _promise(conn, drive, [d for id, d in wanted.items() if id not in known], now_ns)
    _keep(conn, drive, [id for id, row in known.items() if row.state == "doomed"])
    _record(conn, version, drive, wanted, known)
    tickets = []
    for descriptor in descriptors:
        row = known.get(descriptor.id)
        there = row is not None and row.state != "pending"
        tickets.append(
            ChunkTicket(
                id=descriptor.id,
                state="uploaded" if there else "needed",
                put=None if there else sign(drive, descriptor),
            )
        )
    return UploadState(version=version, status="uploading", expires_ns=expires_ns, chunks=tickets)


def _checked(descriptors: Iterable[Descriptor]) -> dict[bytes, Descriptor]:
    wanted: dict[bytes, Descriptor] = {}
    for descriptor in descriptors:
        try:
            check_descriptor(descriptor)
        except BadContent as error:
            raise Refused(BadUpload(message=str(error))) from error
        wanted[descriptor.id] = descriptor
    return wanted


def known_chunks(conn: Connection, drive: str, wanted: Iterable[bytes]) -> dict[bytes, Row[Any]]:
    """State, length and SHA-256 of those of `wanted` that the drive knows of."""
    found: dict[bytes, Row[Any]] = {}
    for page in pages(wanted):
        found |= {row.id: row for row in conn.execute(_KNOWN, {"drive": drive, "ids": page})}
    return found


def _promise(conn: Connection, drive: str, descriptors: Sequence[Descriptor], now_ns: int) -> None:
    rows = [
        {
            "drive": drive,
            "id": descriptor.id,
            "state": "pending",
            "length": descriptor.length,
            "stored_length": descriptor.stored_length,
            "sha256": descriptor.sha256,
            "descriptor": _encode(descriptor),
            "created_ns": now_ns,
        }
        for descriptor in descriptors
    ]
    if rows:
        conn.execute(insert(chunks), rows)


def _keep(conn: Connection, drive: str, doomed: Sequence[bytes]) -> None:
    """Revive chunks that garbage collection was about to delete."""
    for page in pages(doomed):
        mine = (chunks.c.drive == drive) & chunks.c.id.in_(page) & (chunks.c.state == "doomed")
        conn.execute(update(chunks).where(mine).values(state="uploaded", doomed_ns=None))


def _record(
    conn: Connection,
    version: str,
    drive: str,
    wanted: dict[bytes, Descriptor],
    known: dict[bytes, Row[Any]],
) -> None:
    """Write the leases, each with its own descriptor where the chunk's says otherwise."""
    for page in pages(wanted):
        old = (upload_chunks.c.version == version) & upload_chunks.c.chunk.in_(page)
        conn.execute(delete(upload_chunks).where(old))
    rows = []
    for id, descriptor in wanted.items():
        row = known.get(id)
        differs = row is not None and row.state == "pending" and row.sha256 != descriptor.sha256
        own = _encode(descriptor) if differs else None
        rows.append({"version": version, "drive": drive, "chunk": id, "descriptor": own})
    if rows:
        conn.execute(insert(upload_chunks), rows)
