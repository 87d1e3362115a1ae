"""Carriers of bodies: bytes of an answer straight into memory, bytes of a request out of it.

Knows: HTTP/1.1 for one request and its answer, connections and when they are used again. Must not
know: signed URLs, what a status means, retries (but for one, below), tokens. Loaded with the HTTP
libraries (`lazy_import`).

Two carriers of one contract (tests/remote/http/test_carriers.py runs over both):
- `Direct` is our own. h11 writes heads, reads heads, and refuses what is no HTTP; the bytes of a
  body whose length is said go past it, between the socket and the caller's memory. A body of
  another form (chunked, or until the end of the connection) goes through h11 too.
- `ByHttpx` does the same with httpx, at about seven times the processor time: where a proxy is to
  be used, which httpx knows how to ask.

Trouble has httpx's names in both (`transport.transport_errors`). No redirect is followed. A wait in
which nothing moves ends as `Timeouts` says; there is no limit on the whole.

A connection is used again only after a body that ended where it was to end. It may have died
meanwhile: when it says nothing at all to a request, the request is sent once more over another one,
unless much of it was taken: then somebody was there, and who asks decides what to send again.
That is allowed because every request here may be repeated (RFC 9110, 9.2.2): GET of what never
changes, PUT of what is put once.

Concurrency: trio thread only, any number of tasks. At most `connections` exchanges are under way.
`_idle` is changed without checkpoints. The memory of a request or an answer is its task's.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import NamedTuple, Protocol, TypeAlias, cast

import h11
import httpx
import trio

from remote.http.pace import AT_ONCE, Pace
from remote.http.pinned_tls import not_that_server
from remote.http.streams import Stream, Tcp, Tls

MAX_HEAD = 64 * 1024  # of an answer, everything before its body
MAX_REPEATED = 256 * 1024  # of a body: what a peer that is gone may seem to take
MAX_IGNORED = 64 * 1024  # of a body that nobody wants, to have its connection again

_HEAD_PIECE = 4 * 1024  # of what is received with a head the rest is copied: it is the body's
_PIECE = 64 * 1024  # what is received where it is not known how much will come
_SLICE = 256 * 1024  # for httpx: large enough to be rare, small enough that a copy stays in cache
_JOINED = 32 * 1024  # a body up to this travels in one piece with its head

Moved: TypeAlias = Callable[[int], None]
Origin: TypeAlias = tuple[str, str, int]

_PORTS = {"http": 80, "https": 443}


class StallTimeouts(NamedTuple):
    """Seconds without progress, as `transport.Timeouts` has them."""

    connect: float
    read: float
    write: float


class Answer(Protocol):
    """The answer that came back. Its body may be read once, inside the exchange."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Upper and lower case are one."""

    async def read_into(self, target: memoryview, moved: Moved) -> int:
        """Fill `target` with the body; how many bytes came. More than `target` holds means that
        there are more: no further ones are read. `moved` is told of each piece.

        Raises httpx.TransportError when the body breaks off; `target` has what came until then.
        """


class Carrier(Protocol):
    def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: memoryview | None = None,
        moved: Moved = ...,
        pace: Pace = ...,
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request, with all of `body`, as fast as `pace` has it; `moved` is told of each
        piece of it. Raises httpx.TransportError for want of an answer."""

    async def connect_ahead(self, url: httpx.URL, connections: int) -> None:
        """Where it can be done: have so many connections to where `url` is that wait to be used.
        What fails is left to be found by who asks."""


def _nobody(_size: int) -> None:
    """Takes sizes for who wants to be told of none."""


# --- by httpx -----------------------------------------------------------------------------------


class ByHttpx:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: memoryview | None = None,
        moved: Moved = _nobody,
        pace: Pace = AT_ONCE,
    ) -> AsyncIterator[Answer]:
        content = None if body is None else _slices(body, moved, pace)
        async with self._client.stream(method, url, headers=headers, content=content) as response:
            answer = _HttpxAnswer(response)
            yield answer
            await answer.ignore()

    async def connect_ahead(self, url: httpx.URL, connections: int) -> None:
        """httpx makes connections only to use them."""


async def _slices(view: memoryview, moved: Moved, pace: Pace) -> AsyncIterator[bytes]:
    while view:
        size = await pace.take(min(_SLICE, len(view)))
        part, view = view[:size], view[size:]
        moved(len(part))
        # h11 only measures and joins what it is given: a view does, and saves a copy.
        yield cast(bytes, part)


class _HttpxAnswer:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read_into(self, target: memoryview, moved: Moved) -> int:
        came = 0
        async for part in self._response.aiter_raw():
            moved(len(part))
            taken = part[: max(0, len(target) - came)]
            target[came : came + len(taken)] = taken
            came += len(part)
            if came > len(target):
                break
        return came

    async def ignore(self) -> None:
        """Read what is left, if it is little: the connection can be used again then."""
        if not self._response.is_stream_consumed:
            await self.read_into(memoryview(bytearray(MAX_IGNORED)), _nobody)


# --- our own ------------------------------------------------------------------------------------


class Direct:
    """`tls_of` gives the TLS of a scheme; None: it is spoken in the clear. For `pinned` schemes one
    certificate is good. A connection that is not used for `keepalive` seconds is not used again."""

    def __init__(
        self,
        user_agent: str,
        timeouts: StallTimeouts,
        tls_of: Mapping[str, ssl.SSLContext | None],
        pinned: frozenset[str] = frozenset(),
        *,
        connections: int,
        keepalive: float,
    ) -> None:
        self._user_agent, self._timeouts = user_agent, timeouts
        self._tls_of, self._pinned = tls_of, pinned
        self._turns = trio.Semaphore(connections)
        self._connections, self._keepalive = connections, keepalive
        self._idle: list[_Connection] = []  # the one used last at the end
        self._connecting = Counter[Origin]()  # ahead, and not idle yet

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: memoryview | None = None,
        moved: Moved = _nobody,
        pace: Pace = AT_ONCE,
    ) -> AsyncIterator[Answer]:
        request = _request(method, url, headers, self._user_agent)
        async with self._turns:
            connection = await self._ask(_origin(url), request, body, moved, pace)
            try:
                yield connection
                await connection.ignore()
            except BaseException:
                connection.close()
                raise
            self._keep(connection)

    async def connect_ahead(self, url: httpx.URL, connections: int) -> None:
        origin = _origin(url)
        idle = sum(connection.origin == origin for connection in self._idle)
        missing = min(connections, self._connections) - idle - self._connecting[origin]
        async with trio.open_nursery() as nursery:
            for _ in range(missing):
                nursery.start_soon(self._connect_one, origin)

    async def _connect_one(self, origin: Origin) -> None:
        self._connecting[origin] += 1
        try:
            with suppress(httpx.TransportError):
                self._add(await self._connect(origin))
        finally:
            self._connecting[origin] -= 1

    async def _ask(
        self,
        origin: Origin,
        request: h11.Request,
        body: memoryview | None,
        moved: Moved,
        pace: Pace,
    ) -> _Connection:
        """A connection that has answered."""
        while True:
            connection = self._reusable(origin) or await self._connect(origin)
            may_be_dead = connection.may_be_dead
            try:
                await connection.ask(request, body, moved, pace)
                return connection
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                connection.close()
                if not may_be_dead or connection.was_heard or connection.taken > MAX_REPEATED:
                    raise
            except BaseException:
                connection.close()
                raise

    def _reusable(self, origin: Origin) -> _Connection | None:
        """The connection to `origin` that was used last. What is too old, or has ended or said
        something unasked, is closed."""
        now, found = trio.current_time(), None
        for connection in reversed(self._idle.copy()):
            if connection.expires < now or (found is None and connection.is_stale()):
                self._idle.remove(connection)
                connection.close()
            elif found is None and connection.origin == origin:
                self._idle.remove(connection)
                found = connection
        return found

    def _keep(self, connection: _Connection) -> None:
        if not connection.is_reusable:
            connection.close()
        else:
            self._add(connection)

    def _add(self, connection: _Connection) -> None:
        connection.may_be_dead = True
        connection.expires = trio.current_time() + self._keepalive
        self._idle.append(connection)
        while len(self._idle) > self._connections:
            self._idle.pop(0).close()

    async def _connect(self, origin: Origin) -> _Connection:
        scheme, host, port = origin
        with (
            _moving(self._timeouts.connect, httpx.ConnectTimeout),
            _named(httpx.ConnectError),
        ):
            stream = Tcp(await trio.open_tcp_stream(host, port))
            context = self._tls_of[scheme]
            if context is None:
                return _Connection(origin, stream, self._timeouts)
            try:
                tls = Tls(stream, context, host)
                await self._shake_hands(tls, scheme)
            except BaseException:
                stream.close()
                raise
            return _Connection(origin, tls, self._timeouts)

    async def _shake_hands(self, tls: Tls, scheme: str) -> None:
        try:
            await tls.shake_hands()
        except ssl.SSLError as error:
            if scheme in self._pinned:
                raise not_that_server() from error
            raise

    def close(self) -> None:
        """Nothing is under way any more."""
        while self._idle:
            self._idle.pop().close()


class _Connection:
    """One connection, and the exchange that is under way on it: an `Answer`."""

    def __init__(self, origin: Origin, stream: Stream, timeouts: StallTimeouts) -> None:
        self.origin, self._stream, self._timeouts = origin, stream, timeouts
        self.may_be_dead = self.was_heard = False
        self.taken = 0  # bytes of the request that is under way
        self.expires = 0.0
        self._piece = memoryview(bytearray(_PIECE))

    def is_stale(self) -> bool:
        """Nothing was asked: whatever there is to receive ends it."""
        return self._stream.is_readable()

    def close(self) -> None:
        self._stream.close()

    # --- the request ---

    async def ask(
        self,
        request: h11.Request,
        body: memoryview | None,
        moved: Moved,
        pace: Pace = AT_ONCE,
    ) -> None:
        """Return when the head of the answer is there."""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.was_heard, self.taken = False, 0
        head = self._http.send(request)
        assert head is not None
        try:
            await self._send(head, memoryview(b"") if body is None else body, moved, pace)
        except httpx.WriteError:
            # It may have answered before it had all, and closed: then there is the answer.
            await self._receive_head()
            self.is_reusable = False
        else:
            self._http.send(h11.EndOfMessage())
            await self._receive_head()

    async def _send(self, head: bytes, body: memoryview, moved: Moved, pace: Pace) -> None:
        if body:  # checked by h11 to be as long as the head says, and not copied
            self._http.send_with_data_passthrough(h11.Data(data=cast(bytes, body)))
        # Taken before anything is said: the server waits for a body when it has the head.
        size = await pace.take(len(body)) if body else 0
        joined = size if size <= _JOINED else 0
        await self._send_all(memoryview(head + bytes(body[:joined])), _nobody)
        moved(joined)
        await self._send_all(body[joined:size], moved)
        while size < len(body):
            portion = await pace.take(len(body) - size)
            await self._send_all(body[size : size + portion], moved)
            size += portion

    async def _send_all(self, view: memoryview, moved: Moved) -> None:
        with _moving(self._timeouts.write, httpx.WriteTimeout) as wait, _named(httpx.WriteError):
            while view:
                wait.deadline = trio.current_time() + self._timeouts.write
                sent = await self._stream.send(view)
                moved(sent)
                self.taken += sent
                view = view[sent:]

    # --- the answer ---

    async def _receive_head(self) -> None:
        size = 0
        with _moving(self._timeouts.read, httpx.ReadTimeout) as wait, _named(httpx.ReadError):
            while not isinstance(event := self._next_event(), h11.Response):
                if not isinstance(event, h11.InformationalResponse):
                    size += await self._feed(self._piece[:_HEAD_PIECE], wait)
                if size > MAX_HEAD:
                    raise httpx.RemoteProtocolError("the head of the answer has no end")
        self.status = event.status_code
        self.headers: Mapping[str, str] = httpx.Headers(event.headers.raw_items())
        self._set_framing(event)

    async def _feed(self, room: memoryview, wait: trio.CancelScope) -> int:
        """Give h11 what comes next, as far as there is room."""
        came = await self._stream.receive_into(room)
        wait.deadline = trio.current_time() + self._timeouts.read
        if not came and not self.was_heard:
            raise httpx.RemoteProtocolError("the connection was closed without an answer")
        self.was_heard = True
        try:
            self._http.receive_data(bytes(room[:came]))
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        return came

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    def _set_framing(self, response: h11.Response) -> None:
        """Find where the body ends (RFC 9112, 6.3). `_left`: bytes still to come past h11; None: it
        knows."""
        said = self.headers.get("Content-Length")
        is_free = said is None or "Transfer-Encoding" in self.headers or self.status in (204, 304)
        self._left = None if is_free else int(said or 0)
        self._early = memoryview(b"") if is_free else memoryview(self._http.trailing_data[0])
        asked = self.headers.get("Connection", "").lower().split(",")
        stays = response.http_version >= b"1.1" and "close" not in map(str.strip, asked)
        # h11 refuses lengths that contradict each other; what is longer is nobody's answer.
        self.is_reusable = stays and (self._left is None or len(self._early) <= self._left)

    async def read_into(self, target: memoryview, moved: Moved) -> int:
        with _moving(self._timeouts.read, httpx.ReadTimeout) as wait, _named(httpx.ReadError):
            if self._left is None:
                return await self._read_parts(target, moved, wait)
            return await self._read_known(target, moved, wait)

    async def _read_known(self, target: memoryview, moved: Moved, wait: trio.CancelScope) -> int:
        assert self._left is not None
        length, receive = self._left, self._stream.receive_into
        room = target[:length]
        came = min(len(self._early), len(room))
        room[:came] = self._early[:came]
        self._early = self._early[came:]
        self._left -= came
        moved(came)
        while came < len(room):
            size = await receive(room[came:])
            if not size:
                raise httpx.RemoteProtocolError(f"the body ended after {came} of {length} bytes")
            wait.deadline = trio.current_time() + self._timeouts.read
            came += size
            self._left -= size
            moved(size)
        return length

    async def _read_parts(self, target: memoryview, moved: Moved, wait: trio.CancelScope) -> int:
        came = 0
        while came <= len(target):
            event = self._next_event()
            if isinstance(event, h11.Data):
                taken = event.data[: len(target) - came]
                target[came : came + len(taken)] = taken
                came += len(event.data)
                moved(len(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.is_reusable &= self._http.their_state is h11.DONE
                self._left, self._early = 0, memoryview(self._http.trailing_data[0])
                self.is_reusable &= not self._early
                return came
            else:
                await self._feed(self._piece, wait)
        return came

    async def ignore(self) -> None:
        """Read what is left, if it is little: the connection can be used again then."""
        if self.is_reusable and self._left != 0:
            if (self._left or 0) <= MAX_IGNORED:
                await self.read_into(memoryview(bytearray(MAX_IGNORED)), _nobody)
            self.is_reusable &= self._left == 0


def _request(
    method: str, url: httpx.URL, headers: Mapping[str, str], user_agent: str
) -> h11.Request:
    said = {"Host": url.netloc.decode("ascii"), "User-Agent": user_agent, "Accept": "*/*"}
    given = httpx.Headers(said)
    given.update(headers)
    try:
        return h11.Request(method=method, target=url.raw_path, headers=given.raw)
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]


@contextmanager
def _moving(seconds: float, late: type[httpx.TimeoutException]) -> Iterator[trio.CancelScope]:
    """Raise `late` when it is `seconds` since the scope's deadline was moved."""
    with trio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise late("timed out")


@contextmanager
def _named(kind: type[httpx.TransportError]) -> Iterator[None]:
    """Gives trouble on the way the name that httpx has for it."""
    try:
        yield
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise kind(str(error)) from error
