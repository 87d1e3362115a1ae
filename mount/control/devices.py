"""`devices`: the tokens of the account, and this mount's own.

Knows: which endpoint answers which request, and where this mount's token is kept. Must not know:
what a token can do (the server decides). A token is in an answer once and in no log.
"""

from __future__ import annotations

import structlog
import trio

from mount import credentials
from mount.control.account_messages import (
    Device,
    Devices,
    DevicesRequest,
    MakeTokenRequest,
    ReloadTokenRequest,
    RevokeDeviceRequest,
    RotateRequest,
    Token,
)
from mount.control.context import CommandContext, Report, one_of
from mount.control.messages import Done
from mount.control.sharing import in_seconds
from mount.failures import Failure
from remote.protocol import account_messages
from remote.protocol.errors import NearlineError, Unreachable

log = structlog.get_logger(__name__)


async def devices(context: CommandContext, _request: DevicesRequest, _report: Report) -> Devices:
    found = (await context.client.devices()).devices
    found.sort(key=lambda device: device.created_ns, reverse=True)
    return Devices([_device(context, device) for device in found])


def _device(context: CommandContext, device: account_messages.DeviceInfo) -> Device:
    return Device(
        id=device.id,
        name=device.name,
        scope=device.scope,
        folder=None if device.folder is None else context.path_of(device.folder),
        folder_id=device.folder,
        created_ns=device.created_ns,
        expires_ns=device.expires_ns,
        seen_ns=device.seen_ns,
        current=device.current,
    )


async def revoke(context: CommandContext, request: RevokeDeviceRequest, _report: Report) -> Done:
    known = (await context.client.devices()).devices
    device = _meant(known, request.said)
    if device.current and not request.own_too:
        raise Failure(
            f"{device.name} is this mount's own device, which would be logged out;"
            " say --own if that is meant"
        )
    await context.client.revoke_device(device.id)
    return Done(device.name)


def _meant(known: list[account_messages.DeviceInfo], said: str) -> account_messages.DeviceInfo:
    named = [device for device in known if device.name == said]
    if len(named) > 1:
        ids = ", ".join(device.id for device in named)
        raise Failure(f"{len(named)} devices are called {said}; give the id of one: {ids}")
    if named:
        return named[0]
    wanted = one_of([device.id for device in known], said, "device")
    return next(device for device in known if device.id == wanted)


async def make_token(context: CommandContext, request: MakeTokenRequest, report: Report) -> Token:
    folder = None
    if request.folder is not None:
        folder = (await context.flushed_node(request.folder, report)).file
    asked = account_messages.MakeToken(
        name=request.name,
        scope="read" if request.read_only else "full",
        folder=folder,
        expires_ns=in_seconds(request.expires_seconds),
    )
    reply = await context.client.make_token(asked)
    return Token(id=reply.device_id, name=request.name, token=reply.token)


async def rotate(context: CommandContext, _request: RotateRequest, _report: Report) -> Done:
    """The new token is used from the moment it is there, which ends the one before. Until then, and
    for ten minutes at most, that is good and may ask again when the answer was lost."""
    url, name = context.config.url, context.config.account
    if await trio.to_thread.run_sync(credentials.kept, url, name) != context.client.token:
        raise Failure(
            f"this mount's token is not the one that is kept for {name} at {url}: it came from"
            f" {credentials.ENVIRONMENT}, or from an earlier login; log in with `nearline login`"
            " and mount again"
        )
    try:
        token = (await context.again(context.client.rotate)).token
    except Unreachable as error:
        raise Failure(
            f"no answer came ({error}), and the token may have been exchanged; rotate again"
            " within ten minutes, or log in again"
        ) from error
    context.client.use_token(token)
    try:
        where = await trio.to_thread.run_sync(credentials.save, url, name, token)
    except (Failure, OSError) as error:
        raise Failure(
            f"the new token is in use, but could not be kept for the next mount ({error});"
            f" run `nearline login {url} --account {name}` before you unmount"
        ) from error
    try:
        await context.client.me()
    except NearlineError as error:  # the next request ends the token before as well
        log.info("the_new_token_is_not_used_yet", why=str(error))
    return Done(where)


async def reload_token(
    context: CommandContext, _request: ReloadTokenRequest, _report: Report
) -> Done:
    """The kept token is another one than before, or somebody wants to know whether the mount's own
    is good. How it goes on, in words."""
    return Done(await context.session.relogin.check())
