"""Reading the tree and finding content."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from remote.protocol.messages import (
    ChangesPage,
    ChildrenPage,
    FileReply,
    FingerprintReply,
    Located,
    LocateReply,
    LocateRequest,
    VersionsPage,
)
from server.api.endpoint import Id, Limit, get, post
from server.api.exchange import Request
from server.changes import feed
from server.changes.views import view_of
from server.drive import listing, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.service import Service
from server.storage.blobs import BlobKey
from server.uploads import verification


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

    def work(conn: Connection, caller: Caller) -> LocateReply | list[BlobKey]:
        return _locate(service, conn, caller, wanted)

    found = await request.read(work)
    while not isinstance(found, LocateReply):
        await service.reception.vouch(found, service.whose(request.token))
        found = await request.read(work)
    return found


def _locate(
    service: Service, conn: Connection, caller: Caller, wanted: LocateRequest
) -> LocateReply | list[BlobKey]:
    """Authorised by the role on the file and by the version that refers to the chunk; knowing a
    chunk's id is worth nothing. Or what has to be vouched for before the caller may have it."""
    row = access.require(conn, caller, wanted.file, "viewer")
    version = versions.read(conn, wanted.file, wanted.version)
    manifest = None
    if wanted.manifest or wanted.span is not None:
        manifest = versions.manifest_of(version)
    ids = dict.fromkeys(wanted.chunks)
    if manifest is not None and wanted.span is not None:
        ids |= dict.fromkeys(versions.under(manifest, wanted.span)[: listing.MAX_CHILDREN])
    now_ns = time.time_ns()
    descriptors = versions.descriptors(conn, wanted.version, list(ids))
    doubtful = verification.doubtful(conn, row.drive, ids, caller.device)
    if doubtful:
        return doubtful
    found = []
    for descriptor in descriptors:
        url, expires_ns = service.signer.get(BlobKey(row.drive, descriptor.id), now_ns)
        found.append(Located(descriptor=descriptor, url=url, expires_ns=expires_ns))
    return LocateReply(chunks=found, manifest=manifest if wanted.manifest else None)
