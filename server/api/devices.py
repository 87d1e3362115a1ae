"""Devices and tokens over HTTP."""

from __future__ import annotations

import time

from litestar import delete, get, post
from litestar.params import FromPath
from sqlalchemy import Connection

from remote.wire_account import DevicesReply, MakeToken, TokenReply
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.api.files import check_id
from server.changes.fanout import News, account_topic
from server.people import devices
from server.people.caller import Caller


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
    token = token_in(request)

    def work(conn: Connection, caller: Caller) -> TokenReply:
        return devices.rotate(conn, caller, token or "", time.time_ns())

    return reply(request, await service_of(request).write(token, work))


@delete("/v1/devices/{device_id:str}")
async def revoke(request: AnyRequest, device_id: FromPath[str]) -> None:
    """Sockets and long polls of the account look at their token again at once."""
    check_id(device_id)
    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> str:
        devices.revoke(conn, caller, device_id, time.time_ns())
        return account_topic(caller.account)

    service.fanout.publish(News(await service.write(token_in(request), work)))
