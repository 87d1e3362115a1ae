"""The control socket of a running mount: asks `ControlHandler`, answers the command.

Knows: who may ask (the mount's own user and root), how a request becomes a call and an exception
an answer. Must not know: what the mount is made of; the daemon implements `ControlHandler`.

Concurrency: each connection is a task of its own, so handler methods run interleaved with each
other and with the mount. When the asking side goes away its call is cancelled, so a `flush` that
nobody waits for does not pile up; cancelling must leave the mount as it was. `stop` is the
exception: the daemon may end while it is being answered, and the asking side counts a closed
connection after `stop` as an answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio
from msgspec import DecodeError

from mount.control import messages
from mount.control.account_messages import AccountAnswer, AccountRequest
from mount.control.messages import (
    CacheStats,
    LimitRequest,
    Progress,
    Status,
    TransferLimits,
    reachable,
)
from mount.failures import Failure
from remote.protocol.errors import NearlineError

__all__ = ["CacheStats", "ControlHandler", "Progress", "Report", "Status", "listening"]
__all__ += ["serve_control"]

log = structlog.get_logger(__name__)

Report = Callable[[Progress], Awaitable[None]]


class ControlHandler(Protocol):
    """The questions that a mount answers. A method fails by raising `Failure`, `NearlineError` or
    `OSError` whose text is shown to the person. Paths are relative to the mount's root; "" is the
    root."""

    def status(self) -> Status:
        """The mount now; must not wait for anything."""

    async def flush(self, report: Report, unless_offline: bool) -> None:
        """Return when the server has every change made before the call; `report` now and then."""

    async def retry(self, path: str, report: Report) -> str:
        """Try again what was refused for good at `path`; what came of it, for the person."""

    async def stop(self, flush: bool) -> None:
        """Begin to unmount and end; with `flush`, first wait until the server has everything."""

    async def pin(self, path: str, report: Report) -> None:
        """Keep `path` on this machine, and return when it is here."""

    async def unpin(self, path: str) -> None:
        """Let `path` be evicted again."""

    async def warm(self, path: str, report: Report) -> None:
        """Fetch `path` into the cache, and return when it is there."""

    def cache_stats(self) -> CacheStats:
        """The block cache now."""

    async def cache_clear(self) -> int:
        """Drop every clean block that is not pinned; the bytes freed."""

    def limit(self, request: LimitRequest) -> TransferLimits:
        """Change the limits of transfers as is asked for, at once; what they are now."""

    async def account(
        self, request: AccountRequest, report: Report
    ) -> AccountAnswer | messages.Done:
        """Sharing, links, history, trash and devices: asked of the server, shown in the mount."""


@contextlib.asynccontextmanager
async def listening(path: Path) -> AsyncIterator[trio.SocketListener]:
    """The Unix socket `path`, which can be connected to until the block ends: then it is gone.

    The caller holds the lock of the state directory, so a socket that is already there is left
    over from a process that died. Raises `Failure`."""
    listener = await _listen(path)
    try:
        async with listener:
            yield listener
    finally:
        path.unlink(missing_ok=True)


async def _listen(path: Path) -> trio.SocketListener:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with reachable(path) as name:
            await sock.bind(name)
        path.chmod(0o600)  # before listen: until then nobody can connect
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise Failure(
            f"cannot make the socket {path}: {error.strerror}; give another --state directory"
        ) from error
    return trio.SocketListener(sock)


async def serve_control(listener: trio.SocketListener, handler: ControlHandler) -> None:
    """Answer whoever connects to `listener`, until cancelled."""
    await trio.serve_listeners(partial(_serve_one, handler), [listener])


async def _serve_one(handler: ControlHandler, stream: trio.SocketStream) -> None:
    async with stream:
        if not _may_ask(stream.socket):
            return
        try:
            await _converse(stream, handler)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("control_connection_went_away")


def _may_ask(sock: trio.socket.SocketType) -> bool:
    """Only root and the mount's own user: the mode of the socket says so too, but not every
    directory above it need be private."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    assert isinstance(found, bytes)
    _pid, uid, _gid = struct.unpack("3i", found)
    return uid in (0, os.getuid())


async def _converse(stream: trio.SocketStream, handler: ControlHandler) -> None:
    line = await _read_line(stream)
    if line is None:
        return
    try:
        request = messages.decode_request(line)
    except DecodeError as error:
        await stream.send_all(messages.encode(messages.Failed(f"not a request: {error}", "usage")))
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_end, stream, nursery.cancel_scope)
        await stream.send_all(messages.encode(await _answer(stream, handler, request)))
        nursery.cancel_scope.cancel()


async def _read_line(stream: trio.SocketStream) -> bytes | None:
    """The first line, or None when the other side leaves or sends more than a request can be."""
    line = bytearray()
    while b"\n" not in line:
        more = await stream.receive_some(4096)
        if not more or len(line) > messages.MAX_REQUEST_BYTES:
            return None
        line += more
    return bytes(line)


async def _cancel_at_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    while await stream.receive_some(4096):
        continue
    scope.cancel()


async def _answer(
    stream: trio.SocketStream, handler: ControlHandler, request: messages.Request
) -> messages.Answer:
    """Carry the request out. The last clause answers for a bug in the handler: it is logged whole,
    and a question about the mount must never end the mount."""

    async def report(progress: Progress) -> None:
        await stream.send_all(messages.encode(progress))

    try:
        return await _perform(handler, request, report)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise
    except (Failure, NearlineError, OSError) as error:
        return messages.Failed(str(error))
    except Exception as error:
        log.exception("control_request_failed", request=type(request).__name__)
        return messages.Failed(f"{type(error).__name__} inside the mount; its log has the details")


async def _perform(
    handler: ControlHandler, request: messages.Request, report: Report
) -> messages.Answer:
    match request:
        case messages.StatusRequest():
            return handler.status()
        case messages.FlushRequest(timeout, unless_offline):
            with trio.move_on_after(float("inf") if timeout is None else timeout) as scope:
                await handler.flush(report, unless_offline)
            if scope.cancelled_caught:
                return messages.Failed("the server does not have everything yet", "timeout")
        case messages.RetryRequest(path, timeout):
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                return messages.Done(await handler.retry(path, report))
            return messages.Failed("the server has not decided yet; it is asked again", "timeout")
        case messages.StopRequest(flush):
            await handler.stop(flush)
        case messages.PinRequest(path):
            await handler.pin(path, report)
        case messages.UnpinRequest(path):
            await handler.unpin(path)
        case messages.WarmRequest(path):
            await handler.warm(path, report)
        case messages.CacheStatsRequest():
            return handler.cache_stats()
        case messages.CacheClearRequest():
            return messages.Done(str(await handler.cache_clear()))
        case messages.LimitRequest():
            return handler.limit(request)
        case _:
            return await handler.account(request, report)
    return messages.Done()
