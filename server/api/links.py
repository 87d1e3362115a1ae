"""Links over HTTP, for the drive's owner."""

from __future__ import annotations

import time

from sqlalchemy import Connection

from remote.protocol.account_messages import LinkMade, LinksReply, MakeLink
from remote.protocol.errors import RateLimited, Refused
from server.accounts import accounts
from server.api.endpoint import Id, delete, get, post
from server.api.exchange import Request
from server.links import links
from server.permissions.caller import Caller
from server.service import Service


@post("/v1/files/{file_id}/links", "Make a link")
async def make(request: Request, file_id: Id, wanted: MakeLink) -> LinkMade:
    service = request.service

    def check(conn: Connection, caller: Caller) -> str:
        links.check_make(conn, caller, file_id, wanted, time.time_ns())
        return caller.account

    hashed = None
    if wanted.password is not None:
        # Hashing is dear: only for who may make the link.
        account = await request.read(check)
        hashed = await _hashed(service, account, wanted.password)

    def work(conn: Connection, caller: Caller) -> LinkMade:
        info, secret = links.make(conn, caller, file_id, wanted, hashed, time.time_ns())
        return LinkMade(link=info, url=f"{service.settings.public_url}/s/{secret}")

    return await request.write(work)


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


@get("/v1/files/{file_id}/links", "Its links")
async def of_file(request: Request, file_id: Id) -> LinksReply:
    def work(conn: Connection, caller: Caller) -> LinksReply:
        return links.list_links(conn, caller, file_id, time.time_ns())

    return await request.read(work)


@get("/v1/links", "All links")
async def of_drive(request: Request) -> LinksReply:
    def work(conn: Connection, caller: Caller) -> LinksReply:
        return links.list_links(conn, caller, None, time.time_ns())

    return await request.read(work)


@delete("/v1/links/{link_id}", "Revoke a link")
async def revoke(request: Request, link_id: Id) -> None:
    def work(conn: Connection, caller: Caller) -> None:
        links.revoke(conn, caller, link_id, time.time_ns())

    await request.write(work)
