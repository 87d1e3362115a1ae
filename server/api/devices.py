"""Devices and tokens over HTTP."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import Connection

from remote.protocol.account_messages import DevicesReply, MakeToken, TokenReply
from remote.protocol.errors import Refused, Unauthorized
from server.accounts import devices, tokens
from server.api.endpoint import Id, delete, get, post
from server.api.exchange import Request
from server.changes.fanout import News, account_topic
from server.permissions.caller import Caller
from server.service import Service


@get("/v1/devices", "One's devices")
async def listed(request: Request) -> DevicesReply:
    def work(conn: Connection, caller: Caller) -> DevicesReply:
        return devices.devices_of(conn, caller, time.time_ns())

    return await request.read(work)


@post("/v1/devices", "Make a token")
async def make(request: Request, wanted: MakeToken) -> TokenReply:
    def work(conn: Connection, caller: Caller) -> TokenReply:
        return devices.make_token(conn, caller, wanted, time.time_ns())

    return await request.write(work)


@post("/v1/devices/rotate", "Change one's own token")
async def rotate(request: Request) -> TokenReply:
    def work(conn: Connection, caller: Caller) -> TokenReply:
        return devices.rotate(conn, caller, request.token or "", time.time_ns())

    try:
        return await request.write(work)
    except Refused as error:
        if isinstance(error.problem, Unauthorized):
            await _note_copied(request.service, request.token, request.address)
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


@delete("/v1/devices/{device_id}", "Revoke a token, or log out")
async def revoke(request: Request, device_id: Id) -> None:
    """Sockets and long polls of the account look at their token again at once."""

    def work(conn: Connection, caller: Caller) -> str:
        devices.revoke(conn, caller, device_id, time.time_ns())
        return account_topic(caller.account)

    request.service.fanout.publish(News(await request.write(work)))
