"""Mutations, and the change feed by pull and long poll."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from sqlalchemy import Connection

from remote.protocol.messages import ApplyReply, ApplyRequest, ChangesPage
from server.api.endpoint import get, post
from server.api.exchange import Request
from server.changes import feed
from server.changes.fanout import Closed
from server.changes.views import View, view_of
from server.permissions.caller import Caller

# To wait. What is outside is brought inside, whatever is asked.
Seconds = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": 60})]


@post("/v1/changes/apply", "Apply changes")
async def apply(request: Request, wanted: ApplyRequest) -> ApplyReply:
    return ApplyReply(await request.service.apply(request.token, wanted.ops, wanted.sent_as))


@get("/v1/changes", "Pull changes")
async def changes(request: Request, cursor: str | None = None) -> ChangesPage:
    page, _ = await _pull(request, cursor)
    return page


@get("/v1/changes/wait", "Wait for changes")
async def wait(request: Request, cursor: str | None = None, timeout: Seconds = 30.0) -> ChangesPage:
    """Like `changes`, but an empty page is only sent after `timeout` seconds without news.

    It listens before it reads, so nothing can be committed unseen in between.
    """
    service = request.service
    page, view = await _pull(request, cursor)
    seconds = max(0.0, min(timeout, service.settings.tunables.wait_seconds))
    if _is_news(page) or not seconds:
        return page
    listening = service.fanout.subscribe(view.listens_to)
    with service.metrics.polls.track_inprogress(), listening as news:
        page, _ = await _pull(request, cursor)
        if not _is_news(page):
            try:
                async with asyncio.timeout(seconds):
                    await news.next()
            except (TimeoutError, Closed):
                return page
            page, _ = await _pull(request, cursor)
    return page


def _is_news(page: ChangesPage) -> bool:
    return bool(page.changes) or page.reset or page.shared is not None


async def _pull(request: Request, cursor: str | None) -> tuple[ChangesPage, View]:
    service = request.service

    def work(conn: Connection, caller: Caller) -> tuple[ChangesPage, View]:
        view = view_of(conn, caller, service.nesting)
        return feed.pull(conn, service.cursors, view, cursor), view

    return await request.read(work)
