"""Logging in, and who one is."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from sqlalchemy import Connection, select

from remote.protocol.account_messages import ChangePassword, PasswordReply
from remote.protocol.errors import BadRequest, Forbidden, Refused, Unauthorized
from remote.protocol.messages import LoginReply, LoginRequest, Me
from server.accounts import accounts, passwords, tokens
from server.accounts.accounts import Checked
from server.addresses import limited_as
from server.api.endpoint import get, post
from server.api.exchange import Request
from server.changes import feed
from server.changes.fanout import News, account_topic
from server.http.password_tries import Try
from server.metadata.schema import accounts as accounts_table
from server.metadata.schema import drives
from server.permissions import access, audit
from server.permissions.caller import Caller
from server.pools import STRANGERS
from server.service import Service


@post("/v1/login", "Log in", public=True)
async def login(request: Request, wanted: LoginRequest) -> LoginReply:
    service, address = request.service, request.address
    found = await _find(service, wanted.account)
    # A name that there is not is counted as one that there is.
    named = wanted.account.casefold() if found is None else found.account
    tried = await service.tries.begin(("account", named), address)
    while True:
        checked = await _check(service, found, wanted.password, tried)
        if found is None or not checked.is_right:
            raise await _wrong(service, wanted, found, address)
        made = await _new_device(service, wanted, found, checked, address)
        if made is not None:
            service.tries.was_right(tried)
            return LoginReply(token=made[0], account=found.name, device_id=made[1])
        before, found = found, await _find(service, wanted.account)
        if found == before:
            # A locked account looks like a wrong password: that this one is right is nobody's to
            # learn.
            raise await _wrong(service, wanted, found, address)


async def _find(service: Service, name: str) -> Found | None:
    def work() -> Found | None:
        with service.db.read() as conn:
            found = accounts.find_account(conn, name)
            return None if found is None else Found(*found)

    return await asyncio.wrap_future(service.reads.submit_for(STRANGERS, work))


async def _new_device(
    service: Service, wanted: LoginRequest, found: Found, checked: Checked, address: str
) -> tuple[str, str] | None:
    """Its token and id; None for a locked account, and when the password is another by now: a login
    waits for seconds, and one with the old password must not outlast that."""

    def work() -> tuple[str, str] | None:
        with service.db.write() as conn:
            is_same = accounts.find_account(conn, wanted.account) == found
            if not is_same or accounts.is_locked(conn, found.account):
                return None
            now = time.time_ns()
            if checked.renewed is not None:
                accounts.renew_password(conn, found.account, found.hashed, checked.renewed)
            token, device = tokens.new_device(conn, found.account, wanted.device, now)
            caller = tokens.authenticate(conn, token, now)
            audit.note(conn, caller, "login", device, now, name=wanted.device, address=address)
            return token, device

    return await asyncio.wrap_future(service.writes.submit_for(found.account, work))


class Found(NamedTuple):
    """An account with the hash of its password."""

    account: str
    name: str
    hashed: str


async def _check(service: Service, found: Found | None, given: str, tried: Try) -> Checked:
    kind = "login at home" if tried.at_home else "login"
    holder, hashed = limited_as(tried.address), None if found is None else found.hashed
    return await service.desk.run(kind, holder, accounts.check_password, hashed, given)


async def _wrong(
    service: Service, wanted: LoginRequest, found: Found | None, address: str
) -> Refused:
    await _note_failure(service, wanted.account, found and found.account, address)
    return Refused(Unauthorized(message="wrong account name or password"))


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

    await asyncio.wrap_future(service.writes.submit_for(STRANGERS, work))


# --- another password ---------------------------------------------------------------------------


@post("/v1/password", "Change one's password")
async def change_password(request: Request, wanted: ChangePassword) -> PasswordReply:
    """Tries of the old one count as logins do: a token alone must not be enough to guess it."""
    service, address = request.service, request.address
    whose = await request.read(_own_password)
    try:
        accounts.check_new_password(whose.name, wanted.new)
    except accounts.BadPassword as error:
        raise Refused(BadRequest(message=str(error))) from error
    tried = await service.tries.begin(("account", whose.account), address)
    desk, holder = service.desk, whose.account
    checked = await desk.run("change", holder, accounts.check_password, whose.hashed, wanted.old)
    if not checked.is_right:
        await _note_failure(service, whose.name, whose.account, address)
        raise Refused(Forbidden(message="the old password is wrong; try again"))
    service.tries.was_right(tried)
    hashed = await desk.run("change", holder, accounts.hash_password, wanted.new)

    def work(conn: Connection, caller: Caller) -> PasswordReply:
        if _own_password(conn, caller) != whose:
            raise Refused(Forbidden(message="the old password is wrong; try again"))
        values = (caller.account, hashed, time.time_ns(), wanted.revoke_devices)
        return PasswordReply(passwords.replace_password(conn, caller, *values))

    changed = await request.write(work)
    service.fanout.publish(News(account_topic(whose.account)))
    return changed


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


@get("/v1/me", "Who the token is")
async def me(request: Request) -> Me:
    service = request.service

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

    return await request.read(work)
