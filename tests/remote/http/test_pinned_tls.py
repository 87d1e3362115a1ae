"""remote/http/pinned_tls.py: whoever has the port of a server on this machine is told nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import trio
import trustme

from remote.http.api import ApiClient, Timeouts
from remote.protocol.errors import NearlineError, Silent, Unreachable
from remote.protocol.messages import PresignedPut

TOKEN = "a-token-that-is-secret"
OURS = trustme.CA().issue_cert("127.0.0.1")
PIN = OURS.cert_chain_pems[0].bytes().decode()

Answer = Callable[[socket.socket], None]


@contextmanager
def listening(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A program at a port: its URL, and what each connection brought. `answer` has each connection
    after its first bytes."""
    brought: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                sock.settimeout(10)
                brought.append(sock.recv(65536, socket.MSG_PEEK))
                answer(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", brought
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def ask_everything(url: str, *, pin: str = PIN) -> list[NearlineError]:
    """Ask in every way there is; how each ended."""
    put = PresignedPut(url=f"{url}/blobs/x?signature=secret", headers={}, expires_ns=1)
    failed = []

    async def every() -> None:
        async with ApiClient(url, TOKEN, pin=pin) as client:

            async def live() -> None:
                async with client.live("cursor") as hints:
                    async for _ in hints:
                        pass

            asked = [client.me, live, lambda: client.put_chunk(put, b"data")]
            asked.append(lambda: client.get_range(f"{url}/chunks/x?s=secret", 0, 4, bytearray(4)))
            for ask in asked:
                try:
                    await ask()  # type: ignore[operator]  # all are called alike
                except NearlineError as error:
                    failed.append(error)

    trio.run(every)
    return failed


def plain(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")


def another_key(sock: socket.socket) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(other)
    with other.wrap_socket(sock, server_side=True) as tls:
        assert not tls.recv(65536), "it was told something"


@pytest.mark.parametrize("answer", [plain, another_key])
def test_another_program_at_the_port_gets_a_client_hello_and_nothing_else(answer: Answer) -> None:
    with listening(answer) as (url, brought):
        failed = ask_everything(url)
        assert len(failed) == len(brought) == 4
        for error in failed:
            assert isinstance(error, Unreachable)
            assert "another program answers there, or the server's key changed" in str(error)
    for item in brought:
        assert item.startswith(b"\x16\x03")  # a handshake (RFC 8446, 5.1)
        assert b"secret" not in item
        assert b"HTTP" not in item


def test_one_that_goes_away_is_only_unreachable() -> None:
    """As a server does that is being stopped: its key has not changed."""
    with listening(lambda sock: None) as (url, _):
        failed = ask_everything(url)
    assert len(failed) == 4
    assert all(isinstance(item, Unreachable) for item in failed)
    assert not any("key" in str(item) for item in failed)


def test_who_has_the_key_is_told() -> None:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    OURS.configure_cert(ours)
    told = []

    def answer(sock: socket.socket) -> None:
        with ours.wrap_socket(sock, server_side=True) as tls:
            told.append(tls.recv(65536))
            plain(tls)

    with listening(answer) as (url, _):
        ask_everything(url)
    assert TOKEN.encode() in told[0]
    assert any(b"PUT /blobs/x" in item for item in told)


def test_who_says_that_nothing_more_comes_is_believed() -> None:
    """As asyncio's servers do when they break off: the socket stays open until they hear the same.
    Nobody may wait for that, nor take them for silent."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    OURS.configure_cert(ours)

    def breaks_off(sock: socket.socket) -> None:
        taken, given = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ours.wrap_bio(taken, given, server_side=True)

        def until_done(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    sock.sendall(given.read())
                    taken.write(sock.recv(65536))
                else:
                    return sock.sendall(given.read())

        until_done(tls.do_handshake)
        until_done(lambda: tls.read(65536))
        head = "HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/9"
        tls.write(f"{head}\r\n\r\nab".encode())
        with suppress(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(given.read())
        sock.settimeout(None)
        while sock.recv(65536):
            pass

    async def ask(url: str) -> None:
        async with ApiClient(url, TOKEN, pin=PIN, timeouts=Timeouts(read=3600)) as client:
            with pytest.raises(Unreachable) as failed, trio.fail_after(60):
                await client.get_range(f"{url}/chunks/x", 0, 4, bytearray(4))
            assert not isinstance(failed.value, Silent)

    with listening(breaks_off) as (url, _):
        trio.run(ask, url)


def test_insecure_is_plain_http() -> None:
    async def ask(url: str) -> None:
        async with ApiClient(url, TOKEN, insecure=True, pin=PIN) as client:
            with pytest.raises(NearlineError):
                await client.me()

    with listening(plain) as (url, brought):
        trio.run(ask, url)
    assert brought[0].startswith(b"GET /v1/me HTTP/1.1")
