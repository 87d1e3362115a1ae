"""remote/http/carriers.py: one contract over both carriers, and answers as no server should give
them. The servers here write bytes, not HTTP."""

from __future__ import annotations

import itertools
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import httpx
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from remote.http.api import ApiClient
from remote.http.carriers import (
    MAX_HEAD,
    MAX_REPEATED,
    ByHttpx,
    Carrier,
    Direct,
    StallTimeouts,
    _Connection,
)
from remote.http.pinned_tls import NotThatServer, PinnedTransport
from remote.protocol.certificates import trusting
from remote.protocol.errors import UrlRefused
from tests.amounts import amount

BODY = bytes(range(256)) * 4096  # 1 MiB
CRUMBS = BODY[: 128 * 1024]  # more than is read at once, though it is framed a few bytes each
ISSUED = trustme.CA().issue_cert("127.0.0.1")
PIN = ISSUED.cert_chain_pems[0].bytes().decode()
LONG = StallTimeouts(10.0, 10.0, 10.0)
SHORT = StallTimeouts(10.0, 0.05, 0.05)

Talk = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream: trio.abc.Stream, number: int) -> None:
        self._stream, self.number = stream, number
        self._had = b""

    async def request(self) -> tuple[bytes, bytes] | None:
        """The next head and body; None when the client went away."""
        while b"\r\n\r\n" not in self._had:
            if not (part := await self._stream.receive_some()):
                return None
            self._had += part
        head, _, self._had = self._had.partition(b"\r\n\r\n")
        said = re.search(rb"(?i)content-length: (\d+)", head)
        length = int(said[1]) if said else 0
        while len(self._had) < length:
            part = await self._stream.receive_some()
            assert part
            self._had += part
        body, self._had = self._had[:length], self._had[length:]
        return head, body

    async def say(self, *parts: bytes) -> None:
        await self._stream.send_all(b"".join(parts))

    async def gone(self) -> None:
        """Return when the client has closed."""
        while await self._stream.receive_some():
            pass

    def reset(self) -> None:
        assert isinstance(self._stream, trio.SocketStream)
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Site:
    """A server in which `talk` has each connection; a carrier to it."""

    url: httpx.URL
    carrier: Carrier
    came: list[Peer] = field(default_factory=list)

    async def get(self, into: bytearray, moved: list[int] | None = None) -> tuple[int, int]:
        """(status, bytes of the body)."""
        sizes = [] if moved is None else moved
        async with self.carrier.exchange("GET", self.url, {"Range": "bytes=0-9"}) as answer:
            return answer.status, await answer.read_into(memoryview(into), sizes.append)

    async def put(self, body: bytes, moved: list[int] | None = None) -> int:
        sizes = [] if moved is None else moved
        said = {"Content-Length": str(len(body)), "If-None-Match": "*"}
        view = memoryview(body)
        async with self.carrier.exchange("PUT", self.url, said, view, sizes.append) as answer:
            return answer.status


def direct(
    timeouts: StallTimeouts, tls: ssl.SSLContext | None = None, connections: int = 4
) -> Direct:
    pinned = frozenset() if tls is None else frozenset({"http"})
    of = {"http": tls, "https": ssl.create_default_context()}
    return Direct("test/1", timeouts, of, pinned, connections=connections, keepalive=30.0)


@asynccontextmanager
async def site(
    kind: str, talk: Talk, timeouts: StallTimeouts = LONG, connections: int = 4
) -> AsyncIterator[Site]:
    tls = kind.endswith("tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ISSUED.configure_cert(context)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = httpx.URL(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/chunk?s=1")
    trusted = trusting(PIN) if tls else None
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(timeouts.connect, read=timeouts.read, write=timeouts.write),
        trust_env=False,
        mounts={"http://": PinnedTransport(trusted, httpx.Limits())} if trusted else {},
    ) as client:
        ours = direct(timeouts, trusted, connections)
        made = Site(url, ByHttpx(client) if kind.startswith("httpx") else ours)

        async def serve(stream: trio.SocketStream) -> None:
            secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            peer = Peer(secured if tls else stream, len(made.came))
            made.came.append(peer)
            try:
                await talk(peer)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has closed
            finally:
                stream.socket.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            try:
                yield made
            finally:
                ours.close()
                nursery.cancel_scope.cancel()


def always(*answer: bytes) -> Talk:
    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.say(*answer)

    return talk


def once(*answer: bytes) -> Talk:
    async def talk(peer: Peer) -> None:
        if await peer.request():
            await peer.say(*answer)

    return talk


def ok(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"


KINDS = ["direct", "direct tls", "httpx", "httpx tls"]
every = pytest.mark.parametrize("kind", KINDS[:: amount(1, 3)])
own = pytest.mark.parametrize("kind", ["direct", "direct tls"])

# --- the contract -------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("body", "answer"),
    [(BODY, ok(BODY)), (BODY, chunked(BODY, 70_001)), (CRUMBS, chunked(CRUMBS, 13))],
    ids=["as it is", "in chunks", "in crumbs"],
)
async def test_a_body_lands_in_memory_over_one_connection(
    kind: str, body: bytes, answer: bytes
) -> None:
    async with site(kind, always(answer)) as made:
        for _ in range(3):
            into, moved = bytearray(b"." * (len(body) + 5)), list[int]()
            assert await made.get(into, moved) == (200, len(body))
            assert into == body + b"....."
            assert sum(moved) == len(body)
        assert len(made.came) == 1


@every
async def test_a_body_may_end_with_its_connection(kind: str) -> None:
    async with site(kind, once(b"HTTP/1.1 200 OK\r\n\r\n", BODY)) as made:
        for _ in range(2):
            into = bytearray(len(BODY))
            assert await made.get(into) == (200, len(BODY))
            assert into == BODY
        assert len(made.came) == 2


@every
@pytest.mark.parametrize("size", [0, 1, 32 * 1024, 32 * 1024 + 1, len(BODY)])
async def test_a_body_goes_out_of_memory_as_it_is(kind: str, size: int) -> None:
    taken: list[tuple[bytes, bytes]] = []

    async def talk(peer: Peer) -> None:
        while asked := await peer.request():
            taken.append(asked)
            await peer.say(ok(b"", b"X: y"))

    async with site(kind, talk) as made:
        for _ in range(2):
            moved: list[int] = []
            assert await made.put(BODY[:size], moved) == 200
            assert sum(moved) == size
        assert len(made.came) == 1
    for head, body in taken:
        assert body == BODY[:size]
        assert head.startswith(b"PUT /chunk?s=1 HTTP/1.1\r\n")
        lower = head.lower()
        assert lower.count(b"content-length:") == lower.count(b"host: 127.0.0.1:") == 1
        assert b"if-none-match: *" in lower
        assert b"transfer-encoding" not in lower


@every
async def test_an_answer_that_nobody_reads_does_not_cost_the_connection(kind: str) -> None:
    async with site(kind, always(b"HTTP/1.1 412 No\r\nContent-Length: 5\r\n\r\nthere")) as made:
        for _ in range(3):
            assert await made.put(b"x" * 100) == 412
        assert len(made.came) == 1


@every
async def test_many_at_once_are_kept_apart(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        while asked := await peer.request():
            number = re.search(rb"n=(\d+)", asked[0])
            assert number is not None
            await peer.say(ok(number[1] * 50_000))

    async with site(kind, talk) as made:

        async def ask(number: int) -> None:
            into = bytearray(100_000)
            url = made.url.copy_with(query=b"n=%02d" % number)
            async with made.carrier.exchange("GET", url, {}) as answer:
                assert await answer.read_into(memoryview(into), lambda _: None) == 100_000
            assert into == b"%02d" % number * 50_000

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(ask, number)
        if kind.startswith("direct"):
            assert len(made.came) <= 4


@every
@pytest.mark.parametrize(
    "answer",
    [
        ok(BODY)[:-1],
        chunked(BODY, 1000)[:-5],
        chunked(BODY, 1000)[:-400],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    ],
)
async def test_a_body_that_breaks_off_is_trouble_and_what_came_is_there(
    kind: str, answer: bytes
) -> None:
    async with site(kind, once(answer)) as made:
        into, moved = bytearray(len(BODY)), list[int]()
        with pytest.raises(httpx.TransportError):
            await made.get(into, moved)
        assert into[: sum(moved)] == BODY[: sum(moved)]
        assert not any(into[sum(moved) :])
        if len(answer) > 1000:
            assert sum(moved) >= len(BODY) - 1000


@every
async def test_more_than_was_asked_for_is_said_and_not_read(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while True:
            await peer.say(BODY)

    async with site(kind, talk) as made:
        into = bytearray(1000)
        status, came = await made.get(into)
        assert (status, bytes(into)) == (200, BODY[:1000])
        assert came > 1000


@pytest.mark.slow
@every
async def test_chunks_without_end_are_not_read_without_end(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.say(b"1\r\nx\r\n" * 1000)

    async with site(kind, talk) as made:
        into = bytearray(5000)
        assert (await made.get(into))[1] > 5000
        assert into == b"x" * 5000


@every
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nwhole!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nwhole",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nwhole",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nwhole",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nwhole",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 3 * MAX_HEAD,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD,
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"",
    ],
)
async def test_what_is_no_answer_is_trouble(kind: str, answer: bytes) -> None:
    async with site(kind, once(answer)) as made:
        with pytest.raises(httpx.TransportError):
            await made.get(bytearray(10))
        with pytest.raises(httpx.TransportError):
            await made.put(b"x" * 10)


@every
async def test_interim_answers_are_passed_over(kind: str) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with site(kind, always(b"HTTP/1.1 100 Continue\r\n\r\n", hints, ok(b"abc"))) as made:
        into = bytearray(3)
        assert await made.get(into) == (200, 3)
        assert into == b"abc"


@every
async def test_no_redirect_is_followed(kind: str) -> None:
    there = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with site(kind, always(there)) as made:
        assert await made.get(bytearray(1)) == (302, 0)


@every
async def test_who_says_nothing_is_given_up(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        asked = await peer.request()
        if asked is not None and asked[0].startswith(b"PUT"):
            await peer.say(ok(b"abc")[:-1])
        await peer.gone()

    async with site(kind, talk, SHORT) as made:
        with pytest.raises(httpx.ReadTimeout):
            await made.get(bytearray(3))
        with pytest.raises(httpx.ReadTimeout):
            async with made.carrier.exchange("PUT", made.url, {"Content-Length": "0"}) as answer:
                await answer.read_into(memoryview(bytearray(3)), lambda _: None)
        assert len(made.came) == 2  # asked once each: it may be at work


@every
async def test_who_takes_nothing_is_given_up(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        if kind.endswith("tls"):
            await peer._stream.do_handshake()  # type: ignore[attr-defined]
        await trio.sleep_forever()

    async with site(kind, talk, SHORT) as made:
        with pytest.raises(httpx.WriteTimeout):
            await made.put(BODY * 16)


@pytest.mark.parametrize("kind", ["direct", "httpx"])
async def test_a_connection_that_is_reset_is_trouble(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        if peer.number:
            await peer.say(ok(BODY)[:5000])
        peer.reset()

    async with site(kind, talk) as made:
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                await made.get(bytearray(len(BODY)))


@every
async def test_who_is_cancelled_leaves_at_once_and_leaves_room(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        if peer.number:
            await always(ok(b"abc"))(peer)
        else:
            await peer.request()
            await peer.say(ok(b"abc")[:-1])
            asked.set()
            await peer.gone()
            left.set()

    async with site(kind, talk, connections=1) as made:
        asked, left = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.get, bytearray(3))
            await asked.wait()
            nursery.cancel_scope.cancel()
        await left.wait()
        assert await made.get(bytearray(3)) == (200, 3)


@every
async def test_a_head_that_cannot_be_said_is_not_sent(kind: str) -> None:
    async with site(kind, always(ok(b""))) as made:
        with pytest.raises(httpx.LocalProtocolError):
            async with made.carrier.exchange("GET", made.url, {"X": "a\r\nEvil: b"}):
                pass
        assert await made.get(bytearray(1)) == (200, 0)


@pytest.mark.parametrize("kind", ["direct", "httpx"])
async def test_nobody_there(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with site(kind, always(b"")) as made:
        url = made.url.copy_with(port=port)
        with pytest.raises(httpx.ConnectError):
            async with made.carrier.exchange("GET", url, {}):
                pass


# --- what our own carrier does besides ----------------------------------------------------------


@own
async def test_what_follows_a_body_is_no_answer_to_the_next(kind: str) -> None:
    forged = ok(b"forged")
    for early in (True, False):
        said = trio.Event()

        async def talk(peer: Peer, early: bool = early, said: trio.Event = said) -> None:
            await peer.request()
            if peer.number:
                await peer.say(ok(b"second"))
                return
            await peer.say(ok(b"first!"), forged if early else b"")
            await peer.say(b"" if early else forged)
            said.set()
            await peer.gone()

        async with site(kind, talk) as made:
            for expected in (b"first!", b"second"):
                into = bytearray(6)
                assert await made.get(into) == (200, 6)
                assert into == expected
                await said.wait()
            assert len(made.came) == 2


@own
async def test_connections_made_ahead_are_used(kind: str) -> None:
    """By who asks next, as many as were wanted, and not once more while some are idle."""

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.say(ok(b"ab"))

    async with site(kind, talk) as made:
        await made.carrier.connect_ahead(made.url, 2)
        await made.carrier.connect_ahead(made.url, 2)
        assert await made.get(bytearray(2)) == (200, 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(made.came) == 2


@own
async def test_a_connection_made_ahead_that_died_costs_no_failure(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        if peer.number:
            await peer.say(ok(b"ab"))

    async with site(kind, talk) as made:
        await made.carrier.connect_ahead(made.url, 1)
        assert await made.get(bytearray(2)) == (200, 2)
        assert len(made.came) == 2


@pytest.mark.parametrize("kind", ["direct", "httpx"])
async def test_who_cannot_be_connected_to_ahead_is_left_to_who_asks(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with site(kind, always(b"")) as made:
        await made.carrier.connect_ahead(made.url.copy_with(port=port), 2)


@own
@pytest.mark.parametrize("method", ["get", "put"])
async def test_a_connection_that_died_meanwhile_costs_no_failure(kind: str, method: str) -> None:
    """It looks alive when the request is sent, and ends without a word."""

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(ok(b"ab"))
        if peer.number < 2:
            await peer.request()  # and no answer
        else:
            await always(ok(b"ab"))(peer)

    async def ask(made: Site) -> None:
        if method == "get":
            assert await made.get(bytearray(2)) == (200, 2)
        else:
            assert await made.put(BODY[: MAX_REPEATED // 2]) == 200

    async with site(kind, talk) as made:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(ask, made)
        await ask(made)
        await ask(made)


@own
async def test_a_large_body_that_was_taken_is_not_sent_once_more(kind: str) -> None:
    """Somebody took it, so somebody was there: the uploader finds out what has to be sent again."""
    large = bytes(MAX_REPEATED + 1)

    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(ok(b""))
        await peer.request()  # and no answer

    async with site(kind, talk) as made:
        assert await made.put(b"first") == 200
        with pytest.raises(httpx.RemoteProtocolError, match="without an answer"):
            await made.put(large)
        assert len(made.came) == 1


@own
async def test_a_fresh_connection_that_dies_is_trouble_at_once(kind: str) -> None:
    async with site(kind, once(b"")) as made:
        with pytest.raises(httpx.RemoteProtocolError, match="without an answer"):
            await made.get(bytearray(2))
        assert len(made.came) == 1


@own
async def test_a_half_answer_is_not_asked_for_again(kind: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.say(ok(b"ab"))
        await peer.request()
        await peer.say(b"HTTP/1.1 200")

    async with site(kind, talk) as made:
        await made.get(bytearray(2))
        with pytest.raises(httpx.RemoteProtocolError):
            await made.get(bytearray(2))
        assert len(made.came) == 1


@own
@pytest.mark.parametrize(
    "answer", [ok(b"ab", b"Connection: x, Close"), b"HTTP/1.0" + ok(b"ab")[8:]]
)
async def test_who_wants_to_close_is_not_asked_again(kind: str, answer: bytes) -> None:
    async with site(kind, always(answer)) as made:
        for _ in range(2):
            assert await made.get(bytearray(2)) == (200, 2)
        assert len(made.came) == 2


async def test_an_answer_before_the_body_had_come_counts() -> None:
    async def talk(peer: Peer) -> None:
        await peer._stream.receive_some(100)
        await peer.say(b"HTTP/1.1 412 There\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()

    async with site("direct", talk) as made:
        for _ in range(2):
            assert await made.put(BODY * 4) == 412


async def test_another_key_is_somebody_else() -> None:
    async with site("direct tls", always(ok(b""))) as made:
        other = trustme.CA().issue_cert("127.0.0.1").cert_chain_pems[0].bytes().decode()
        stranger = direct(LONG, trusting(other))
        with pytest.raises(NotThatServer):
            async with stranger.exchange("GET", made.url, {}):
                pass
        url = made.url.copy_with(scheme="https", port=made.url.port)
        with pytest.raises(httpx.ConnectError) as caught:
            async with stranger.exchange("GET", url, {}):
                pass
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_what_has_waited_too_long_is_not_used(autojump_clock: trio.testing.MockClock) -> None:
    ours = direct(LONG)
    old = _Connection(("http", "h", 80), Wire([]), LONG)
    old.is_reusable = True
    ours._keep(old)
    await trio.sleep(29)
    assert ours._reusable(("http", "other", 80)) is None
    assert ours._reusable(("http", "h", 80)) is old
    ours._keep(old)
    await trio.sleep(31)
    assert ours._reusable(("http", "h", 80)) is None
    assert old._stream.is_closed  # type: ignore[attr-defined]


async def test_a_slow_body_that_moves_is_not_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire = Wire([bytes([item]) for item in ok(b"abcdefgh")], pause=9.0)
    connection = _Connection(("http", "h", 80), wire, LONG)
    into = bytearray(8)
    await connection.ask(REQUEST, None, lambda _: None)
    assert await connection.read_into(memoryview(into), lambda _: None) == 8
    assert into == b"abcdefgh"


# --- any wire -----------------------------------------------------------------------------------

REQUEST = h11.Request(method="GET", target="/", headers=[("Host", "h")])


class Wire:
    """A stream that gives `parts`, one after the other, each in as many pieces as it is asked for,
    and then its end."""

    def __init__(self, parts: list[bytes], pause: float = 0.0) -> None:
        self._parts, self._pause = [part for part in parts if part], pause
        self.is_closed = False

    async def receive_into(self, into: memoryview) -> int:
        await trio.sleep(self._pause)
        if not self._parts:
            return 0
        part = self._parts.pop(0)
        taken, rest = part[: len(into)], part[len(into) :]
        into[: len(taken)] = taken
        if rest:
            self._parts.insert(0, rest)
        return len(taken)

    async def send(self, view: memoryview) -> int:
        return max(1, len(view) // 2)

    def is_readable(self) -> bool:
        return bool(self._parts)

    def close(self) -> None:
        self.is_closed = True


@given(
    body=st.binary(max_size=300),
    room=st.integers(0, 300),
    form=st.sampled_from(["length", "chunked", "close"]),
    chunk=st.integers(1, 50),
    cuts=st.lists(st.integers(0, 500), max_size=8),
    lost=st.integers(0, 40),
    extra=st.binary(max_size=3),
)
def test_however_it_is_cut_the_body_is_the_body_or_trouble(
    body: bytes, room: int, form: str, chunk: int, cuts: list[int], lost: int, extra: bytes
) -> None:
    said = {
        "length": ok(body),
        "chunked": chunked(body, chunk),
        "close": b"HTTP/1.1 200 OK\r\n\r\n" + body,
    }[form]
    whole = said[: len(said) - lost] if lost else said + (extra if form != "close" else b"")
    at = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    wire = Wire([whole[a:b] for a, b in itertools.pairwise(at)])
    connection = _Connection(("http", "h", 80), wire, LONG)
    into, moved = bytearray(room), list[int]()

    async def ask() -> int | None:
        try:
            await connection.ask(REQUEST, None, lambda _: None)
            return await connection.read_into(memoryview(into), moved.append)
        except httpx.RemoteProtocolError:
            return None

    came = trio.run(ask)
    had = min(room, sum(moved))
    assert into[:had] == body[:had]
    if came is not None and came <= room:
        assert came == had
        if form != "close":
            assert came == len(body)
            assert connection.is_reusable == (not wire.is_readable() and not extra) or lost
    elif came is not None:
        assert len(body) > room
    else:
        assert lost


# --- which one carries --------------------------------------------------------------------------


async def test_a_proxy_is_asked_as_httpx_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def talk(peer: Peer) -> None:
        while request := await peer.request():
            asked.append(request[0])
            await peer.say(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    async with site("httpx", talk) as made:
        monkeypatch.setenv("http_proxy", str(made.url.copy_with(raw_path=b"/")))
        async with ApiClient("http://nas.invalid", None, insecure=True) as client:
            with pytest.raises(UrlRefused):
                await client.get_range("http://edge.invalid/chunk", 0, 1, bytearray(1))
    assert [item.split(b"\r\n")[0] for item in asked] == [b"GET http://edge.invalid/chunk HTTP/1.1"]


async def test_only_our_own_machine_is_past_every_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    there, named = httpx.URL("https://edge.invalid/x"), httpx.URL("https://a:b@edge.invalid/x")

    async def carrier(base: str, url: httpx.URL) -> Carrier:
        async with ApiClient(base, None, insecure=True) as client:
            return await client._pools.carrier(url)

    assert isinstance(await carrier("https://nas.invalid", there), Direct)
    assert isinstance(await carrier("https://nas.invalid", named), ByHttpx)
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    assert isinstance(await carrier("https://nas.invalid", there), ByHttpx)
    assert isinstance(await carrier("http://127.0.0.1:2", there), Direct)


@own
async def test_what_comes_behind_a_body_is_no_answer_to_the_next(kind: str) -> None:
    """Also where it was decrypted together with the end of the body."""
    forged = b"HTTP/1.1 412 No\r\nContent-Length: 0\r\n\r\n"

    async def talk(peer: Peer) -> None:
        while await peer.request():
            await peer.say(ok(b"z" * 8000), forged) if peer.number == 0 else await peer.say(ok(b""))

    async with site(kind, talk) as made:
        into = bytearray(8000)
        assert await made.get(into) == (200, 8000)
        assert await made.put(b"x") == 200
        assert len(made.came) == 2
