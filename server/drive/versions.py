"""Versions: making one current, reading its manifest, finding its chunks.

Knows: when a manifest may be believed (it adds up, the drive has every chunk, and the writer may
refer to each). Must not know: upload sessions' life (`uploads`), roles (`access`), URLs (`signer`).

Invariants:
- A version becomes visible (`uploaded`) in the same transaction that makes it the current one of a
  file. Afterwards only `superseded_ns` changes.
- `superseded_ns` is null for the current version of a file and for no other uploaded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, bindparam, exists, func, insert, select, update

from remote.protocol.chunking import check_cut
from remote.protocol.content import (
    HOLE,
    BadContent,
    Descriptor,
    Manifest,
    check_manifest,
    fingerprint,
)
from remote.protocol.errors import BadUpload, ChunksMissing, Exists, NotFound, Refused
from remote.protocol.messages import MAX_BATCH, Content, Span
from server.drive.mutation import Mutation
from server.drive.working_set import FileRow
from server.metadata.records import slices
from server.metadata.schema import chunks, version_chunks, versions
from server.permissions import access
from server.storage.places import COLUMNS, Place, place_of
from server.uploads import leases
from server.uploads.leases import THERE, Upload

_encode = msgspec.msgpack.Encoder().encode
_decode_manifest = msgspec.msgpack.Decoder(Manifest).decode
_decode_descriptor = msgspec.msgpack.Decoder(Descriptor).decode

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
    select(*COLUMNS, chunks.c.descriptor, chunks.c.copied)
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
_MANIFEST_BYTES = select(func.length(versions.c.manifest)).where(
    versions.c.file == bindparam("file"),
    versions.c.id == bindparam("id"),
    versions.c.status == "uploaded",
)
_SIZE = select(versions.c.size).where(
    versions.c.file == bindparam("file"),
    versions.c.id == bindparam("id"),
    versions.c.status == "uploaded",
)


class StoredChunk(NamedTuple):
    """A chunk that a version refers to, and where it is stored. `copied`: it is an object of its
    own too."""

    descriptor: Descriptor
    place: Place
    copied: bool


def commit(tx: Mutation, file: str, content: Content, mtime_ns: int) -> None:
    """Make `content.version` an uploaded version of `file`.

    Raises `Refused` with BadUpload (the manifest contradicts itself or a chunk, or is cut into far
    too many pieces), ChunksMissing (upload these first) or Exists (the version id is taken).
    """
    wanted = _checked_pieces(content.manifest, check_cut)
    _check_possession(tx, Upload(content.version, file, tx.drive), wanted)
    _check_chunks(tx, wanted)
    _check_version_free(tx, content.version)
    _insert(tx, file, content, mtime_ns, wanted, restored_from=None)


def bring_back(tx: Mutation, row: FileRow, old: str, as_version: str, mtime_ns: int) -> Row[Any]:
    """Make version `as_version` of file `row`, of the content that its version `old` has.

    Returns the row of `old`. Raises `Refused` with NotFound (no such version), Exists (the id is
    taken) or ChunksMissing (the drive has lost chunks of it).
    """
    found = read(tx.conn, row.id, old)
    manifest = manifest_of(found)
    wanted = _checked_pieces(manifest)
    _check_chunks(tx, wanted)
    if tx.rows.holders(as_version):
        raise Refused(_taken(as_version))
    content = Content(version=as_version, base=row.version, manifest=manifest)
    _insert(tx, row.id, content, mtime_ns, wanted, restored_from=old)
    return found


def _insert(
    tx: Mutation,
    file: str,
    content: Content,
    mtime_ns: int,
    wanted: Iterable[bytes],
    restored_from: str | None,
) -> None:
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
        "restored_from": restored_from,
    }
    tx.rows.insert_version(row, tx.caller.account, wanted)


def make_current(tx: Mutation, row: FileRow, version: str, **values: object) -> None:
    """Let file `row` hold `version` from now on, with `values` in its other columns; the version
    before is history."""
    if row.version is not None and row.version != version:
        tx.rows.supersede(row.id, row.version, tx.now_ns)
    tx.update(row.id, version=version, **values)


def adopt(tx: Mutation, source: FileRow, target: FileRow) -> None:
    """File the current version of `source` under `target` too, as what follows its current one."""
    mine = (versions.c.file == target.id) & (versions.c.id == source.version)
    known = tx.conn.execute(select(versions.c.id).where(mine)).first()
    if known is not None:
        tx.conn.execute(update(versions).where(mine).values(superseded_ns=None))
        return
    row = dict(read(tx.conn, source.id, source.version)._mapping)
    here = {"file": target.id, "created_ns": tx.now_ns, "base": target.version}
    tx.conn.execute(insert(versions), row | here | {"superseded_ns": None, "restored_from": None})
    tx.rows.forget_version(row["id"])


def copy(tx: Mutation, source: FileRow, file: str) -> None:
    """File the current version of `source` under the new file `file` too, as its first one."""
    row = dict(read(tx.conn, source.id, source.version)._mapping)
    first = {"file": file, "base": None, "superseded_ns": None, "restored_from": None}
    tx.conn.execute(insert(versions), row | first)
    tx.rows.forget_version(row["id"])


def has_gone_on(conn: Connection, source: str, target: str) -> bool:
    """True if everything that `source` ever held is in the history of `target` too."""
    other = versions.alias()
    adopted = exists().where(other.c.file == target, other.c.id == versions.c.id)
    left = select(versions.c.id).where(
        versions.c.file == source, versions.c.status == "uploaded", ~adopted
    )
    return conn.execute(left.limit(1)).first() is None


def read(conn: Connection, file: str, version: str | None) -> Row[Any]:
    """The row of an uploaded version of `file`. Raises `Refused(NotFound)`."""
    row = conn.execute(_VERSION, {"file": file, "id": version}).first()
    if row is None:
        raise Refused(NotFound(message=f"file {file} has no version {version}"))
    return row


def size_of(conn: Connection, file: str, version: str) -> int:
    """The bytes of an uploaded version of `file`; its manifest, which may be large, is not read.
    Raises `Refused(NotFound)`."""
    size: int | None = conn.execute(_SIZE, {"file": file, "id": version}).scalar()
    if size is None:
        raise Refused(NotFound(message=f"file {file} has no version {version}"))
    return size


def manifest_bytes(conn: Connection, file: str, version: str) -> int:
    """Bytes of the manifest of an uploaded version of `file`, as it is stored. Raises
    `Refused(NotFound)`."""
    size: int | None = conn.execute(_MANIFEST_BYTES, {"file": file, "id": version}).scalar()
    if size is None:
        raise Refused(NotFound(message=f"file {file} has no version {version}"))
    return size


def manifest_of(row: Row[Any]) -> Manifest:
    return _decode_manifest(row.manifest)


def stored(conn: Connection, version: str, ids: Sequence[bytes]) -> list[StoredChunk]:
    """Chunks `ids` of `version`, in that order.

    Raises `Refused(NotFound)` if the version does not refer to one of them.
    """
    found: dict[bytes, StoredChunk] = {}
    for some in slices(ids):
        for row in conn.execute(_OF_VERSION, {"version": version, "ids": some}):
            descriptor = _decode_descriptor(row.descriptor)
            found[row.id] = StoredChunk(descriptor, place_of(row), bool(row.copied))
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


def _checked_pieces(manifest: Manifest, *more: Callable[[Manifest], None]) -> dict[bytes, int]:
    """The plain length of each chunk that `manifest` names, if it passes the check of every
    manifest and `more` ones."""
    try:
        for check in (check_manifest, *more):
            check(manifest)
    except BadContent as error:
        raise Refused(BadUpload(message=str(error))) from error
    lengths: dict[bytes, int] = {}
    for piece in manifest.pieces:
        if piece.id != HOLE and lengths.setdefault(piece.id, piece.length) != piece.length:
            raise Refused(BadUpload(message="one chunk stands in the manifest with two lengths"))
    return lengths


def _check_possession(tx: Mutation, upload: Upload, wanted: dict[bytes, int]) -> None:
    """Refuse chunks that the caller does not possess: who does not own the drive refers to what
    they can read in this file or have sent with this upload. The rest is missing, whether it is
    there or not."""
    if not access.owns_drive(tx.caller, tx.drive):
        shown = leases.possessed(tx.conn, tx.caller, upload, list(wanted), tx.now_ns)
        _refuse_missing([id for id in wanted if id not in shown])


def _refuse_missing(missing: list[bytes]) -> None:
    if missing:
        message = f"{len(missing)} chunks are not uploaded yet"
        raise Refused(ChunksMissing(message=message, chunks=missing[:MAX_BATCH]))


def _check_chunks(tx: Mutation, wanted: dict[bytes, int]) -> None:
    there = tx.rows.chunks(tx.drive, wanted)
    _refuse_missing([id for id in wanted if id not in there or there[id][0] not in THERE])
    for id, length in wanted.items():
        if there[id][1] != length:
            raise Refused(BadUpload(message=f"chunk {id.hex()} has {there[id][1]} bytes"))
    doomed = [id for id in wanted if there[id][0] == "doomed"]
    for some in slices(doomed):
        tx.conn.execute(_REVIVE, {"d": tx.drive, "ids": some})
    for id in doomed:
        tx.rows.note_revived(tx.drive, id)


def _taken(version: str) -> Exists:
    return Exists(message=f"there is a version {version} already", taken="version")


def _check_version_free(tx: Mutation, version: str) -> None:
    """The id is unused, or that of an upload of the caller's, or of one that is over: it ends here.
    Which file that upload was begun for does not matter: a temporary file may have been renamed
    since."""
    found = tx.rows.holders(version)
    for row in found:
        is_over = row.expires_ns is not None and row.expires_ns <= tx.now_ns
        if row.status == "uploaded" or not (is_over or row.account == tx.caller.account):
            raise Refused(_taken(version))
    if found:
        tx.rows.end_upload(version)
