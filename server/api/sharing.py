"""Sharing over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from remote.protocol.account_messages import SharedReply, ShareRequest, SharesReply
from remote.protocol.errors import RateLimited, Refused
from server.api.endpoint import Id, delete, get, post
from server.api.exchange import Request
from server.changes.fanout import News
from server.changes.views import shared_with, with_attributes
from server.drive import sharing
from server.permissions.caller import Caller
from server.service import Service


@post("/v1/files/{file_id}/share", "Share")
async def share(request: Request, file_id: Id, wanted: ShareRequest) -> SharesReply:
    service = request.service

    def work(conn: Connection, caller: Caller) -> tuple[list[News], SharesReply]:
        now_ns, pace = time.time_ns(), service.share_pace
        news = sharing.share(conn, caller, file_id, wanted.users, now_ns, wanted.entry, pace)
        return news, sharing.list_grants(conn, caller, file_id)

    with _counting_misses(service, await service.account_of(request.token)):
        return await request.publish(work)


@contextmanager
def _counting_misses(service: Service, account: str) -> Iterator[None]:
    """Only names that are no account's count. A try is taken before it is known what it is, so that
    many at a time are no way around. Raises `Refused(RateLimited)`."""
    wait = service.share_misses.take(account, time.monotonic())
    if wait:
        message = f"too many names that are no account's; share again in {max(1.0, wait):.0f} s"
        raise Refused(RateLimited(message=message, retry_after_seconds=round(wait, 3)))
    is_miss = False
    try:
        yield
    except sharing.NoSuchAccount:
        is_miss = True
        raise
    finally:
        if not is_miss:
            service.share_misses.give_back(account, time.monotonic())


@get("/v1/files/{file_id}/shares", "Who has access")
async def shares(request: Request, file_id: Id) -> SharesReply:
    def work(conn: Connection, caller: Caller) -> SharesReply:
        return sharing.list_grants(conn, caller, file_id)

    return await request.read(work)


@delete("/v1/files/{file_id}/share/{account}", "Take a grant back, or leave")
async def unshare(request: Request, file_id: Id, account: str) -> None:
    def work(conn: Connection, caller: Caller) -> tuple[list[News], None]:
        return sharing.unshare(conn, caller, file_id, account, time.time_ns()), None

    await request.publish(work)


@get("/v1/shared", "What others share")
async def shared(request: Request) -> SharedReply:
    def work(conn: Connection, caller: Caller) -> SharedReply:
        whole = caller.folder is None
        roots = shared_with(conn, caller.account, request.service.nesting) if whole else ()
        return SharedReply(with_attributes(conn, roots))

    return await request.read(work)
