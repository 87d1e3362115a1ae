"""Versions: making one current, reading its manifest, finding its chunks.

Knows: when a manifest may be believed (it adds up, and the drive has every chunk). Must not know:
upload sessions' life (`uploads`), who asks (`access`), URLs (`signer`).

Invariant: a version becomes visible (`uploaded`) in the same transaction that makes it the current
one of a file, and never changes afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from remote.content import HOLE, BadContent, Descriptor, Manifest, check_manifest, fingerprint
from remote.errors import BadUpload, ChunksMissing, Exists, NotFound, Refused
from remote.wire import MAX_BATCH, Content, Span
from server.mutation import Mutation
from server.records import pages
from server.schema import chunks, devices, uploads, version_chunks, versions

_encode = msgspec.msgpack.Encoder().encode
_decode_manifest = msgspec.msgpack.Decoder(Manifest).decode
_decode_descriptor = msgspec.msgpack.Decoder(Descriptor).decode

_CHUNKS = select(chunks.c.id, chunks.c.state, chunks.c.length).where(
    chunks.c.drive == bindparam("drive"), chunks.c.id.in_(bindparam("ids", expanding=True))
)
_REVIVE = (
    update(chunks)
    .where(
        chunks.c.drive == bindparam("d"),
        chunks.c.id.in_(bindparam("ids", expanding=True)),
        chunks.c.state == "doomed",
    )
    .values(state="uploaded", doomed_ns=None)
)
_OF_VERSION = (
    select(chunks.c.id, chunks.c.descriptor)
    .join_from(
        version_chunks,
        chunks,
        (version_chunks.c.drive == chunks.c.drive) & (version_chunks.c.chunk == chunks.c.id),
    )
    .where(
        version_chunks.c.version == bindparam("version"),
        version_chunks.c.chunk.in_(bindparam("ids", expanding=True)),
    )
)
_VERSION = select(versions).where(
    versions.c.file == bindparam("file"),
    versions.c.id == bindparam("id"),
    versions.c.status == "uploaded",
)


def commit(tx: Mutation, file: str, content: Content, mtime_ns: int) -> None:
    """Make `content.version` an uploaded version of `file`.

    Raises `Refused` with BadUpload (the manifest contradicts itself or a chunk), ChunksMissing
    (upload these first) or Exists (the version id is taken).
    """
    wanted = _checked_pieces(content.manifest)
    _check_chunks(tx, wanted)
    _check_version_free(tx, content.version)
    row = {
        "file": file,
        "id": content.version,
        "drive": tx.drive,
        "status": "uploaded",
        "size": content.manifest.size,
        "manifest": _encode(content.manifest),
        "fingerprint": fingerprint(content.manifest),
        "mtime_ns": mtime_ns,
        "created_ns": tx.now_ns,
        "device": tx.caller.device,
        "base": content.base,
    }
    tx.conn.execute(insert(versions), row)
    refs = [{"version": content.version, "drive": tx.drive, "chunk": id} for id in wanted]
    if refs:
        tx.conn.execute(insert(version_chunks), refs)


def adopt(conn: Connection, source: str, target: str, version: str) -> None:
    """File version `version` of `source` under `target` too."""
    known = select(versions.c.id).where(versions.c.file == target, versions.c.id == version)
    if conn.execute(known).first() is not None:
        return
    row = read(conn, source, version)
    conn.execute(insert(versions), dict(row._mapping) | {"file": target})


def read(conn: Connection, file: str, version: str | None) -> Row[Any]:
    """The row of an uploaded version of `file`. Raises `Refused(NotFound)`."""
    row = conn.execute(_VERSION, {"file": file, "id": version}).first()
    if row is None:
        raise Refused(NotFound(message=f"file {file} has no version {version}"))
    return row


def manifest_of(row: Row[Any]) -> Manifest:
    return _decode_manifest(row.manifest)


def descriptors(conn: Connection, version: str, ids: Sequence[bytes]) -> list[Descriptor]:
    """The descriptors of chunks `ids` of `version`, in that order.

    Raises `Refused(NotFound)` if the version does not refer to one of them.
    """
    found: dict[bytes, Descriptor] = {}
    for page in pages(ids):
        for row in conn.execute(_OF_VERSION, {"version": version, "ids": page}):
            found[row.id] = _decode_descriptor(row.descriptor)
    for id in ids:
        if id not in found:
            raise Refused(NotFound(message=f"version {version} has no chunk {id.hex()}"))
    return [found[id] for id in ids]


def under(manifest: Manifest, span: Span) -> list[bytes]:
    """The chunks under a byte range, in file order, each once."""
    found: dict[bytes, None] = {}
    offset, end = 0, span.offset + span.length
    for piece in manifest.pieces:
        if offset >= end:
            break
        if offset + piece.length > span.offset and piece.id != HOLE:
            found[piece.id] = None
        offset += piece.length
    return list(found)


def _checked_pieces(manifest: Manifest) -> dict[bytes, int]:
    """The plain length of each chunk that `manifest` names."""
    try:
        check_manifest(manifest)
    except BadContent as error:
        raise Refused(BadUpload(message=str(error))) from error
    lengths: dict[bytes, int] = {}
    for piece in manifest.pieces:
        if piece.id != HOLE and lengths.setdefault(piece.id, piece.length) != piece.length:
            raise Refused(BadUpload(message="one chunk stands in the manifest with two lengths"))
    return lengths


def _check_chunks(tx: Mutation, wanted: dict[bytes, int]) -> None:
    there = _states(tx.conn, tx.drive, wanted)
    missing = [id for id in wanted if there.get(id, ("pending", 0))[0] == "pending"]
    if missing:
        message = f"{len(missing)} chunks are not uploaded yet"
        raise Refused(ChunksMissing(message=message, chunks=missing[:MAX_BATCH]))
    for id, length in wanted.items():
        if there[id][1] != length:
            raise Refused(BadUpload(message=f"chunk {id.hex()} has {there[id][1]} bytes"))
    doomed = [id for id in wanted if there[id][0] == "doomed"]
    for page in pages(doomed):
        tx.conn.execute(_REVIVE, {"d": tx.drive, "ids": page})


def _states(conn: Connection, drive: str, ids: Iterable[bytes]) -> dict[bytes, tuple[str, int]]:
    found: dict[bytes, tuple[str, int]] = {}
    for page in pages(ids):
        for row in conn.execute(_CHUNKS, {"drive": drive, "ids": page}):
            found[row.id] = (row.state, row.length)
    return found


def _check_version_free(tx: Mutation, version: str) -> None:
    """The id is unused, or that of an upload of the caller's, which ends here. Which file that
    upload was begun for does not matter: a temporary file may have been renamed since."""
    query = select(versions.c.status, devices.c.account).join(
        devices, versions.c.device == devices.c.id
    )
    for row in tx.conn.execute(query.where(versions.c.id == version)).all():
        if row.status == "uploaded" or row.account != tx.caller.account:
            raise Refused(Exists(message=f"there is a version {version} already"))
        tx.conn.execute(delete(versions).where(versions.c.id == version))
        tx.conn.execute(delete(uploads).where(uploads.c.version == version))
