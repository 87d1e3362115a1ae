"""Leases: what an upload session holds of a drive's chunks, and which it may refer to.

Knows: the states of a chunk, promises, possession. Must not know: sessions' life (`uploads`), how
bytes arrive (`edge`, `arrivals`), what a version is for (`versions`).

A row in `upload_chunks` is a lease: what it names is not collected. A chunk that the drive does not
have is promised: a `pending` row, its room reserved. A chunk that is `deleting` is as good as gone,
and needed; nobody revives it.

Two devices may store one chunk differently (compressors differ), and one of them may lie about how.
The first promise is in `chunks`; a lease that differs in anything carries its own descriptor;
`arrivals` and `verification` decide.

Possession: who does not own the drive may refer to a chunk only if they can read it (an uploaded
version of the very file refers to it) or have sent its bytes (`proven`). Everything else looks to
them as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Connection,
    Row,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union,
    update,
)

from remote.content import BadContent, Descriptor, check_descriptor
from remote.errors import BadUpload, Refused
from remote.wire import ChunkTicket, PresignedPut
from server.drive.records import pages
from server.metadata.schema import chunks, devices, upload_chunks, uploads, version_chunks, versions
from server.people import access
from server.people.caller import Caller
from server.storage import quota
from server.storage.quota import Budget

THERE = ("uploaded", "doomed")
"""States of a chunk that the drive has."""

Sign = Callable[[str, Descriptor, str | None], PresignedPut]
"""(drive, descriptor, version for whose upload the PUT shows possession)"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Descriptor).decode


class Upload(NamedTuple):
    """A live session of the caller's: what leases hang on."""

    version: str
    file: str
    drive: str


_KNOWN = select(
    chunks.c.id, chunks.c.state, chunks.c.descriptor, chunks.c.device, chunks.c.verified_ns
).where(chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True)))
_chunk_of_lease = (upload_chunks.c.drive == chunks.c.drive) & (upload_chunks.c.chunk == chunks.c.id)
_LEASED = (
    select(chunks.c.id, chunks.c.state, upload_chunks.c.proven)
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .where(upload_chunks.c.version == bindparam("version"))
    .order_by(chunks.c.id)
)
_READABLE = (
    select(version_chunks.c.chunk)
    .join(versions, versions.c.id == version_chunks.c.version)
    .where(
        versions.c.file == bindparam("file"),
        versions.c.status == "uploaded",
        version_chunks.c.drive == bindparam("drive"),
        version_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
    )
)
_SENT = (
    select(upload_chunks.c.chunk)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .join(devices, uploads.c.device == devices.c.id)
    .where(
        upload_chunks.c.version == bindparam("version"),
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
        upload_chunks.c.proven != 0,
        devices.c.account == bindparam("account"),
        or_(bindparam("any_device", type_=Boolean), uploads.c.device == bindparam("device")),
        uploads.c.expires_ns > bindparam("now"),
    )
)
_SHOWN = union(_READABLE, _SENT)
_other = upload_chunks.alias("other")
_PROMISED_ALONE = (
    select(chunks.c.drive, chunks.c.id, chunks.c.stored_length)
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .where(
        upload_chunks.c.version == bindparam("version"),
        chunks.c.state == "pending",
        ~exists().where(
            _other.c.drive == chunks.c.drive,
            _other.c.chunk == chunks.c.id,
            _other.c.version != upload_chunks.c.version,
        ),
        # A bad object was taken away from under a version: the row stays until it is back.
        ~exists().where(
            version_chunks.c.drive == chunks.c.drive, version_chunks.c.chunk == chunks.c.id
        ),
    )
)
_PROMISE_OF = (
    select(func.coalesce(upload_chunks.c.descriptor, chunks.c.descriptor))
    .join_from(upload_chunks, chunks, _chunk_of_lease)
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .where(
        upload_chunks.c.version == bindparam("version"),
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk == bindparam("chunk"),
        uploads.c.expires_ns > bindparam("now"),
    )
)


def take(
    conn: Connection,
    caller: Caller,
    upload: Upload,
    descriptors: Sequence[Descriptor],
    budget: Budget,
    sign: Sign,
    now_ns: int,
) -> list[ChunkTicket]:
    """Lease these chunks, or the same again: a ticket for each, with a fresh URL where needed.

    Raises `Refused` with BadUpload, QuotaExceeded or RateLimited.
    """
    wanted = _checked(descriptors)
    known = known_chunks(conn, upload.drive, wanted)
    fresh = [descriptor for id, descriptor in wanted.items() if id not in known]
    shown, asked = None, 0
    if not access.owns_drive(caller, upload.drive):
        shown = possessed(conn, caller, upload, list(wanted), now_ns)
        counted = shown | _held(conn, upload, wanted)
        asked = sum(d.length for id, d in wanted.items() if id not in counted)
    budget.take(upload.drive, sum(d.stored_length for d in fresh), asked)
    _promise(conn, caller, upload.drive, fresh, now_ns)
    _keep(conn, upload.drive, [id for id, row in known.items() if row.state == "doomed"])
    _record(conn, upload, wanted, known, shown)
    there = {id for id, row in known.items() if row.state in THERE}
    there = there if shown is None else there & shown
    proof = None if shown is None else upload.version
    return [
        ChunkTicket(id=each.id, state="uploaded")
        if each.id in there
        else ChunkTicket(id=each.id, state="needed", put=sign(upload.drive, each, proof))
        for each in descriptors
    ]


def tickets(conn: Connection, version: str) -> list[ChunkTicket]:
    """Which of the chunks that an upload leases are there for it. No URLs."""
    return [
        ChunkTicket(id=row.id, state="uploaded" if row.state in THERE and row.proven else "needed")
        for row in conn.execute(_LEASED, {"version": version})
    ]


def possessed(
    conn: Connection, caller: Caller, upload: Upload, ids: Sequence[bytes], now_ns: int
) -> set[bytes]:
    """Those of `ids` that the caller can read in the upload's file or has sent for the upload."""
    here: dict[str, object] = {"version": upload.version, "file": upload.file}
    here |= {"drive": upload.drive, "account": caller.account, "now": now_ns}
    # What the account's other devices may know of, a token for a single folder may not.
    here |= {"device": caller.device, "any_device": caller.folder is None}
    found: set[bytes] = set()
    for page in pages(ids):
        found.update(conn.execute(_SHOWN, here | {"ids": page}).scalars())
    return found


def promise_of(
    conn: Connection, version: str, drive: str, chunk: bytes, now_ns: int
) -> Descriptor | None:
    """How the upload of `version` said it would store a chunk; None: it leases no such chunk."""
    here = {"version": version, "drive": drive, "chunk": chunk, "now": now_ns}
    found = conn.execute(_PROMISE_OF, here).scalar()
    return None if found is None else _decode(found)


def end(conn: Connection, version: str) -> None:
    """End an upload session: its leases, and the promises that nobody else leases. What was stored
    is left to garbage collection; what is still coming finds no row (`arrivals`)."""
    alone = conn.execute(_PROMISED_ALONE, {"version": version}).all()
    uploading = (versions.c.id == version) & (versions.c.status == "uploading")
    conn.execute(delete(versions).where(uploading))
    conn.execute(delete(uploads).where(uploads.c.version == version))
    for page in pages(alone):
        drive = page[0].drive
        mine = (chunks.c.drive == drive) & chunks.c.id.in_([row.id for row in page])
        conn.execute(delete(chunks).where(mine))
        quota.release(conn, drive, sum(row.stored_length for row in page))


def known_chunks(conn: Connection, drive: str, wanted: Iterable[bytes]) -> dict[bytes, Row[Any]]:
    """Those of `wanted` that the drive knows of: state, descriptor, and who vouches for it."""
    found: dict[bytes, Row[Any]] = {}
    for page in pages(wanted):
        found |= {row.id: row for row in conn.execute(_KNOWN, {"drive": drive, "ids": page})}
    return found


# --- writing ------------------------------------------------------------------------------------


def _checked(descriptors: Iterable[Descriptor]) -> dict[bytes, Descriptor]:
    wanted: dict[bytes, Descriptor] = {}
    for descriptor in descriptors:
        try:
            check_descriptor(descriptor)
        except BadContent as error:
            raise Refused(BadUpload(message=str(error))) from error
        wanted[descriptor.id] = descriptor
    return wanted


def _held(conn: Connection, upload: Upload, ids: Iterable[bytes]) -> set[bytes]:
    """Those of `ids` that the upload leases already."""
    found: set[bytes] = set()
    for page in pages(ids):
        mine = (upload_chunks.c.version == upload.version) & upload_chunks.c.chunk.in_(page)
        found.update(conn.execute(select(upload_chunks.c.chunk).where(mine)).scalars())
    return found


def _promise(
    conn: Connection, caller: Caller, drive: str, descriptors: Sequence[Descriptor], now_ns: int
) -> None:
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
            "device": caller.device,
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
    upload: Upload,
    wanted: dict[bytes, Descriptor],
    known: dict[bytes, Row[Any]],
    shown: set[bytes] | None,
) -> None:
    """Write the leases, each with its own descriptor where its bytes are awaited and the chunk's
    says otherwise."""
    for page in pages(wanted):
        old = (upload_chunks.c.version == upload.version) & upload_chunks.c.chunk.in_(page)
        conn.execute(delete(upload_chunks).where(old))
    rows = []
    for id, descriptor in wanted.items():
        row, proven = known.get(id), shown is None or id in shown
        own = None
        if row is not None and not (proven and row.state in THERE):
            encoded = _encode(descriptor)
            own = encoded if encoded != row.descriptor else None
        lease = {"version": upload.version, "drive": upload.drive, "chunk": id}
        rows.append(lease | {"descriptor": own, "proven": int(proven)})
    if rows:
        conn.execute(insert(upload_chunks), rows)
