"""Reading the tree and finding content."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

from sqlalchemy import Connection

from remote.protocol.errors import AnyProblem, Refused, TooLarge, Unavailable
from remote.protocol.messages import (
    MAX_WHOLE_CHUNKS,
    ChangesPage,
    ChildrenPage,
    FileReply,
    FingerprintReply,
    ListReply,
    ListRequest,
    Located,
    LocatedVersion,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
    Span,
    VersionsPage,
    WholeVersion,
)
from server.api.endpoint import Id, Limit, get, post
from server.api.exchange import Request, Work
from server.changes import feed
from server.changes.views import view_of
from server.drive import listing, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.permissions.lineage import Lineage
from server.service import Service
from server.storage.blobs import BlobKey
from server.uploads import verification

T = TypeVar("T")

# Of each version that is located with others: some 1,500 pieces. One may have sixteen megabytes of
# them, and the same one may be asked for again and again in one request.
WHOLE_MANIFEST_BYTES = 64 * 1024


@get("/v1/files/{file_id}", "A file")
async def file(
    request: Request, file_id: Id, version: str | None = None, manifest: bool = False
) -> FileReply:
    def work(conn: Connection, caller: Caller) -> FileReply:
        return listing.file(conn, caller, file_id, version, manifest)

    return await request.read(work)


@get("/v1/files/{file_id}/children", "A directory")
async def children(
    request: Request,
    file_id: Id,
    cursor: str | None = None,
    limit: Limit = listing.MAX_CHILDREN,
) -> ChildrenPage:
    def work(conn: Connection, caller: Caller) -> ChildrenPage:
        return listing.children(conn, caller, file_id, cursor, limit)

    return await request.read(work)


@post("/v1/listings", "Several directories")
async def listings(request: Request, wanted: ListRequest) -> ListReply:
    def work(conn: Connection, caller: Caller) -> ListReply:
        return listing.several(conn, caller, wanted.directories)

    return await request.read(work)


@get("/v1/files/{file_id}/versions", "History")
async def file_versions(
    request: Request,
    file_id: Id,
    cursor: str | None = None,
    limit: Limit = listing.MAX_VERSIONS,
) -> VersionsPage:
    def work(conn: Connection, caller: Caller) -> VersionsPage:
        return listing.history(conn, caller, file_id, cursor, limit)

    return await request.read(work)


@get("/v1/files/{file_id}/changes", "Its changes")
async def file_changes(request: Request, file_id: Id, cursor: str | None = None) -> ChangesPage:
    service = request.service

    def work(conn: Connection, caller: Caller) -> ChangesPage:
        row = access.require(conn, caller, file_id, "viewer")
        view = view_of(conn, caller, service.nesting)
        return feed.history(conn, service.cursors, view, row.drive, file_id, cursor)

    return await request.read(work)


@get("/v1/files/by-fingerprint/{fingerprint}", "A file of this content in one's own drive")
async def by_fingerprint(request: Request, fingerprint: str) -> FingerprintReply:
    def work(conn: Connection, caller: Caller) -> FingerprintReply:
        return listing.by_fingerprint(conn, caller, fingerprint)

    return await request.read(work)


@post("/v1/chunks/locate", "Signed GETs")
async def locate(request: Request, wanted: LocateRequest) -> LocateReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> LocateReply | Unready:
        return _locate(service, conn, caller, wanted)

    return await _made_ready(request, work)


@post("/v1/chunks/locate-several", "Signed GETs of whole versions")
async def locate_several(request: Request, wanted: LocateSeveral) -> LocateSeveralReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> LocateSeveralReply | Unready:
        return _locate_several(service, conn, caller, wanted)

    try:
        return await _made_ready(request, work)
    except Refused as error:
        problem = error.problem
        if not isinstance(problem, Unavailable):
            raise

    def without(conn: Connection, caller: Caller) -> LocateSeveralReply:
        """Locate again: what is damaged, or not there, is refused, and nothing else for its
        sake."""
        found = _locate_several(service, conn, caller, wanted, problem)
        assert isinstance(found, LocateSeveralReply)
        return found

    return await request.read(without)


class Unready(NamedTuple):
    """The things to be done before somebody may have chunks that they may read: `doubtful` ones are
    to be vouched for, and `bundled` ones to be copied out for who may not read their neighbours."""

    doubtful: Sequence[BlobKey] = ()
    bundled: Sequence[BlobKey] = ()


async def _made_ready(request: Request, work: Work[T | Unready]) -> T:
    """The result of `work`, once everything that it names instead is ready."""
    service, whose = request.service, request.service.whose(request.token)
    found = await request.read(work)
    while isinstance(found, Unready):
        if found.doubtful:
            await service.reception.vouch(found.doubtful, whose)
        if found.bundled:
            await service.copies.make(found.bundled, whose)
        found = await request.read(work)
    return found


def _locate(
    service: Service, conn: Connection, caller: Caller, wanted: LocateRequest
) -> LocateReply | Unready:
    """Authorised by the role on the file and by the version that refers to the chunk; knowing a
    chunk's id is worth nothing. Or what has to be done before the caller may have it."""
    row = access.require(conn, caller, wanted.file, "viewer")
    version = versions.read(conn, wanted.file, wanted.version)
    manifest = None
    if wanted.manifest or wanted.span is not None:
        manifest = versions.manifest_of(version)
    ids = dict.fromkeys(wanted.chunks)
    if manifest is not None and wanted.span is not None:
        ids |= dict.fromkeys(versions.under(manifest, wanted.span)[: listing.MAX_CHILDREN])
    may_see_all = wanted.bundles and access.owns_drive(caller, row.drive)
    found = _signed(service, conn, caller, row.drive, wanted.version, list(ids), may_see_all)
    if not isinstance(found, Signed):
        return found
    return LocateReply(chunks=found.chunks, manifest=manifest if wanted.manifest else None)


def _locate_several(
    service: Service,
    conn: Connection,
    caller: Caller,
    wanted: LocateSeveral,
    doubt: Unavailable | None = None,
) -> LocateSeveralReply | Unready:
    """Each is authorised, and refused, by itself: see `_locate`. `doubt`: what to answer of those
    that are not ready."""
    files = [item.file for item in wanted.versions]
    rows, lineage = access.find_all(conn, files), Lineage(conn)
    lineage.learn([row.id for row in rows.values() if not access.owns_drive(caller, row.drive)])
    answers: list[LocatedVersion | AnyProblem] = []
    unready = Unready()
    for item in wanted.versions:
        try:
            row = rows.get(item.file)
            access.check(conn, caller, item.file, row, "viewer", lineage)
            assert row is not None
            _check_small(conn, item)
            manifest = versions.manifest_of(versions.read(conn, item.file, item.version))
            ids = versions.under(manifest, Span(0, max(1, manifest.size)))[:MAX_WHOLE_CHUNKS]
            may_see_all = wanted.bundles and access.owns_drive(caller, row.drive)
            found = _signed(service, conn, caller, row.drive, item.version, ids, may_see_all)
        except Refused as error:
            answers.append(cast(AnyProblem, error.problem))
            continue
        if isinstance(found, Signed):
            answers.append(LocatedVersion(manifest=manifest, chunks=found.chunks))
        elif doubt is not None:
            answers.append(doubt)
        else:
            unready = Unready(
                [*unready.doubtful, *found.doubtful], [*unready.bundled, *found.bundled]
            )
    return unready if any(unready) else LocateSeveralReply(found=answers)


def _check_small(conn: Connection, one: WholeVersion) -> None:
    """Raise `Refused(TooLarge)` of a version that many of are too much for one answer, or
    `Refused(NotFound)`."""
    if versions.manifest_bytes(conn, one.file, one.version) > WHOLE_MANIFEST_BYTES:
        raise Refused(TooLarge(message="this is a large file; locate its chunks by themselves"))


class Signed(NamedTuple):
    chunks: list[Located]


def _signed(
    service: Service,
    conn: Connection,
    caller: Caller,
    drive: str,
    version: str,
    ids: Sequence[bytes],
    may_see_all: bool,
) -> Signed | Unready:
    """Where chunks of a version are, for somebody who may read it; or what has to be done before.
    A URL opens a whole object: only who `may_see_all` that is in the drive is given that of a
    bundle. Raises `Refused(NotFound)`."""
    if not ids:
        return Signed([])
    now_ns = time.time_ns()
    stored = versions.stored(conn, version, ids)
    doubtful = verification.doubtful(conn, drive, ids, caller.device)
    if doubtful:
        return Unready(doubtful=doubtful)
    found, bundled = [], []
    for descriptor, place, is_copied in stored:
        own = BlobKey(drive, descriptor.id)
        if place.key == own or may_see_all:
            key, offset = place.key, place.offset
        elif is_copied:
            key, offset = own, 0
        else:
            bundled.append(own)
            continue
        url, expires_ns = service.signer.get(key, now_ns)
        found.append(Located(descriptor=descriptor, url=url, expires_ns=expires_ns, offset=offset))
    return Unready(bundled=bundled) if bundled else Signed(found)
