"""A proxy between a mount and its server that does to the traffic what networks do.

Knows: HTTP/1.1 as far as h11 tells it, and the faults below. Must not know: what the bytes mean.

Every request is forwarded over a connection of its own to the server; an upgraded connection
(WebSocket) is passed on byte by byte. Each `Fault` names, by a regular expression over
"METHOD target", the requests it befalls, and how many of them.

Concurrency: the proxy runs in a thread of its own, on trio. `faults` and `seen` are lists
that the test's thread changes and reads; appending to and iterating over a copy of a list is atomic
in CPython, and nothing else is shared.
"""

from __future__ import annotations

import contextlib
import re
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h11
import msgspec
import trio

from remote.protocol.errors import RULES, Problem
from tests.system.faultframes import Distorter, Frames, Mischief

PIECE = 64 * 1024
REMEMBERED = 20  # answers, for `replay`


@dataclass
class Fault:
    """A fault that befalls the requests that `match` finds; at most `times` of them (None: all).

    `latency`: seconds before the request is forwarded. `status`: answered at once with it, never
    forwarded, with `retry_after` in its head; `problem`: the same, as the server itself says it.
    `reset_after`: the connection is reset after so many bytes of the answer's body.
    `corrupt`: the byte at this position of the answer's body is inverted. `truncate`: the body ends
    after so many bytes, and the answer's head says that this is all. `stall`: nothing is forwarded
    until `lift` is called; `stall_after`: so many bytes of the answer's body are, and then nothing.
    `reset_request_after`, `stall_request_after`: the same for the request's body. `twice`: the
    request is carried out twice, and answered the second time. `replay`: answered with the last
    answer that such a request had, whatever it asked; not forwarded. `frames`: what befalls the
    frames of a WebSocket until the fault is lifted.
    """

    match: str
    times: int | None = None
    latency: float = 0.0
    status: int | None = None
    reset_after: int | None = None
    corrupt: int | None = None
    truncate: int | None = None
    stall: bool = False
    retry_after: str | None = None
    problem: Problem | None = None
    stall_after: int | None = None
    reset_request_after: int | None = None
    stall_request_after: int | None = None
    twice: bool = False
    replay: bool = False
    frames: Mischief | None = None
    befell: int = 0
    _lifted: threading.Event = field(default_factory=threading.Event)

    def takes(self, request: str) -> bool:
        if self._lifted.is_set() or (self.times is not None and self.befell >= self.times):
            return False
        if re.search(self.match, request) is None:
            return False
        self.befell += 1
        return True

    def lift(self) -> None:
        """The fault is over, also for who is stalled by it."""
        self._lifted.set()

    @property
    def is_over(self) -> bool:
        return self._lifted.is_set()

    async def stalled(self) -> None:
        await trio.to_thread.run_sync(self._lifted.wait, abandon_on_cancel=True)


@dataclass(frozen=True)
class Seen:
    """One answered request: `body` is how many bytes of answer's body were passed on."""

    request: str
    range: str
    status: int
    body: int


class _Reset(Exception):
    """End the client's connection as a broken network does."""


class FaultProxy:
    """Use as a context manager; `url` is where it listens."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.url = ""
        self.answers: dict[str, tuple[h11.Response, bytes]] = {}  # the last one of each request
        self._cut = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._run], daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.CancelScope
        self._open: set[trio.SocketStream] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forget()
        self._token.run_sync_soon(self._stop.cancel)
        self._thread.join(60)

    def add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def forget(self) -> None:
        """No faults from now on, and nothing was seen yet."""
        for fault in self.faults:
            fault.lift()
        self.faults.clear()
        self.seen.clear()
        self.answers.clear()
        self._cut = False

    def cut(self) -> None:
        """The network is gone: open connections are reset, new ones too."""
        self._cut = True
        trio.from_thread.run_sync(self._reset_all, trio_token=self._token)

    def mend(self) -> None:
        self._cut = False

    def _reset_all(self) -> None:
        for stream in list(self._open):
            _reset(stream)

    def count(self, match: str) -> int:
        return sum(re.search(match, seen.request) is not None for seen in list(self.seen))

    # --- the thread -----------------------------------------------------------------------------

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with trio.CancelScope() as self._stop:
            self._ready.set()
            await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, client: trio.SocketStream) -> None:
        if self._cut:
            _reset(client)
            return
        self._open.add(client)
        try:
            await _Connection(self, client).run()
            await client.aclose()
        except (_Reset, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            _reset(client)
        except BaseExceptionGroup as error:  # of a tunnel: one side went, the other was cancelled
            gone = (trio.BrokenResourceError, trio.ClosedResourceError)
            if error.split(gone)[1] is not None:
                raise
        finally:
            self._open.discard(client)

    def fault_for(self, request: str) -> Fault | None:
        return next((fault for fault in list(self.faults) if fault.takes(request)), None)

    def remember(self, name: str, response: h11.Response, body: bytearray) -> None:
        self.answers.pop(name, None)  # the last one is last
        self.answers[name] = (_shortened(response, len(body)), bytes(body))
        for old in list(self.answers)[:-REMEMBERED]:
            del self.answers[old]

    def last_answer(self, fault: Fault) -> tuple[h11.Response, bytes] | None:
        """The last one that was given to a request such as the fault befalls."""
        found = (
            self.answers[name] for name in reversed(self.answers) if re.search(fault.match, name)
        )
        return next(found, None)

    async def connect(self) -> trio.SocketStream:
        try:
            return await trio.open_tcp_stream(self._host, self._port)
        except OSError as error:
            raise _Reset from error  # no server: as good as no network


def _reset(stream: trio.SocketStream) -> None:
    """RST instead of FIN: SO_LINGER with no time to linger (socket(7))."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
    stream.socket.close()


class _Connection:
    """One client's connection: requests one after the other."""

    def __init__(self, proxy: FaultProxy, client: trio.SocketStream) -> None:
        self._proxy, self._client = proxy, client
        self._here = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while True:
            request = await _event(self._here, self._client)
            if not isinstance(request, h11.Request):
                return
            name = f"{request.method.decode()} {request.target.decode()}"
            fault = self._proxy.fault_for(name)
            if fault is not None:
                await trio.sleep(fault.latency)
                if fault.stall:
                    await fault.stalled()
            last = self._proxy.last_answer(fault) if fault is not None and fault.replay else None
            if fault is not None and (fault.status is not None or fault.problem is not None):
                await self._refuse(name, fault)
            elif last is not None:
                await self._repeat(name, *last)
            else:
                await self._forward(request, name, fault or Fault(""))
            if self._here.our_state is not h11.DONE or self._here.their_state is not h11.DONE:
                return
            self._here.start_next_cycle()

    async def _say(self, *events: h11.Event) -> None:
        for event in events:
            data = self._here.send(event)
            if data:
                await self._client.send_all(data)

    async def _refuse(self, name: str, fault: Fault) -> None:
        body, headers = b"the proxy says so", []
        status = fault.status or 0
        if fault.problem is not None:
            body, status = msgspec.json.encode(fault.problem), RULES[type(fault.problem)].status
            headers = [("Content-Type", "application/json")]
        if fault.retry_after is not None:
            headers.append(("Retry-After", fault.retry_after))
        headers.append(("Content-Length", str(len(body))))
        await self._repeat(name, h11.Response(status_code=status, headers=headers), body)

    async def _repeat(self, name: str, head: h11.Response, body: bytes) -> None:
        """Answer without asking the server."""
        while not isinstance(await _event(self._here, self._client), h11.EndOfMessage):
            pass
        self._proxy.seen.append(Seen(name, "", head.status_code, len(body)))
        await self._say(head, h11.Data(data=body), h11.EndOfMessage())

    async def _forward(self, request: h11.Request, name: str, fault: Fault) -> None:
        there = h11.Connection(h11.CLIENT)
        async with await self._proxy.connect() as server:
            await server.send_all(there.send(request) or b"")
            events = await self._send_body(there, server, fault)
            if fault.twice:
                await self._before(request, events)
            response = await _event(there, server)
            if isinstance(response, h11.InformationalResponse):
                await self._tunnel(response, there, server, fault)
                return
            if not isinstance(response, h11.Response):
                raise _Reset
            asked = dict(request.headers).get(b"range", b"").decode()
            await self._answer(name, asked, response, there, server, fault)

    async def _send_body(
        self, there: h11.Connection, server: trio.SocketStream, fault: Fault
    ) -> list[h11.Event]:
        """Pass on the request's body; what it consisted of."""
        events: list[h11.Event] = []
        passed = 0
        while there.our_state is h11.SEND_BODY:
            event = await _event(self._here, self._client)
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                raise _Reset
            passed += len(event.data) if isinstance(event, h11.Data) else 0
            if fault.stall_request_after is not None and passed > fault.stall_request_after:
                await fault.stalled()
            if fault.reset_request_after is not None and passed > fault.reset_request_after:
                _reset(server)
                raise _Reset
            await server.send_all(there.send(event) or b"")
            events.append(event)
        return events

    async def _before(self, request: h11.Request, events: list[h11.Event]) -> None:
        """Have the request carried out once before it is, over a connection of its own."""
        there = h11.Connection(h11.CLIENT)
        async with await self._proxy.connect() as server:
            for event in (request, *events):
                await server.send_all(there.send(event) or b"")
            await _event(there, server)
            await _body(there, server)

    async def _answer(
        self,
        name: str,
        asked: str,
        response: h11.Response,
        there: h11.Connection,
        server: trio.SocketStream,
        fault: Fault,
    ) -> None:
        body = await _body(there, server)
        self._proxy.remember(name, response, body)
        if fault.corrupt is not None and fault.corrupt < len(body):
            body[fault.corrupt] ^= 0xFF
        if fault.truncate is not None:
            del body[fault.truncate :]
            response = _shortened(response, len(body))
        await self._say(response)
        cut = len(body) if fault.reset_after is None else min(fault.reset_after, len(body))
        stall = cut if fault.stall_after is None else min(fault.stall_after, cut)
        for start, end in ((0, stall), (stall, cut)):
            if start and fault.stall_after is not None:
                await fault.stalled()
            for at in range(start, end, PIECE):
                await self._say(h11.Data(data=bytes(body[at : min(end, at + PIECE)])))
        self._proxy.seen.append(Seen(name, asked, response.status_code, cut))
        if fault.reset_after is not None:
            raise _Reset
        await self._say(h11.EndOfMessage())

    async def _tunnel(
        self,
        response: h11.InformationalResponse,
        there: h11.Connection,
        server: trio.SocketStream,
        fault: Fault,
    ) -> None:
        await self._say(response)
        down = _Down(self._client, fault)
        early, _ = there.trailing_data
        await down.take(early)
        early, _ = self._here.trailing_data
        if early:
            await server.send_all(early)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, self._client, server.send_all, nursery.cancel_scope)
            nursery.start_soon(_pump, server, down.take, nursery.cancel_scope)
            if fault.frames is not None:
                nursery.start_soon(down.catch_up)


class _Down:
    """The way of frames to the client."""

    def __init__(self, client: trio.SocketStream, fault: Fault) -> None:
        self._client, self._fault, self._frames = client, fault, Frames()
        self._distorter, self._sending = Distorter(fault.frames), trio.Lock()

    async def take(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            over = self._fault.is_over
            for item in [frame] if over else self._distorter.distort(frame):
                await self._send(item)

    async def catch_up(self) -> None:
        await self._fault.stalled()
        for frame in self._distorter.late():
            await self._send(frame)

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            await self._client.send_all(frame)


async def _pump(
    source: trio.SocketStream, give: Callable[[bytes], Awaitable[None]], over: trio.CancelScope
) -> None:
    while data := await source.receive_some(PIECE):
        await give(data)
    over.cancel()


async def _event(connection: h11.Connection, stream: trio.SocketStream) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(PIECE))
    return event


async def _body(there: h11.Connection, server: trio.SocketStream) -> bytearray:
    body = bytearray()
    while isinstance(event := await _event(there, server), h11.Data):
        body += event.data
    return body


def _shortened(response: h11.Response, length: int) -> h11.Response:
    """The same head for a body of `length` bytes, so that nothing but the length tells."""
    headers = [(name, value) for name, value in response.headers if name != b"content-length"]
    headers.append((b"content-length", str(length).encode()))
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)
