"""Mutations, and the change feed by pull and long poll."""

from __future__ import annotations

import asyncio

from litestar import get, post
from litestar.params import FromQuery
from sqlalchemy import Connection

from remote.protocol.messages import ApplyReply, ApplyRequest, ChangesPage
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.changes import feed
from server.changes.fanout import Closed
from server.changes.views import View, view_of
from server.permissions.caller import Caller
from server.service import Service


@post("/v1/changes/apply")
async def apply(request: AnyRequest) -> Reply:
    wanted = await body(request, ApplyRequest)
    results = await service_of(request).apply(token_in(request), wanted.ops, wanted.sent_as)
    return reply(request, ApplyReply(results))


@get("/v1/changes")
async def changes(request: AnyRequest, cursor: FromQuery[str | None] = None) -> Reply:
    page, _ = await _pull(service_of(request), token_in(request), cursor)
    return reply(request, page)


@get("/v1/changes/wait")
async def wait(
    request: AnyRequest, cursor: FromQuery[str | None] = None, timeout: FromQuery[float] = 30.0
) -> Reply:
    """Like `changes`, but an empty page is only sent after `timeout` seconds without news.

    It listens before it reads, so nothing can be committed unseen in between.
    """
    service, token = service_of(request), token_in(request)
    page, view = await _pull(service, token, cursor)
    seconds = max(0.0, min(timeout, service.settings.tunables.wait_seconds))
    if _is_news(page) or not seconds:
        return reply(request, page)
    listening = service.fanout.subscribe(view.listens_to)
    with service.metrics.polls.track_inprogress(), listening as news:
        page, _ = await _pull(service, token, cursor)
        if not _is_news(page):
            try:
                async with asyncio.timeout(seconds):
                    await news.next()
            except (TimeoutError, Closed):
                return reply(request, page)
            page, _ = await _pull(service, token, cursor)
    return reply(request, page)


def _is_news(page: ChangesPage) -> bool:
    return bool(page.changes) or page.reset or page.shared is not None


async def _pull(
    service: Service, token: str | None, cursor: str | None
) -> tuple[ChangesPage, View]:
    def work(conn: Connection, caller: Caller) -> tuple[ChangesPage, View]:
        view = view_of(conn, caller, service.nesting)
        return feed.pull(conn, service.cursors, view, cursor), view

    return await service.read(token, work)
