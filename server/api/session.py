"""Logging in, and who one is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

from litestar import get, post
from sqlalchemy import Connection, select

from remote.errors import BadRequest, Forbidden, RateLimited, Refused, Unauthorized
from remote.wire import LoginReply, LoginRequest, Me
from remote.wire_account import ChangePassword, PasswordReply
from server.api import passwords
from server.api.exchange import AnyRequest, Reply, body, reply, service_of, token_in
from server.changes import feed
from server.changes.fanout import News, account_topic
from server.front.limits import TokenBuckets
from server.front.proxies import client_of, limited_as
from server.metadata.schema import accounts as accounts_table
from server.metadata.schema import drives
from server.people import access, accounts, audit, tokens
from server.people.caller import Caller
from server.service import Service


@post("/v1/login")
async def login(request: AnyRequest) -> Reply:
    service = service_of(request)
    wanted = await body(request, LoginRequest, public=True)
    address = client_of(cast(Any, request.scope))
    tries = _buckets(service, address, wanted.account)
    for buckets, key in tries:
        wait = buckets.take(key, time.monotonic())
        if wait:
            raise Refused(_too_many(wait))
    answer = await _log_in(service, wanted, address)
    for buckets, key in tries:
        buckets.give_back(key, time.monotonic())
    return reply(request, answer)


def _buckets(
    service: Service, address: str, account: str
) -> tuple[tuple[TokenBuckets, Hashable], ...]:
    """What a try counts for: guessing one account's password, and one's password for many names."""
    client = limited_as(address)
    one = service.login_tries, (client, account.casefold())
    return one, (service.login_tries_from, client)


def _too_many(wait: float) -> RateLimited:
    message = f"too many logins; try again in {max(1.0, wait):.0f} s"
    return RateLimited(message=message, retry_after_seconds=round(wait, 3))


async def _log_in(service: Service, wanted: LoginRequest, address: str) -> LoginReply:
    loop = asyncio.get_running_loop()

    def find() -> tuple[str, str, str] | None:
        with service.db.read() as conn:
            return accounts.find_account(conn, wanted.account)

    def add(account: str) -> tuple[str, str] | None:
        with service.db.write() as conn:
            if accounts.is_locked(conn, account):
                return None
            now_ns = time.time_ns()
            token, device = tokens.new_device(conn, account, wanted.device, now_ns)
            caller = tokens.authenticate(conn, token, now_ns)
            audit.note(conn, caller, "login", device, now_ns, name=wanted.device, address=address)
            return token, device

    found = await loop.run_in_executor(service.reads, find)
    hashed = found[2] if found is not None else None
    right = await passwords.off_loop(service, accounts.password_matches, hashed, wanted.password)
    made = await loop.run_in_executor(service.writes, add, found[0]) if found and right else None
    if found is None or made is None:
        # A locked account looks like a wrong password: that this one is right is nobody's to learn.
        await _note_failure(service, wanted.account, found[0] if found else None, address)
        raise Refused(Unauthorized(message="wrong account name or password"))
    return LoginReply(token=made[0], account=found[1], device_id=made[1])


async def _note_failure(service: Service, name: str, account: str | None, address: str) -> None:
    """In the audit log, with the name as it was given: once a minute for each name from an address,
    and not for ever more names, so that guessing does not fill the disk."""
    now, client = time.monotonic(), limited_as(address)
    if service.login_failures.take((client, name.casefold()), now):
        return
    if service.login_failures_from.take(client, now):
        return

    def work() -> None:
        with service.db.write() as conn:
            said = {"name": name, "address": address}
            audit.note(conn, None, "login_failed", account, time.time_ns(), **said)

    await asyncio.get_running_loop().run_in_executor(service.writes, work)


# --- another password ---------------------------------------------------------------------------


@post("/v1/password")
async def change_password(request: AnyRequest) -> Reply:
    """Tries of the old one count as logins do: a token alone must not be enough to guess it."""
    service, token = service_of(request), token_in(request)
    wanted = await body(request, ChangePassword)
    whose = await service.read(token, _own_password)
    try:
        accounts.check_password(whose.name, wanted.new)
    except accounts.BadPassword as error:
        raise Refused(BadRequest(message=str(error))) from error
    address = client_of(cast(Any, request.scope))
    tries = _buckets(service, address, whose.name)
    for buckets, key in tries:
        wait = buckets.take(key, time.monotonic())
        if wait:
            raise Refused(_too_many(wait))
    if not await passwords.off_loop(service, accounts.password_matches, whose.hashed, wanted.old):
        await _note_failure(service, whose.name, whose.account, address)
        raise Refused(Forbidden(message="the old password is wrong; try again"))
    for buckets, key in tries:
        buckets.give_back(key, time.monotonic())
    hashed = await passwords.off_loop(service, accounts.hash_password, wanted.new)

    def work(conn: Connection, caller: Caller) -> PasswordReply:
        if _own_password(conn, caller) != whose:
            raise Refused(Forbidden(message="the old password is wrong; try again"))
        values = (caller.account, hashed, time.time_ns(), wanted.revoke_devices)
        return PasswordReply(accounts.replace_password(conn, caller, *values))

    changed = await service.write(token, work)
    service.fanout.publish(News(account_topic(whose.account)))
    return reply(request, changed)


class _Own(NamedTuple):
    account: str
    name: str
    hashed: str


def _own_password(conn: Connection, caller: Caller) -> _Own:
    access.require_whole(caller)
    query = select(accounts_table.c.password).where(accounts_table.c.id == caller.account)
    hashed: str = conn.execute(query).scalar_one()
    return _Own(caller.account, caller.account_name, hashed)


# --- who one is ---------------------------------------------------------------------------------


@get("/v1/me")
async def me(request: AnyRequest) -> Reply:
    service = service_of(request)

    def work(conn: Connection, caller: Caller) -> Me:
        # What is used would tell a single-folder token which chunks are elsewhere in the drive.
        whole = caller.folder is None
        # A cursor that knows of no shares: the first page after it tells them.
        head = feed.head(conn, caller.drive)
        quota = select(accounts_table.c.quota_bytes).where(accounts_table.c.id == caller.account)
        row = conn.execute(
            select(drives.c.root, drives.c.used_bytes, drives.c.reserved_bytes).where(
                drives.c.id == caller.drive
            )
        ).one()
        return Me(
            account=caller.account_name,
            device_id=caller.device,
            drive=caller.drive,
            root=caller.folder or row.root,
            cursor=service.cursors.write(head),
            seq=head.seq,
            used_bytes=row.used_bytes if whole else 0,
            quota_bytes=conn.execute(quota).scalar() if whole else None,
            now_ns=time.time_ns(),
            scope=caller.scope,
            reserved_bytes=row.reserved_bytes if whole else 0,
        )

    return reply(request, await service.read(token_in(request), work))
