"""The trash: what is in it, and emptying it. Putting things back is an operation (`recover`)."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from litestar import get, post
from litestar.params import FromQuery
from sqlalchemy import Connection

from remote.protocol.account_messages import EmptiedReply, EmptyTrash, TrashPage
from remote.protocol.errors import BadRequest, Refused
from server.api.exchange import AnyRequest, Reply, body, published, reply, service_of, token_in
from server.api.files import check_id
from server.changes.fanout import News
from server.drive import retention, trash
from server.permissions.caller import Caller

_ENDING = re.compile("[0-9a-f]{6,32}")


@get("/v1/trash")
async def page(
    request: AnyRequest,
    parent: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
    limit: FromQuery[int] = trash.MAX_ITEMS,
    name: FromQuery[str | None] = None,
    ending: FromQuery[str | None] = None,
) -> Reply:
    if parent is not None:
        check_id(parent)
    if ending is not None and not _ENDING.fullmatch(ending):
        raise Refused(BadRequest(message="ending is 6 to 32 hex digits, the last of an id"))
    service = service_of(request)
    days = service.settings.tunables.keep_days

    def work(conn: Connection, caller: Caller) -> TrashPage:
        keep_ns = retention.kept_ns(conn, caller.account, days)
        return trash.page(conn, caller, keep_ns, parent, cursor, limit, name=name, ending=ending)

    return reply(request, await service.read(token_in(request), work))


@post("/v1/trash/empty")
async def empty(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, EmptyTrash)

    def work(conn: Connection, caller: Caller) -> tuple[Sequence[News], EmptiedReply]:
        is_over = service.turn(caller.account)
        return trash.empty(conn, caller, wanted.files, time.time_ns(), is_over)

    return reply(request, await published(request, work))
