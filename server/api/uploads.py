"""Upload sessions over HTTP."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.protocol.errors import BadRequest, Refused
from remote.protocol.messages import (
    Applied,
    CompleteUpload,
    Keyed,
    StartUploads,
    StartUploadsReply,
    UploadState,
    UrlsRequest,
)
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.permissions.caller import Caller
from server.uploads import sessions


@post("/v1/files")
async def start(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, StartUploads)

    def work(conn: Connection, caller: Caller) -> StartUploadsReply:
        terms, is_over = service.terms(conn, caller), service.turn(caller.account)
        begun = sessions.start_many(conn, caller, wanted.uploads, terms, time.time_ns(), is_over)
        return StartUploadsReply(begun)

    chunks = {each.id for upload in wanted.uploads for each in upload.descriptors}
    return reply(request, await service.write(token_in(request), work, chunks))


@get("/v1/uploads/{version:str}")
async def state(request: AnyRequest, version: FromPath[str]) -> Reply:
    check_id(version)

    def work(conn: Connection, caller: Caller) -> UploadState:
        return sessions.state(conn, caller, version, time.time_ns())

    service = service_of(request)
    await service.note_arrivals(token_in(request))
    return reply(request, await service.read(token_in(request), work))


@post("/v1/uploads/{version:str}/urls")
async def urls(request: AnyRequest, version: FromPath[str]) -> Reply:
    check_id(version)
    service = service_of(request)
    wanted = (await body(request, UrlsRequest)).descriptors

    def work(conn: Connection, caller: Caller) -> UploadState:
        terms = service.terms(conn, caller)
        return sessions.extend(conn, caller, version, wanted, terms, time.time_ns())

    chunks = {each.id for each in wanted}
    return reply(request, await service.write(token_in(request), work, chunks))


@post("/v1/uploads/{version:str}/complete")
async def complete(request: AnyRequest, version: FromPath[str]) -> Reply:
    check_id(version)
    wanted = await body(request, CompleteUpload)
    content = wanted.op.content
    if content is None or content.version != version:
        raise Refused(BadRequest(message="the operation must carry the version of the upload"))
    keyed = Keyed(key=wanted.key, op=wanted.op)
    result = (await service_of(request).apply(token_in(request), [keyed]))[0]
    if not isinstance(result, Applied):
        raise Refused(result)
    return reply(request, result)


@delete("/v1/uploads/{version:str}")
async def abandon(request: AnyRequest, version: FromPath[str]) -> None:
    check_id(version)

    def work(conn: Connection, caller: Caller) -> None:
        sessions.abandon(conn, caller, version, time.time_ns())

    await service_of(request).write(token_in(request), work)
