"""Links over HTTP, for the drive's owner."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.protocol.account_messages import LinkMade, LinksReply, MakeLink
from remote.protocol.errors import RateLimited, Refused
from server.accounts import accounts
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.links import links
from server.permissions.caller import Caller
from server.service import Service


@post("/v1/files/{file_id:str}/links")
async def make(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)
    service, token = service_of(request), token_in(request)
    wanted = await body(request, MakeLink)

    def check(conn: Connection, caller: Caller) -> str:
        links.check_make(conn, caller, file_id, wanted, time.time_ns())
        return caller.account

    hashed = None
    if wanted.password is not None:
        # Hashing is dear: only for who may make the link.
        account = await service.read(token, check)
        hashed = await _hashed(service, account, wanted.password)

    def work(conn: Connection, caller: Caller) -> LinkMade:
        info, secret = links.make(conn, caller, file_id, wanted, hashed, time.time_ns())
        return LinkMade(link=info, url=f"{service.settings.public_url}/s/{secret}")

    return reply(request, await service.write(token, work))


async def _hashed(service: Service, account: str, password: str) -> str:
    """The hash of `password`, in its turn and as often as an account may. Raises
    `Refused(RateLimited)`."""
    wait = service.locked_links.take(account, time.monotonic())
    if wait:
        message = f"too many links with a password; try again in {max(1.0, wait):.0f} s"
        raise Refused(RateLimited(message=message, retry_after_seconds=round(wait, 3)))
    try:
        return await service.desk.run("link", account, accounts.hash_password, password)
    except Refused:  # nothing was hashed
        service.locked_links.give_back(account, time.monotonic())
        raise


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
