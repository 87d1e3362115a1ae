"""Sharing over HTTP."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.wire_account import SharedReply, ShareRequest, SharesReply
from server.api.exchange import AnyRequest, Reply, body, published, reply, service_of, token_in
from server.api.files import check_id
from server.changes.fanout import News
from server.changes.views import shared_with, with_attributes
from server.people import sharing
from server.people.caller import Caller


@post("/v1/files/{file_id:str}/share")
async def share(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)
    wanted = await body(request, ShareRequest)

    def work(conn: Connection, caller: Caller) -> tuple[list[News], SharesReply]:
        given = (wanted.users, time.time_ns(), wanted.entry)
        news = sharing.share(conn, caller, file_id, *given)
        return news, sharing.list_grants(conn, caller, file_id)

    return reply(request, await published(request, work))


@get("/v1/files/{file_id:str}/shares")
async def shares(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> SharesReply:
        return sharing.list_grants(conn, caller, file_id)

    return reply(request, await service_of(request).read(token_in(request), work))


@delete("/v1/files/{file_id:str}/share/{account:str}")
async def unshare(request: AnyRequest, file_id: FromPath[str], account: FromPath[str]) -> None:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> tuple[list[News], None]:
        return sharing.unshare(conn, caller, file_id, account, time.time_ns()), None

    await published(request, work)


@get("/v1/shared")
async def shared(request: AnyRequest) -> Reply:
    def work(conn: Connection, caller: Caller) -> SharedReply:
        roots = () if caller.folder is not None else shared_with(conn, caller.account)
        return SharedReply(with_attributes(conn, roots))

    return reply(request, await service_of(request).read(token_in(request), work))
