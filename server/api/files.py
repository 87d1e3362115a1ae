"""Reading the tree and finding content."""

from __future__ import annotations

import re
import time

from litestar import get, post
from litestar.params import FromPath, FromQuery
from sqlalchemy import Connection

from remote.protocol.errors import NotFound, Refused
from remote.protocol.messages import ListRequest, Located, LocateReply, LocateRequest
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.changes import feed
from server.changes.views import view_of
from server.drive import listing, versions
from server.permissions import access
from server.permissions.caller import Caller
from server.service import Service
from server.storage.blobs import BlobKey
from server.uploads import verification

_ID = re.compile(r"[0-9a-f]{32}")


def check_id(id: str) -> str:
    """An id in a path that cannot exist is answered as one that does not."""
    if not _ID.fullmatch(id):
        raise Refused(NotFound(message=f"{id[:64]!r} is no id: 32 hex digits"))
    return id


@get("/v1/files/{file_id:str}")
async def file(
    request: AnyRequest,
    file_id: FromPath[str],
    version: FromQuery[str | None] = None,
    manifest: FromQuery[bool] = False,
) -> Reply:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> object:
        return listing.file(conn, caller, file_id, version, manifest)

    return reply(request, await service_of(request).read(token_in(request), work))


@get("/v1/files/{file_id:str}/children")
async def children(
    request: AnyRequest,
    file_id: FromPath[str],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = listing.MAX_CHILDREN,
) -> Reply:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> object:
        return listing.children(conn, caller, file_id, cursor, limit)

    return reply(request, await service_of(request).read(token_in(request), work))


@post("/v1/listings")
async def listings(request: AnyRequest) -> Reply:
    wanted = await body(request, ListRequest)

    def work(conn: Connection, caller: Caller) -> object:
        return listing.several(conn, caller, wanted.directories)

    return reply(request, await service_of(request).read(token_in(request), work))


@get("/v1/files/{file_id:str}/versions")
async def file_versions(
    request: AnyRequest,
    file_id: FromPath[str],
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = listing.MAX_VERSIONS,
) -> Reply:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> object:
        return listing.history(conn, caller, file_id, cursor, limit)

    return reply(request, await service_of(request).read(token_in(request), work))


@get("/v1/files/{file_id:str}/changes")
async def file_changes(
    request: AnyRequest, file_id: FromPath[str], cursor: FromQuery[str | None] = None
) -> Reply:
    check_id(file_id)
    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> object:
        row = access.require(conn, caller, file_id, "viewer")
        view = view_of(conn, caller, service.nesting)
        return feed.history(conn, service.cursors, view, row.drive, file_id, cursor)

    return reply(request, await service.read(token_in(request), work))


@get("/v1/files/by-fingerprint/{fingerprint:str}")
async def by_fingerprint(request: AnyRequest, fingerprint: FromPath[str]) -> Reply:
    def work(conn: Connection, caller: Caller) -> object:
        return listing.by_fingerprint(conn, caller, fingerprint)

    return reply(request, await service_of(request).read(token_in(request), work))


@post("/v1/chunks/locate")
async def locate(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, LocateRequest)

    def work(conn: Connection, caller: Caller) -> LocateReply | list[BlobKey]:
        return _locate(service, conn, caller, wanted)

    found = await service.read(token_in(request), work)
    while not isinstance(found, LocateReply):
        await service.reception.vouch(found, service.whose(token_in(request)))
        found = await service.read(token_in(request), work)
    return reply(request, found)


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
