"""Upload sessions over HTTP."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from remote.protocol.errors import BadRequest, Refused
from remote.protocol.messages import (
    Applied,
    CompleteUpload,
    Keyed,
    StartBundle,
    StartBundleReply,
    StartUploads,
    StartUploadsReply,
    UploadState,
    UrlsRequest,
)
from server.api.endpoint import Id, delete, get, post
from server.api.exchange import Request
from server.permissions.caller import Caller
from server.uploads import bundles, sessions


@post("/v1/files", "Start uploads")
async def start(request: Request, wanted: StartUploads) -> StartUploadsReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> StartUploadsReply:
        terms, is_over = service.terms(conn, caller), service.turn(caller.account)
        begun = sessions.start_many(conn, caller, wanted.uploads, terms, time.time_ns(), is_over)
        return StartUploadsReply(begun)

    chunks = {item.id for upload in wanted.uploads for item in upload.descriptors}
    return await request.write(work, chunks)


@post("/v1/bundles", "A presigned PUT of several chunks")
async def bundle(request: Request, wanted: StartBundle) -> StartBundleReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> StartBundleReply:
        return bundles.start(conn, caller, wanted, service.sign_put, time.time_ns())

    return await request.read(work)


@get("/v1/uploads/{version}", "What is there")
async def state(request: Request, version: Id) -> UploadState:
    def work(conn: Connection, caller: Caller) -> UploadState:
        return sessions.state(conn, caller, version, time.time_ns())

    await request.service.note_arrivals(request.token)
    return await request.read(work)


@post("/v1/uploads/{version}/urls", "Presigned PUTs")
async def urls(request: Request, version: Id, wanted: UrlsRequest) -> UploadState:
    def work(conn: Connection, caller: Caller) -> UploadState:
        terms, now_ns = request.service.terms(conn, caller), time.time_ns()
        return sessions.extend(conn, caller, version, wanted.descriptors, terms, now_ns)

    chunks = {item.id for item in wanted.descriptors}
    return await request.write(work, chunks)


@post("/v1/uploads/{version}/complete", "Commit an upload")
async def complete(request: Request, version: Id, wanted: CompleteUpload) -> Applied:
    content = wanted.op.content
    if content is None or content.version != version:
        raise Refused(BadRequest(message="the operation must carry the version of the upload"))
    keyed = Keyed(key=wanted.key, op=wanted.op)
    result = (await request.service.apply(request.token, [keyed]))[0]
    if not isinstance(result, Applied):
        raise Refused(result)
    return result


@delete("/v1/uploads/{version}", "Abandon an upload")
async def abandon(request: Request, version: Id) -> None:
    def work(conn: Connection, caller: Caller) -> None:
        sessions.abandon(conn, caller, version, time.time_ns())

    await request.write(work)
