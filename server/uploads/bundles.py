"""Bundles: asked for, found among stored objects, and their rows.

Knows: which chunks may be sent in one object, how a stored object is seen to be a bundle. Must not
know: when one arrives (`arrivals`), how it is laid out (`remote.protocol.bundle`), who may read it
(`server.api.files`).

Only the owner of a whole drive sends bundles, for chunks that uploads of theirs have announced. A
request for one writes nothing: all that is known of a bundle is in the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

import msgspec
from sqlalchemy import Connection, bindparam, delete, exists, func, insert, select, update

from remote.protocol.bundle import Bundle, bundle_of
from remote.protocol.content import BadContent, Descriptor
from remote.protocol.errors import BadUpload, Refused
from remote.protocol.messages import BundlePart, PresignedPut, StartBundle, StartBundleReply
from server.metadata.records import slices
from server.metadata.schema import bundles, chunks, devices, upload_chunks, uploads
from server.permissions import access
from server.permissions.caller import Caller
from server.storage.blobs import BlobKey, BlobMissing, BlobStore, Head
from server.storage.bundles import read_bundle

# States of a chunk whose bytes are awaited: what is being deleted is as good as gone.
_NEEDED = ("pending", "deleting")

_ANNOUNCED = (
    select(
        upload_chunks.c.version,
        upload_chunks.c.chunk,
        func.coalesce(upload_chunks.c.descriptor, chunks.c.descriptor).label("descriptor"),
        chunks.c.state,
    )
    .join_from(
        upload_chunks,
        chunks,
        (upload_chunks.c.drive == chunks.c.drive) & (upload_chunks.c.chunk == chunks.c.id),
    )
    .join(uploads, uploads.c.version == upload_chunks.c.version)
    .join(devices, uploads.c.device == devices.c.id)
    .where(
        upload_chunks.c.drive == bindparam("drive"),
        upload_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
        devices.c.account == bindparam("account"),
        uploads.c.expires_ns > bindparam("now"),
    )
)
_LOST = (
    select(bundles.c.id, bundles.c.length, bundles.c.sha256)
    .join_from(
        chunks, bundles, (chunks.c.drive == bundles.c.drive) & (chunks.c.bundle == bundles.c.id)
    )
    .where(
        chunks.c.drive == bindparam("drive"),
        chunks.c.id.in_(bindparam("ids", expanding=True)),
        chunks.c.state == "pending",
    )
)
_here = (bundles.c.drive == bindparam("d")) & (bundles.c.id == bindparam("i"))
_FILLED = update(bundles).where(_here).values(emptied_ns=None)
# Of a row of `bundles`: a chunk is in it. One column: for all of them SQLite would walk the drive.
IS_USED = exists(
    select(chunks.c.bundle).where(
        chunks.c.drive == bundles.c.drive, chunks.c.bundle == bundles.c.id
    )
)
_EMPTIED = (
    update(bundles)
    .where(
        bundles.c.drive == bindparam("d"),
        bundles.c.id.in_(bindparam("ids", expanding=True)),
        bundles.c.emptied_ns.is_(None),
        ~IS_USED,
    )
    .values(emptied_ns=bindparam("now"))
)
_UNUSED = (
    delete(bundles)
    .where(_here, bundles.c.deleting == 0, ~IS_USED)
    .returning(bundles.c.length, bundles.c.sha256)
)

_decode = msgspec.msgpack.Decoder(Descriptor).decode

# (object, what it will be).
Sign = Callable[[BlobKey, Head], PresignedPut]


def start(
    conn: Connection, caller: Caller, wanted: StartBundle, sign: Sign, now_ns: int
) -> StartBundleReply:
    """Permission to send the parts as one object.

    Raises `Refused` with Forbidden (not with a token for less), or BadUpload (a part is not
    announced, or is there; or they make no bundle).
    """
    access.require_whole(caller)
    try:
        made = bundle_of(_announced(conn, caller, wanted.parts, now_ns))
    except BadContent as error:
        raise Refused(BadUpload(message=str(error))) from error
    put = sign(BlobKey(caller.drive, made.id), Head(made.length, wanted.sha256))
    return StartBundleReply(id=made.id, put=put)


def _announced(
    conn: Connection, caller: Caller, parts: Sequence[BundlePart], now_ns: int
) -> list[Descriptor]:
    """The descriptors of the parts as the caller's uploads have announced them."""
    mine: dict[str, object] = {"drive": caller.drive, "account": caller.account, "now": now_ns}
    found: dict[tuple[str, bytes], Descriptor] = {}
    for some in slices({part.chunk for part in parts}):
        for row in conn.execute(_ANNOUNCED, mine | {"ids": some}):
            if row.state in _NEEDED:
                found[row.version, row.chunk] = _decode(row.descriptor)
    for part in parts:
        if (part.version, part.chunk) not in found:
            message = f"no upload of version {part.version} awaits chunk {part.chunk.hex()}"
            raise Refused(BadUpload(message=f"{message}; announce it again"))
    return [found[part.version, part.chunk] for part in parts]


def index_of(blobs: BlobStore, key: BlobKey) -> Bundle | None:
    """The bundle that a stored object is, by what it says itself, without those parts whose bytes
    have another SHA-256 than it says: of a bundle the edge has checked only that of the whole.
    None: it is none, or there is no such object. Reads a few bytes of what is no bundle.
    Blocking."""
    try:
        found = read_bundle(blobs, key)
        good = [
            (part, offset)
            for part, offset in zip(found.parts, found.offsets, strict=True)
            if sha256(blobs.read(key, offset, part.stored_length)).digest() == part.sha256
        ]
    except (BadContent, BlobMissing):
        return None
    if not good:
        return None
    parts, offsets = zip(*good, strict=True)
    return found._replace(parts=parts, offsets=offsets)


def places_of_lost(conn: Connection, keys: Iterable[BlobKey]) -> list[tuple[BlobKey, Head]]:
    """The bundles in which those of these chunks were that are pending because the object was not
    there, and how those should be."""
    by_drive: dict[str, list[bytes]] = {}
    for key in keys:
        by_drive.setdefault(key.drive, []).append(key.chunk)
    found = {
        BlobKey(drive, row.id): Head(row.length, row.sha256)
        for drive, ids in by_drive.items()
        for some in slices(ids)
        for row in conn.execute(_LOST, {"drive": drive, "ids": some})
    }
    return list(found.items())


# --- rows ---------------------------------------------------------------------------------------


def insert_row(conn: Connection, key: BlobKey, head: Head, now_ns: int) -> None:
    """The object is there, and chunks are in it."""
    of = {"drive": key.drive, "id": key.chunk, "length": head.length, "sha256": head.sha256}
    conn.execute(insert(bundles), of | {"created_ns": now_ns})


def note_filled(conn: Connection, key: BlobKey) -> None:
    """Chunks are in it again."""
    conn.execute(_FILLED, {"d": key.drive, "i": key.chunk})


def note_emptied(conn: Connection, drive: str, ids: Iterable[bytes], now_ns: int) -> None:
    """Chunks have left these bundles: no chunk may be in one of them any more."""
    for some in slices(set(ids)):
        conn.execute(_EMPTIED, {"d": drive, "ids": some, "now": now_ns})


def delete_unused(conn: Connection, key: BlobKey) -> Head | None:
    """Forget a bundle that no chunk is in and that nobody is deleting: how its object should be,
    which may go in this transaction. None: it is none such."""
    row = conn.execute(_UNUSED, {"d": key.drive, "i": key.chunk}).first()
    return None if row is None else Head(row.length, row.sha256)
