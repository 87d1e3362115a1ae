"""Links over HTTP, for the drive's owner."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.wire_account import LinkMade, LinksReply, MakeLink
from server.api import passwords
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.people import accounts
from server.people.caller import Caller
from server.public import links


@post("/v1/files/{file_id:str}/links")
async def make(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)
    service, token = service_of(request), token_in(request)
    wanted = await body(request, MakeLink)

    def check(conn: Connection, caller: Caller) -> None:
        links.check_make(conn, caller, file_id, wanted, time.time_ns())

    hashed = None
    if wanted.password is not None:
        # Hashing is dear: only for who may make the link.
        await service.read(token, check)
        hashed = await passwords.off_loop(service, accounts.hash_password, wanted.password)

    def work(conn: Connection, caller: Caller) -> LinkMade:
        info, secret = links.make(conn, caller, file_id, wanted, hashed, time.time_ns())
        return LinkMade(link=info, url=f"{service.settings.public_url}/s/{secret}")

    return reply(request, await service.write(token, work))


@get("/v1/files/{file_id:str}/links")
async def of_file(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)

    def work(conn: Connection, caller: Caller) -> LinksReply:
        return links.list_links(conn, caller, file_id, time.time_ns())

    return reply(request, await service_of(request).read(token_in(request), work))


@get("/v1/links")
async def of_drive(request: AnyRequest) -> Reply:
    def work(conn: Connection, caller: Caller) -> LinksReply:
        return links.list_links(conn, caller, None, time.time_ns())

    return reply(request, await service_of(request).read(token_in(request), work))


@delete("/v1/links/{link_id:str}")
async def revoke(request: AnyRequest, link_id: FromPath[str]) -> None:
    check_id(link_id)

    def work(conn: Connection, caller: Caller) -> None:
        links.revoke(conn, caller, link_id, time.time_ns())

    await service_of(request).write(token_in(request), work)
