"""The trash: what is in it, and emptying it. Putting things back is an operation (`recover`)."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from sqlalchemy import Connection

from remote.protocol.account_messages import EmptiedReply, EmptyTrash, TrashPage
from remote.protocol.errors import BadRequest, Refused
from server.api.endpoint import Limit, check_id, get, post
from server.api.exchange import Request
from server.changes.fanout import News
from server.drive import retention, trash
from server.permissions.caller import Caller

_ENDING = re.compile("[0-9a-f]{6,32}")


@get("/v1/trash", "The trash")
async def page(
    request: Request,
    parent: str | None = None,
    cursor: str | None = None,
    limit: Limit = trash.MAX_ITEMS,
    name: str | None = None,
    ending: str | None = None,
) -> TrashPage:
    if parent is not None:
        check_id(parent)
    if ending is not None and not _ENDING.fullmatch(ending):
        raise Refused(BadRequest(message="ending is 6 to 32 hex digits, the last of an id"))
    days = request.service.settings.tunables.keep_days

    def work(conn: Connection, caller: Caller) -> TrashPage:
        keep_ns = retention.kept_ns(conn, caller.account, days)
        return trash.page(conn, caller, keep_ns, parent, cursor, limit, name=name, ending=ending)

    return await request.read(work)


@post("/v1/trash/empty", "Delete for good")
async def empty(request: Request, wanted: EmptyTrash) -> EmptiedReply:
    def work(conn: Connection, caller: Caller) -> tuple[Sequence[News], EmptiedReply]:
        is_over = request.service.turn(caller.account)
        return trash.empty(conn, caller, wanted.files, time.time_ns(), is_over)

    return await request.publish(work)
