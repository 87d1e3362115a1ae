"""Devices and tokens over HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.protocol.account_messages import DevicesReply, MakeToken, TokenReply
from remote.protocol.errors import Refused, Unauthorized
from server.accounts import devices, tokens
from server.addresses import client_of
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.changes.fanout import News, account_topic
from server.permissions.caller import Caller
from server.service import Service


@get("/v1/devices")
async def listed(request: AnyRequest) -> Reply:
    def work(conn: Connection, caller: Caller) -> DevicesReply:
        return devices.devices_of(conn, caller, time.time_ns())

    return reply(request, await service_of(request).read(token_in(request), work))


@post("/v1/devices")
async def make(request: AnyRequest) -> Reply:
    wanted = await body(request, MakeToken)

    def work(conn: Connection, caller: Caller) -> TokenReply:
        return devices.make_token(conn, caller, wanted, time.time_ns())

    return reply(request, await service_of(request).write(token_in(request), work))


@post("/v1/devices/rotate")
async def rotate(request: AnyRequest) -> Reply:
    service, token = service_of(request), token_in(request)

    def work(conn: Connection, caller: Caller) -> TokenReply:
        return devices.rotate(conn, caller, token or "", time.time_ns())

    try:
        return reply(request, await service.write(token, work))
    except Refused as refused:
        if isinstance(refused.problem, Unauthorized):
            await _note_copied(service, token, client_of(cast(Any, request.scope)))
        raise


async def _note_copied(service: Service, token: str | None, address: str) -> None:
    """In the audit log, if the token was one of ours and has been rotated away: once a minute for
    each device, so that its copy does not fill the disk."""
    loop = asyncio.get_running_loop()

    def look() -> tuple[str, str] | None:
        with service.db.read() as conn:
            return tokens.copied(conn, token)

    def note(device: str, account: str) -> None:
        with service.db.write() as conn:
            devices.note_copied(conn, device, account, address, time.time_ns())

    found = await loop.run_in_executor(service.reads, look)
    if found is None or service.login_failures.take(("copied", found[0]), time.monotonic()):
        return
    await loop.run_in_executor(service.writes, note, *found)


@delete("/v1/devices/{device_id:str}")
async def revoke(request: AnyRequest, device_id: FromPath[str]) -> None:
    """Sockets and long polls of the account look at their token again at once."""
    check_id(device_id)
    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> str:
        devices.revoke(conn, caller, device_id, time.time_ns())
        return account_topic(caller.account)

    service.fanout.publish(News(await service.write(token_in(request), work)))
