"""The change feed's WebSocket: hints, and what the end of a socket is called.

Knows: httpx-ws, and the many ways in which a session of it ends. Must not know: what a hint means
(`subscriber`).
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Self, cast

import msgspec
import trio

from remote.http.lazy_import import Late
from remote.http.transport import REQUEST_ID, Transferred, Transport, decoder, transport_errors
from remote.protocol.errors import NearlineError, ProtocolError, Unreachable
from remote.protocol.messages import Hint

if TYPE_CHECKING:
    import httpcore
    import httpx_ws
    import wsproto.utilities
else:
    httpcore, httpx_ws, wsproto = Late("httpcore"), Late("httpx_ws"), Late("wsproto")

_PATH = "/v1/changes/live"

# How much httpx-ws reads from the socket at a time (it calls this the message size).
_READ_SIZE = 64 * 1024


class NoWebSocket(Unreachable):
    """The change feed answers, but not as a WebSocket: a proxy that passes none, or a refusal."""


class Live(Transport):
    """The part of `api.ApiClient` that is pushed to."""

    @asynccontextmanager
    async def live(self, cursor: str, *, ping_seconds: float = 20.0) -> AsyncIterator[Hints]:
        """A WebSocket of hints from `cursor` on; `async for` over what it gives.

        A peer that does not answer a ping within `ping_seconds` is gone. Raises `NoWebSocket` when
        the server, or something before it, answers the upgrade with anything else; the reason is
        then found by asking `changes`, which answers with a `Problem`.
        """
        where = f"the change feed of {self.base_url}"
        headers = self._headers()
        api = await self._pools.api()
        await trio.to_thread.run_sync(importlib.import_module, "httpx_ws", abandon_on_cancel=True)
        session: AbstractAsyncContextManager[httpx_ws.AsyncWebSocketSession] = httpx_ws.aconnect_ws(
            f"{self.base_url}{_PATH}",
            api,
            params={"cursor": cursor},
            headers=headers,
            max_message_size_bytes=_READ_SIZE,
            keepalive_ping_interval_seconds=ping_seconds,
            keepalive_ping_timeout_seconds=ping_seconds,
        )
        # A socket is never slow: it is there for hours.
        with self._noted("WS", _PATH, headers[REQUEST_ID], float("inf")):
            try:
                with transport_errors(where):
                    async with session as opened:
                        self.connectivity.heard(self.origin)
                        self.transferred.requests += 1
                        yield Hints(opened, where, self.transferred)
            except httpx_ws.WebSocketUpgradeError as error:
                status = error.response.status_code
                raise NoWebSocket(f"{where} gave no WebSocket but answered {status}") from None
            except BaseExceptionGroup as error:
                # httpx-ws runs a nursery of its own, which wraps whatever ends the session.
                cause = _cause_of(error, where)
                if cause is error:
                    raise
                raise cause from error


class Hints:
    """The hints of one WebSocket, as an async iterator. It never just stops: when the socket ends,
    for whatever reason, it raises `Unreachable`."""

    def __init__(
        self, session: httpx_ws.AsyncWebSocketSession, where: str, transferred: Transferred
    ) -> None:
        self._session, self._where, self._transferred = session, where, transferred

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Hint:
        try:
            frame = await self._session.receive_bytes()
        except httpx_ws.WebSocketDisconnect as error:
            raise Unreachable(f"{self._where} closed: {error.reason or error.code}") from None
        except httpx_ws.WebSocketNetworkError:
            raise Unreachable(f"{self._where} broke off") from None
        except httpx_ws.WebSocketInvalidTypeReceived:
            raise ProtocolError(f"{self._where} sent what is no hint") from None
        self._transferred.downloaded_bytes += len(frame)
        try:
            return cast(Hint, decoder(Hint).decode(frame))
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{self._where} sent what is no hint: {error}") from None


def _cause_of(group: BaseExceptionGroup[BaseException], where: str) -> BaseException:
    """The one error that the end of a WebSocket session stands for; `group` itself if several
    things happened that are not all about the network (a cancellation, a bug)."""
    leaves = list(_leaves(group))
    of_network = (
        httpcore.NetworkError,
        httpcore.TimeoutException,
        httpx_ws.HTTPXWSException,
        wsproto.utilities.ProtocolError,
        NearlineError,
    )
    foreign = [item for item in leaves if not isinstance(item, of_network)]
    if foreign:
        return foreign[0] if len(leaves) == 1 else group
    named = [item for item in leaves if isinstance(item, NearlineError)]
    return named[0] if named else Unreachable(f"{where} broke off")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for item in group.exceptions:
        if isinstance(item, BaseExceptionGroup):
            yield from _leaves(item)
        else:
            yield item
