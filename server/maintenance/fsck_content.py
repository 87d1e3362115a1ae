"""fsck of versions, chunks and uploads: every reference, in the database alone.

Knows: the invariants of the tables that make up content, and the states of a chunk. Must not know:
the blob store (`fsck_objects`), the tree, sums that are kept (`fsck_sums`).

A chunk that a version needs and that is not there is damage that only an upload of the same bytes
(any device that has them does it when the file is saved again) or a backup can undo; what fsck
repairs is what follows from other rows: references from manifests, states from references, sums.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from remote.protocol.content import (
    HOLE,
    BadContent,
    Descriptor,
    Manifest,
    check_descriptor,
    check_manifest,
    fingerprint,
)
from server.maintenance import fsck_sums
from server.maintenance.fsck_findings import Finding, Fix, Found, Names, execute
from server.maintenance.fsck_tree import REPAIR
from server.maintenance.gc_chunks import NOWHERE, renewed
from server.metadata.records import slices
from server.metadata.schema import (
    accounts,
    bundles,
    chunks,
    devices,
    files,
    uploads,
    version_chunks,
    versions,
)
from server.uploads import quota
from server.uploads.quota import Sums

PAGE = 200
GO_BACK = (
    "go back to another version (`nearline log`, `nearline restore`), or restore a backup;"
    " saving the file again on a device that has it makes it whole"
)

_decode_manifest = msgspec.msgpack.Decoder(Manifest).decode
_decode_descriptor = msgspec.msgpack.Decoder(Descriptor).decode

# --- files and their versions -------------------------------------------------------------------

_current = versions.alias("current")


def check_files(conn: Connection, names: Names) -> Iterator[Found]:
    """A regular file has a current version of its size, and nothing else has one."""
    what = case(
        (
            (files.c.kind == "file") & _current.c.id.is_(None),
            "its current version is not among its versions",
        ),
        ((files.c.kind == "file") & (_current.c.size != files.c.size), "its size is wrong"),
        ((files.c.kind != "file") & files.c.version.is_not(None), "has a version but is no file"),
        ((files.c.kind == "symlink") & files.c.target.is_(None), "is a symlink to nothing"),
    )
    same = (_current.c.file == files.c.id) & (_current.c.id == files.c.version)
    query = (
        select(files.c.id, what.label("what"))
        .outerjoin_from(files, _current, same & (_current.c.status == "uploaded"))
        .where(what.is_not(None))
    )
    for row in conn.execute(query).all():
        yield Found(names.finding("file", row.what, GO_BACK, row.id))


_VERSIONS = (
    select(versions)
    .where(tuple_(versions.c.file, versions.c.id) > tuple_(bindparam("file"), bindparam("id")))
    .where(versions.c.status == "uploaded")
    .order_by(versions.c.file, versions.c.id)
    .limit(PAGE)
)
_REFERENCES = (
    select(
        version_chunks.c.version,
        version_chunks.c.drive,
        version_chunks.c.chunk,
        chunks.c.state,
        chunks.c.length,
    )
    .outerjoin_from(
        version_chunks,
        chunks,
        (chunks.c.drive == version_chunks.c.drive) & (chunks.c.id == version_chunks.c.chunk),
    )
    .where(version_chunks.c.version.in_(bindparam("versions", expanding=True)))
)


def check_versions(conn: Connection, names: Names) -> Iterator[Found]:
    """Manifests decode and add up, refer to exactly their chunks, and those are there."""
    file, id = "", ""
    while page := conn.execute(_VERSIONS, {"file": file, "id": id}).all():
        references: defaultdict[str, list[Any]] = defaultdict(list)
        for row in conn.execute(_REFERENCES, {"versions": [item.id for item in page]}):
            references[row.version].append(row)
        for version in page:
            for kind, what, todo, fix in _contradictions(version, references[version.id]):
                finding = names.finding(kind, what, todo, version.file, version=version.id)
                yield Found(finding, fix)
        file, id = page[-1].file, page[-1].id


def _contradictions(
    version: Row[Any], references: list[Any]
) -> Iterator[tuple[str, str, str, Fix | None]]:
    """(kind, what, what to do, fix) for all that is wrong with one version."""
    try:
        manifest = _decode_manifest(version.manifest or b"")
        check_manifest(manifest)
    except (msgspec.MsgspecError, BadContent) as error:
        yield "manifest", f"its manifest is damaged: {error}", GO_BACK, None
        return
    if manifest.size != version.size or fingerprint(manifest) != version.fingerprint:
        yield "manifest", "its manifest is not what its size and fingerprint say", GO_BACK, None
    wanted = {piece.id: piece.length for piece in manifest.pieces if piece.id != HOLE}
    found = {row.chunk: row for row in references if row.drive == version.drive}
    if found.keys() != wanted.keys() or len(found) != len(references):
        what = "it does not refer to exactly the chunks of its manifest"
        todo = f"{REPAIR}; what remains: {GO_BACK}"
        yield "references", what, todo, partial(_fix_references, version=version, ids=set(wanted))
    missing = [id for id in wanted if id in found and found[id].state in _GONE]
    if missing:
        what = f"{len(missing)} of its {len(wanted)} chunks are missing"
        yield "missing", what, GO_BACK, None
    if any(id in found and found[id].length not in (None, wanted[id]) for id in wanted):
        yield "manifest", "it has a chunk with another length than the chunk's own", GO_BACK, None


_GONE = (None, "pending", "deleting")


def _fix_references(conn: Connection, version: Row[Any], ids: set[bytes]) -> bool:
    """Refer to exactly those of `ids` that the drive knows of; the others stay reported."""
    known = set[bytes]()
    for some in slices(ids):
        query = select(chunks.c.id).where(chunks.c.drive == version.drive, chunks.c.id.in_(some))
        known.update(conn.execute(query).scalars())
    conn.execute(delete(version_chunks).where(version_chunks.c.version == version.id))
    rows = [{"version": version.id, "drive": version.drive, "chunk": id} for id in known]
    if rows:
        conn.execute(insert(version_chunks), rows)
    return known == ids


def check_superseded(conn: Connection, names: Names) -> Iterator[Found]:
    """A version that is not the current one any more says since when; retention counts by it."""
    is_current = exists().where(files.c.id == versions.c.file, files.c.version == versions.c.id)
    wrong = (versions.c.status == "uploaded") & (versions.c.superseded_ns.is_(None) != is_current)
    for row in conn.execute(select(versions.c.file, versions.c.id).where(wrong)).all():
        mine = wrong & (versions.c.file == row.file) & (versions.c.id == row.id)
        since = case((is_current, None), else_=versions.c.created_ns)
        what = "it does not say rightly whether it is the current version"
        finding = names.finding("superseded", what, REPAIR, row.file, version=row.id)
        yield Found(finding, execute(update(versions).where(mine).values(superseded_ns=since)))


def check_stray_references(conn: Connection, names: Names) -> Iterator[Found]:
    """References are of versions that exist; others would keep chunks for ever."""
    known = select(versions.c.id).where(versions.c.status == "uploaded")
    stray = version_chunks.c.version.not_in(known)
    query = select(version_chunks.c.version, func.count().label("number")).where(stray)
    for row in conn.execute(query.group_by(version_chunks.c.version)).all():
        what = f"{row.number} chunks are kept for version {row.version}, which is not there"
        mine = stray & (version_chunks.c.version == row.version)
        finding = Finding("references", what, REPAIR, version=row.version)
        yield Found(finding, execute(delete(version_chunks).where(mine)))


def check_uploads(conn: Connection, names: Names) -> Iterator[Found]:
    """A session and its version without content come and go together."""
    pair = (uploads.c.version == versions.c.id) & (uploads.c.file == versions.c.file)
    alone = (versions.c.status == "uploading") & ~exists().where(pair)
    for row in conn.execute(select(versions.c.file, versions.c.id).where(alone)).all():
        mine = alone & (versions.c.id == row.id) & (versions.c.file == row.file)
        what = f"version {row.id} of file {row.file} is being uploaded by no session"
        finding = Finding("upload", what, REPAIR, file=row.file, version=row.id)
        yield Found(finding, execute(delete(versions).where(mine)))
    for row in conn.execute(_sessions().where(_without_version())).all():
        mine = (uploads.c.version == row.version) & _without_version()
        what = f"the upload session {row.version} is of no version"
        finding = Finding("upload", what, REPAIR, account=row.name, version=row.version)
        yield Found(finding, execute(delete(uploads).where(mine)))


def _sessions() -> Any:
    of = select(uploads.c.version, accounts.c.name).join_from(
        uploads, devices, devices.c.id == uploads.c.device
    )
    return of.join(accounts, accounts.c.id == devices.c.account)


def _without_version() -> Any:
    begun = (versions.c.id == uploads.c.version) & (versions.c.status == "uploading")
    return ~exists().where(begun)


# --- chunks -------------------------------------------------------------------------------------

_held = (
    exists()
    .where(version_chunks.c.drive == chunks.c.drive, version_chunks.c.chunk == chunks.c.id)
    .where(versions.c.id == version_chunks.c.version, versions.c.status == "uploaded")
)


def check_states(conn: Connection, names: Names) -> Iterator[Found]:
    """Chunks that a version refers to are neither about to be deleted nor being deleted."""
    doomed = (chunks.c.state == "doomed") & or_(_held, chunks.c.doomed_ns.is_(None))
    deleting = (chunks.c.state == "deleting") & _held
    query = select(chunks.c.drive, chunks.c.id, chunks.c.state).where(or_(doomed, deleting))
    for row in conn.execute(query).all():
        what = f"chunk {row.id.hex()} is {row.state} although it is referred to"
        account = names.account(row.drive)
        finding = Finding("state", what, REPAIR, account=account, chunk=row.id.hex())
        fix = _revive if row.state == "doomed" else _renew
        yield Found(finding, partial(fix, drive=row.drive, id=row.id))


def check_places(conn: Connection, names: Names) -> Iterator[Found]:
    """A chunk that is not stored is in no bundle, unless that one may come back: it has a row."""
    may_be = exists().where(bundles.c.drive == chunks.c.drive, bundles.c.id == chunks.c.bundle)
    wrong = (chunks.c.state == "pending") & chunks.c.bundle.is_not(None) & ~may_be
    for row in conn.execute(select(chunks.c.drive, chunks.c.id).where(wrong)).all():
        what = f"chunk {row.id.hex()} counts as missing, and as part of a bundle"
        account = names.account(row.drive)
        mine = wrong & (chunks.c.drive == row.drive) & (chunks.c.id == row.id)
        finding = Finding("state", what, REPAIR, account=account, chunk=row.id.hex())
        yield Found(finding, execute(update(chunks).where(mine).values(**NOWHERE)))


def _revive(conn: Connection, drive: str, id: bytes) -> bool:
    mine = (chunks.c.drive == drive) & (chunks.c.id == id) & (chunks.c.state == "doomed")
    conn.execute(update(chunks).where(mine).values(state="uploaded", doomed_ns=None))
    return True


def _renew(conn: Connection, drive: str, id: bytes) -> bool:
    """Its object may be half gone: it is to be uploaded again."""
    mine = (chunks.c.drive == drive) & (chunks.c.id == id) & (chunks.c.state == "deleting")
    gone = (
        update(chunks)
        .where(mine)
        .values(**renewed(time.time_ns()))
        .returning(chunks.c.stored_length, chunks.c.unshown)
    )
    quota.change(conn, drive, Sums.of_pending(conn.execute(gone)))
    return True


def descriptor_of(chunk: Row[Any]) -> Descriptor:
    """The descriptor of a row of `chunks`. Raises `BadContent` if it is none, or of another."""
    try:
        descriptor = _decode_descriptor(chunk.descriptor)
    except msgspec.MsgspecError as error:
        raise BadContent(f"it cannot be read: {error}") from error
    check_descriptor(descriptor)
    told = (descriptor.id, descriptor.length, descriptor.stored_length, descriptor.sha256)
    if told != (chunk.id, chunk.length, chunk.stored_length, chunk.sha256):
        raise BadContent("it is of another chunk, or stored otherwise")
    return descriptor


CHECKS: tuple[Callable[[Connection, Names], Iterator[Found]], ...] = (
    check_files,
    check_versions,
    check_superseded,
    check_stray_references,
    check_uploads,
    check_states,
    check_places,
    fsck_sums.check_unshown,
)
