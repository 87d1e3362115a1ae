"""Sharing over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.protocol.account_messages import SharedReply, ShareRequest, SharesReply
from remote.protocol.errors import RateLimited, Refused
from server.api.exchange import AnyRequest, Reply, body, published, reply, service_of, token_in
from server.api.files import check_id
from server.changes.fanout import News
from server.changes.views import shared_with, with_attributes
from server.drive import sharing
from server.permissions.caller import Caller
from server.service import Service


@post("/v1/files/{file_id:str}/share")
async def share(request: AnyRequest, file_id: FromPath[str]) -> Reply:
    check_id(file_id)
    wanted = await body(request, ShareRequest)

    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> tuple[list[News], SharesReply]:
        now_ns, pace = time.time_ns(), service.share_pace
        news = sharing.share(conn, caller, file_id, wanted.users, now_ns, wanted.entry, pace)
        return news, sharing.list_grants(conn, caller, file_id)

    with _counting_misses(service, await service.account_of(token_in(request))):
        shares = await published(request, work)
    return reply(request, shares)


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
    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> SharedReply:
        whole = caller.folder is None
        roots = shared_with(conn, caller.account, service.nesting) if whole else ()
        return SharedReply(with_attributes(conn, roots))

    return reply(request, await service.read(token_in(request), work))
