"""Connections: how many there may be, and what becomes of those that are held up.

Time is an argument of the sweep, so nothing here waits for a limit to pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from server import memory
from server.http.connections import ENDED, Connections, Watched
from server.http.protocols import Http
from server.http.recent_tokens import RecentTokens
from server.metrics import Metrics
from server.settings import Tunables
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk, new_id, noise, run, until

LATER = 10_000.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose connections nobody else has."""
    running = run(tmp_path_factory.mktemp("connections"), head_lines=20, head_bytes=8192)
    yield running
    running.stop()


@contextmanager
def connected(server: Running, receive_buffer: int = 0) -> Iterator[socket.socket]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.socket() as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(60)
        sock.connect((host, int(port)))
        yield sock


def everything(sock: socket.socket) -> bytes:
    """All that comes until the other side closes, in whatever way."""
    got = b""
    try:
        while more := sock.recv(65536):
            got += more
    except ConnectionResetError:
        pass
    return got


def sweep(server: Running, seconds_later: float) -> None:
    """One sweep, by a clock that is ahead."""

    async def work() -> None:
        server.app.connections.sweep(time.monotonic() + seconds_later)

    loop = server.server._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(work(), loop).result(20)


def cut(server: Running, why: str) -> float:
    return float(server.app.service.metrics.cut.labels(why)._value.get())


def taken(server: Running) -> int:
    return server.app.connections.taken


# --- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHo", b"\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(own: Running, begun: bytes) -> None:
    before = cut(own, "slow_head")
    with connected(own) as sock:
        sock.sendall(begun)
        until(lambda: taken(own) > 0)
        sweep(own, 5)
        assert cut(own, "slow_head") == before
        sweep(own, 60)
        assert everything(sock) == b""
    assert cut(own, "slow_head") == before + 1


def test_the_next_heads_of_a_connection_are_timed_too(own: Running) -> None:
    with connected(own) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sweep(own, LATER)  # idle between requests: the keep-alive timeout's affair
        before = cut(own, "slow_head")
        sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        until(lambda: any(item._head_since for item in list(own.app.connections._open)))  # type: ignore[attr-defined]
        sweep(own, LATER)
        assert everything(sock) == b""
        assert cut(own, "slow_head") == before + 1


def test_a_request_under_way_may_take_its_time(own: Running) -> None:
    anna = own.account("anna")
    head = f"GET /v1/changes/wait?cursor={anna.me.cursor}&timeout=25 HTTP/1.1\r\nHost: x\r\n"
    with connected(own) as sock:
        sock.sendall(f"{head}Authorization: Bearer {anna.token}\r\n\r\n".encode())
        until(lambda: own.app.service.fanout.listeners() > 0)
        sweep(own, LATER)
        anna.make("a")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(21)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 8192 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 100_000,
        b"GET /" + b"y" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"y" * 100_000,
    ],
    ids=["many", "large", "endless value", "endless target", "endless name"],
)
def test_a_head_that_is_too_large_is_refused(own: Running, head: bytes) -> None:
    with connected(own) as sock:
        for at in range(0, len(head), 4096):
            try:
                sock.sendall(head[at : at + 4096])
            except ConnectionError:
                break
        assert everything(sock)[:12] in (b"HTTP/1.1 431", b"")
    until(lambda: cut(own, "large_head") > 0)
    with connected(own) as sock:
        small = b"".join(b"X-%d: y\r\n" % n for n in range(15))
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + small + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_not_http_is_refused(own: Running) -> None:
    with connected(own) as sock:
        sock.sendall(b"\x17\x03\x01 hello\r\n\r\n")
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"cache-control: no-store" in answer


# --- readers ------------------------------------------------------------------------------------


def large_answer(anna: Client) -> bytes:
    """A request for more than sockets hold."""
    chunk = make_chunk(noise(16_000_000, "large"))
    file, version = anna.store("large", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    target = "/" + url.split("/", 3)[3]
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def unsent(server: Running) -> int:
    there = [item for item in server.app.connections._open if isinstance(item, Http)]
    return sum(item.transport.get_write_buffer_size() for item in there)


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_cut(own: Running) -> None:
    request = large_answer(own.account("anna"))
    before = cut(own, "slow_reader")
    with connected(own, receive_buffer=4096) as sock:
        sock.sendall(request)
        until(lambda: unsent(own) > 0)
        sweep(own, 0)
        sweep(own, 30)
        assert cut(own, "slow_reader") == before
        clock = itertools.count(100, 70)  # what is on its way may still be taken by the kernel
        while cut(own, "slow_reader") == before:
            sweep(own, next(clock))
        assert len(everything(sock)) < 16_000_000


def taken_in(sock: socket.socket) -> int:
    """The number of bytes that are still there."""
    some = sock.recv(65536)
    assert some, "the connection was cut"
    return len(some)


def test_a_reader_that_takes_some_is_not_cut(own: Running) -> None:
    request = large_answer(own.account("anna"))
    before = cut(own, "slow_reader")
    with connected(own, receive_buffer=65536) as sock:
        sock.sendall(request)
        until(lambda: unsent(own) > 0)
        got = 0
        for n in range(4):
            sweep(own, 50.0 * n)
            waiting, more = unsent(own), 0
            while unsent(own) == waiting and got + more < 16_000_000:
                more += taken_in(sock)
            got += more
        while got < 16_000_000:
            got += taken_in(sock)
    assert cut(own, "slow_reader") == before


# --- how many -----------------------------------------------------------------------------------


def alone(server: Running, others: int = 0) -> None:
    """Close the connections that clients keep for their next request."""
    for client in server.clients:
        client.close()
    until(lambda: taken(server) == others)


def refused(server: Running) -> bool:
    with connected(server) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = everything(sock)
    if b" 503 " in answer[:16] or not answer:
        return True
    assert answer.startswith(b"HTTP/1.1 200")
    return False


@contextmanager
def uploading(
    server: Running, anna: Client, name: str, *, makes_room: bool = False
) -> Iterator[socket.socket]:
    """A connection that is of use, and shows no token: a signed PUT under way."""
    chunk = make_chunk(noise(1000, name))
    put = anna.start(new_id(), new_id(), chunk).chunks[0].put
    head = f"PUT /{put.url.split('/', 3)[3]} HTTP/1.1\r\nHost: x\r\n"
    head += "".join(f"{field}: {value}\r\n" for field, value in put.headers.items())
    with connected(server) as sock:
        sock.sendall(f"{head}\r\n".encode() + chunk.data[:500])
        yield sock
        if makes_room:
            assert everything(sock) == b""
            return
        sock.sendall(chunk.data[500:])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def busy(server: Running) -> int:
    return sum(not item.waits_for_peer() for item in list(server.app.connections._open))


def test_an_address_has_so_many_connections(start: Start) -> None:
    """Where none is idle, the body that has been coming for longest makes room: whoever keeps many
    of them open keeps nobody out."""
    server = start(connections_per_address=2)
    anna = server.account("anna")
    with uploading(server, anna, "a", makes_room=True), uploading(server, anna, "b"):
        alone(server, 2)
        until(lambda: busy(server) == 2)
        assert not refused(server)
    until(lambda: taken(server) == 0)
    assert (cut(server, "made_room"), cut(server, "too_many")) == (1, 0)


def test_who_waits_longest_without_a_word_makes_room(start: Start) -> None:
    server = start(connections_per_address=2)
    with connected(server) as first, connected(server) as second:
        until(lambda: taken(server) == 2)
        assert not refused(server)
        assert everything(first) == b""
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert second.recv(65536).startswith(b"HTTP/1.1 200")
    assert cut(server, "made_room") == 1
    assert cut(server, "too_many") == 0


def test_idle_connections_do_not_keep_out_or_cut_who_has_a_token(start: Start) -> None:
    server = start(connections_per_address=3, connections_per_account=1)
    anna = server.account("anna")
    until(lambda: taken(server) == 1)
    kept = next(iter(server.app.connections._open))
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(server))
        until(lambda: cut(server, "made_room") == 7)
        assert anna.refresh()
        assert kept in server.app.connections._open
        assert server.device(anna.me.account).me.account == anna.me.account


def test_users_of_this_machine_are_not_each_others_crowd() -> None:
    class Idle(Watched):
        def waits_for_peer(self) -> bool:
            return True

        def abort(self) -> None:
            gone.append(self)

    users = {1: 1000, 2: 1000, 3: 2000, 4: 1000, 5: None, 6: None, 7: None}
    gone: list[Watched] = []
    tunables = Tunables(connections_per_address=2)
    places = Connections(
        tunables, Metrics(), RecentTokens(), lambda there, here: users.get(there[1])
    )
    idle = {port: Idle() for port in users}
    for port, each in idle.items():
        host = f"127.0.0.{port}"  # each has all of 127.0.0.0/8 to come from
        if users[port] is None:  # not told: one address
            host = "127.0.0.1"
        assert places.enter(each, (host, port), ("127.0.0.1", 8750))
    assert gone == [idle[1], idle[5]]
    places = Connections(tunables, Metrics(), RecentTokens(), lambda there, here: 1 // 0)
    assert places.enter(Idle(), ("192.0.2.1", 1), ("192.0.2.2", 1))  # nobody is asked about others


def test_there_are_so_many_connections_in_all(start: Start) -> None:
    server = start(connections=2, trusted_proxies=["127.0.0.1"], connections_per_address=1)
    with connected(server), connected(server):  # a proxy's address has no limit of its own
        until(lambda: taken(server) == 2)
        assert refused(server)
    until(lambda: taken(server) == 0)


def test_a_socket_keeps_the_place_of_its_connection(own: Running) -> None:
    anna = own.account("anna")
    alone(own)
    head = "GET /v1/changes/live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    head += "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    head += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with connected(own) as sock:
        sock.sendall(f"{head}Authorization: Bearer {anna.token}\r\n\r\n".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 101")
        assert taken(own) == 1
        sweep(own, LATER)
        assert taken(own) == 1
    until(lambda: taken(own) == 0)


def test_places_are_given_back_whatever_happens(own: Running) -> None:
    until(lambda: taken(own) == 0)
    for request in (
        b"nonsense\r\n\r\n",
        b"GET /../x HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: ",
    ):
        with connected(own) as sock:
            sock.sendall(request)
    with connected(own) as sock:
        bad = b"GET /v1/changes/live HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
        sock.sendall(bad)
        assert everything(sock)
    until(lambda: taken(own) == 0)
    assert not own.app.connections._open


class Visitor(Watched):
    def held_up(self, now: float, tunables: Tunables) -> str | None:
        return None


def test_ended_connections_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS they have buffers of half a megabyte, of which Python's collector knows nothing."""
    collected: list[int] = []
    monkeypatch.setattr(memory, "give_back", partial(collected.append, 1))
    connections = Connections(Tunables(), Metrics(), RecentTokens())
    for ended in range(1, 2 * ENDED + 1):
        visitor = Visitor()
        assert connections.enter(visitor, ("192.0.2.1", 1), ("192.0.2.2", 2))
        connections.leave(visitor)
        connections.leave(visitor)  # counts once
        connections.sweep(0)
        assert len(collected) == (ended >= ENDED)
    connections.sweep(4)
    assert len(collected) == 1
    connections.sweep(6)
    assert len(collected) == 2


def connections_of(server: Running) -> list[Http]:
    """Those in memory, ended or not. Other servers of this process have their own."""
    every = [item for item in gc.get_objects() if isinstance(item, Http)]
    return [item for item in every if item._limits is server.app.connections]


@pytest.mark.slow
def test_an_ended_connection_is_freed_without_the_collector(own: Running) -> None:
    """Also one that was cut while requests waited in it: none refers to itself."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    until(lambda: taken(own) == 0)
    gc.collect()
    gc.disable()
    try:
        for said in (b"rubbish\r\n\r\n", 3 * b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with connected(own) as plain, anybody.wrap_socket(plain) as sock:
                sock.sendall(said)
                everything(sock)
            until(lambda: not connections_of(own))
    finally:
        gc.enable()
