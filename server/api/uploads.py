"""Upload sessions over HTTP."""

from __future__ import annotations

import time

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
from server.api.endpoint import Id, delete, get, post
from server.api.exchange import Request
from server.permissions.caller import Caller
from server.uploads import sessions
from server.uploads.sessions import Terms


@post("/v1/files", "Start uploads")
async def start(request: Request, wanted: StartUploads) -> StartUploadsReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> StartUploadsReply:
        terms, is_over = service.terms(conn, caller), service.turn(caller.account)
        left = MAX_BATCH
        begun: list[UploadState | AnyProblem] = []
        for each in wanted.uploads:
            left -= len(each.descriptors)
            is_late = begun and (left < 0 or is_over())
            begun.append(_LATER if is_late else _start(conn, caller, each, terms))
        return StartUploadsReply(begun)

    return await request.write(work)


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


@get("/v1/uploads/{version}", "What is there")
async def state(request: Request, version: Id) -> UploadState:
    def work(conn: Connection, caller: Caller) -> UploadState:
        return sessions.state(conn, caller, version, time.time_ns())

    return await request.read(work)


@post("/v1/uploads/{version}/urls", "Presigned PUTs")
async def urls(request: Request, version: Id, wanted: UrlsRequest) -> UploadState:
    def work(conn: Connection, caller: Caller) -> UploadState:
        terms, now_ns = request.service.terms(conn, caller), time.time_ns()
        return sessions.extend(conn, caller, version, wanted.descriptors, terms, now_ns)

    return await request.write(work)


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
