"""Upload sessions over HTTP."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.protocol.errors import AnyProblem, BadRequest, Refused, Unavailable
from remote.protocol.messages import (
    MAX_BATCH,
    Applied,
    CompleteUpload,
    Keyed,
    StartUpload,
    StartUploads,
    StartUploadsReply,
    UploadState,
    UrlsRequest,
)
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.permissions.caller import Caller
from server.uploads import sessions
from server.uploads.sessions import Terms


@post("/v1/files")
async def start(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, StartUploads)

    def work(conn: Connection, caller: Caller) -> StartUploadsReply:
        terms, is_over = service.terms(conn, caller), service.turn(caller.account)
        left = MAX_BATCH
        begun: list[UploadState | AnyProblem] = []
        for each in wanted.uploads:
            left -= len(each.descriptors)
            is_late = begun and (left < 0 or is_over())
            begun.append(_LATER if is_late else _start(conn, caller, each, terms))
        return StartUploadsReply(begun)

    return reply(request, await service.write(token_in(request), work))


_LATER = Unavailable(message=f"at most {MAX_BATCH} descriptors at a time; send the rest again")
"""All other writers wait while descriptors are taken in. While they do, it may be fewer."""


def _start(conn: Connection, caller: Caller, wanted: StartUpload, terms: Terms) -> UploadState:
    """One of a batch; a refusal undoes only what this one did."""
    conn.exec_driver_sql("SAVEPOINT upload")
    try:
        begun = sessions.start(conn, caller, wanted, terms, time.time_ns())
    except Refused as refused:
        conn.exec_driver_sql("ROLLBACK TO SAVEPOINT upload")
        conn.exec_driver_sql("RELEASE SAVEPOINT upload")
        return refused.problem  # type: ignore[return-value]  # the reply's union, see StartUploadsReply
    conn.exec_driver_sql("RELEASE SAVEPOINT upload")
    return begun


@get("/v1/uploads/{version:str}")
async def state(request: AnyRequest, version: FromPath[str]) -> Reply:
    check_id(version)

    def work(conn: Connection, caller: Caller) -> UploadState:
        return sessions.state(conn, caller, version, time.time_ns())

    return reply(request, await service_of(request).read(token_in(request), work))


@post("/v1/uploads/{version:str}/urls")
async def urls(request: AnyRequest, version: FromPath[str]) -> Reply:
    check_id(version)
    service = service_of(request)
    wanted = (await body(request, UrlsRequest)).descriptors

    def work(conn: Connection, caller: Caller) -> UploadState:
        terms = service.terms(conn, caller)
        return sessions.extend(conn, caller, version, wanted, terms, time.time_ns())

    return reply(request, await service.write(token_in(request), work))


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
