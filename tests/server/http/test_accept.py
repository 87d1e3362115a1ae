"""server/http/accept.py: connections from accept to a protocol."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.protocol.certificates import trusting
from server.http import accept
from tests.server.harness import Running, run, until
from tests.server.http.test_connections import connected, cut, everything, sweep, taken

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that speaks plain HTTP and TLS."""
    running = run(tmp_path_factory.mktemp("both"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that speaks only TLS, as with an operator's certificate."""
    running = run(tmp_path_factory.mktemp("strict"), tls_only=True)
    yield running
    running.stop()


def over_tls(server: Running, sock: socket.socket) -> ssl.SSLSocket:
    return trusting(server.pin).wrap_socket(sock)


def test_one_port_speaks_both(both: Running) -> None:
    with connected(both) as sock:
        sock.sendall(REQUEST)
        assert everything(sock).startswith(b"HTTP/1.1 200")
    with connected(both) as plain, over_tls(both, plain) as sock:
        sock.sendall(REQUEST)
        assert everything(sock).startswith(b"HTTP/1.1 200")
    until(lambda: taken(both) == 0)


def test_where_only_tls_is_spoken_plain_http_is_not(strict: Running) -> None:
    with connected(strict) as sock:
        sock.sendall(REQUEST)
        assert not everything(sock).startswith(b"HTTP")
    with connected(strict) as plain, over_tls(strict, plain) as sock:
        sock.sendall(REQUEST)
        assert everything(sock).startswith(b"HTTP/1.1 200")
    until(lambda: taken(strict) == 0)


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("which", ["both", "strict"])
def test_who_never_begins_tls_is_counted_and_cut(
    which: str, begun: bytes, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(which)
    before = cut(server, "slow_head")
    with connected(server) as sock:
        sock.sendall(begun)
        until(lambda: taken(server) == 1)
        sweep(server, 5)
        assert taken(server) == 1
        sweep(server, 60)
        assert taken(server) == 0
        assert everything(sock) == b""
    assert cut(server, "slow_head") == before + 1


def test_who_leaves_without_a_word_leaves_nothing(both: Running, strict: Running) -> None:
    for server in (both, strict):
        for said in (b"", b"\x16", b"\x16\x03\x01 nonsense", b"nonsense"):
            with connected(server) as sock:
                sock.sendall(said)
        until(lambda: taken(server) == 0)  # noqa: B023  # asked in this round
        assert not server.app.connections._open


def test_a_server_that_stops_lets_go_of_who_says_nothing(tmp_path: Path) -> None:
    server = run(tmp_path)
    with connected(server) as silent, connected(server) as begun, connected(server) as idle:
        begun.sendall(b"\x16")
        with over_tls(server, idle) as tls:
            tls.sendall(REQUEST.replace(b"close", b"keep-alive"))
            assert tls.recv(100)
            until(lambda: taken(server) == 3)
            server.stop()
            assert everything(silent) == b""
            assert everything(begun) == b""


class Exhausted(socket.socket):
    """A listening socket when the process has no descriptors left, once."""

    refused = False

    def accept(self) -> tuple[socket.socket, object]:
        if not self.refused:
            self.refused = True
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_descriptors_it_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "PAUSE_SECONDS", 0.0)
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    server = run(tmp_path, sock=listening)
    with connected(server) as sock:
        sock.sendall(REQUEST)
        assert everything(sock).startswith(b"HTTP/1.1 200")
    assert listening.refused
    server.stop()


def test_an_arrival_that_made_room_becomes_no_protocol(both: Running) -> None:
    """Its task may have got as far as the protocol at the very moment."""

    async def work() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            opened = both.server.servers[0]
            assert isinstance(opened, accept.Acceptor)
            arrival = accept.Arrival(opened, ours)
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                arrival._protocol, ours
            )
            assert transport.is_closing()

    loop = both.server._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(work(), loop).result(20)
    until(lambda: taken(both) == 0)
