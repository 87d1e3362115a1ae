"""Reading the tree and finding content."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

from litestar import get, post
from litestar.params import FromPath, FromQuery
from sqlalchemy import Connection

from remote.protocol.errors import AnyProblem, NotFound, Refused
from remote.protocol.messages import (
    MAX_WHOLE_CHUNKS,
    ListRequest,
    Located,
    LocatedVersion,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
    Span,
    WholeVersion,
)
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
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

    return reply(request, await _vouched_for(request, work))


@post("/v1/chunks/locate-several")
async def locate_several(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, LocateSeveral)

    def work(conn: Connection, caller: Caller) -> LocateSeveralReply | list[BlobKey]:
        return _locate_several(service, conn, caller, wanted.versions)

    return reply(request, await _vouched_for(request, work))


async def _vouched_for(
    request: AnyRequest, work: Callable[[Connection, Caller], T | list[BlobKey]]
) -> T:
    """What `work` answers, once everything that it names instead has been vouched for."""
    service = service_of(request)
    found = await service.read(token_in(request), work)
    while isinstance(found, list):
        await service.reception.vouch(found, service.whose(token_in(request)))
        found = await service.read(token_in(request), work)
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
    found = _signed(service, conn, caller, row.drive, wanted.version, list(ids))
    if not isinstance(found, Signed):
        return found
    return LocateReply(chunks=found.chunks, manifest=manifest if wanted.manifest else None)


def _locate_several(
    service: Service, conn: Connection, caller: Caller, wanted: Sequence[WholeVersion]
) -> LocateSeveralReply | list[BlobKey]:
    """Each is authorised, and refused, by itself: see `_locate`."""
    lineage = Lineage(conn)
    answers: list[LocatedVersion | AnyProblem] = []
    doubtful: list[BlobKey] = []
    for one in wanted:
        try:
            row = access.require(conn, caller, one.file, "viewer", lineage)
            manifest = versions.manifest_of(versions.read(conn, one.file, one.version))
            ids = versions.under(manifest, Span(0, max(1, manifest.size)))[:MAX_WHOLE_CHUNKS]
            found = _signed(service, conn, caller, row.drive, one.version, ids)
        except Refused as refused:
            answers.append(cast(AnyProblem, refused.problem))
            continue
        if isinstance(found, Signed):
            answers.append(LocatedVersion(manifest=manifest, chunks=found.chunks))
        else:
            doubtful += found
    return doubtful or LocateSeveralReply(found=answers)


class Signed(NamedTuple):
    chunks: list[Located]


def _signed(
    service: Service,
    conn: Connection,
    caller: Caller,
    drive: str,
    version: str,
    ids: Sequence[bytes],
) -> Signed | list[BlobKey]:
    """Where chunks of a version are, for somebody who may read it; or what of them has to be
    vouched for before. Raises `Refused(NotFound)`."""
    if not ids:
        return Signed([])
    now_ns = time.time_ns()
    descriptors = versions.descriptors(conn, version, ids)
    doubtful = verification.doubtful(conn, drive, ids, caller.device)
    if doubtful:
        return doubtful
    found = []
    for descriptor in descriptors:
        url, expires_ns = service.signer.get(BlobKey(drive, descriptor.id), now_ns)
        found.append(Located(descriptor=descriptor, url=url, expires_ns=expires_ns))
    return Signed(found)
