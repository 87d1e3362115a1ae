"""HTTP to a server on this machine, spoken over TLS whatever the URL says.

Knows: httpx, httpcore's streams, TLS as the `ssl` module does it in memory. Must not know: tokens,
where the certificate comes from. Loaded with the HTTP libraries (`late`).

URLs of such a server begin with http://, in settings, logs and signatures: that is its name. On the
way to it they become TLS with its certificate as the only one that is good, so that no byte of a
request reaches another program that has the port.

The stream is our own because trio's gives one TLS record (16 KiB) at a time, and everything above
is asked for each. Here as much is decrypted before anybody is asked as was wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx
import trio

from remote.protocol.certificates import trusting

# What is taken from the socket, or given to it, at a time.
_PIECE = 256 * 1024


class NotThatServer(httpx.ConnectError):
    """Whoever answers has not the key that belongs to the pinned certificate."""


class PinnedTransport(httpx.AsyncHTTPTransport):
    """Carries http:// requests over TLS to the holder of `certificate`'s key (PEM)."""

    def __init__(self, certificate: str, limits: httpx.Limits) -> None:
        context = trusting(certificate)
        super().__init__(verify=context, trust_env=False)
        # httpx has no argument for the network's backend.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(scheme="https", port=request.url.port or 80)
        try:
            return await super().handle_async_request(request)
        except httpx.ConnectError as error:
            if isinstance(error.__cause__, _SomebodyElse):
                raise NotThatServer(
                    "another program answers there, or the server's key changed; if it did, "
                    "run `nearline login` again"
                ) from error
            raise


class _SomebodyElse(httpcore.ConnectError):
    """As it is called below httpx, which passes the cause on and not the class."""


class _Backend(httpcore.AsyncNetworkBackend):
    """Connections that begin with TLS."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _named(httpcore.ConnectTimeout, httpcore.ConnectError), _within(timeout):
            return _Tcp(await trio.open_tcp_stream(host, port))

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Tcp(httpcore.AsyncNetworkStream):
    """A connection before TLS: nothing is sent on it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        tls = _Tls(self._stream, ssl_context, server_hostname)
        try:
            with _named(httpcore.ConnectTimeout, httpcore.ConnectError), _within(timeout):
                await self._shake_hands(tls)
        except BaseException:
            await self.aclose()
            raise
        return tls

    async def _shake_hands(self, tls: _Tls) -> None:
        try:
            await tls.shake_hands()
        except ssl.SSLError as error:
            raise _SomebodyElse(error) from error


class _Tls(httpcore.AsyncNetworkStream):
    """TLS over one socket. Concurrency: one task may read while others write."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, host: str | None):
        self._stream = stream
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._received = bytearray(_PIECE)
        self._sending = trio.Lock()  # what is encrypted first is sent first
        self._is_over = False  # the peer has said that it sends no more

    async def shake_hands(self) -> None:
        """Raises ssl.SSLError for who is not the one, and OSError for who goes away."""
        while not self._is_done():
            await self._flush()
            await self._receive()
            if self._in.eof:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        await self._flush()

    def _is_done(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """All that is there, at most `max_bytes`; empty at the end, which is none of HTTP's unless
        HTTP says so: a peer that goes away without a word is noticed by the length. Who says so
        in TLS may keep its socket open until it hears the same of us."""
        plain = bytearray(max_bytes)
        with _named(httpcore.ReadTimeout, httpcore.ReadError), _within(timeout):
            while not (size := self._decrypt(plain)) and not (self._is_over or self._in.eof):
                await self._receive()
            if self._out.pending:  # the peer asked for new keys
                await self._flush()
        del plain[size:]
        return bytes(plain)

    def _decrypt(self, into: bytearray) -> int:
        """As much as there is; how many bytes that was."""
        view, size = memoryview(into), 0
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            while size < len(view):
                got = self._tls.read(len(view) - size, view[size:])
                if not got:
                    self._is_over = True
                    break
                size += got  # type: ignore[operator]  # into a buffer: the number of bytes
        view.release()
        return size

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _named(httpcore.WriteTimeout, httpcore.WriteError), _within(timeout):
            view = memoryview(buffer)
            while view:
                async with self._sending:
                    written = self._tls.write(view[:_PIECE])
                    await self._stream.send_all(self._out.read())
                view = view[written:]

    async def _flush(self) -> None:
        async with self._sending:
            if self._out.pending:
                await self._stream.send_all(self._out.read())

    async def _receive(self) -> None:
        size = await self._stream.socket.recv_into(self._received)
        if size:
            self._in.write(memoryview(self._received)[:size])
        else:
            self._in.write_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._tls
        if info == "is_readable":
            return bool(self._in.pending) or self._stream.socket.is_readable()
        if info == "socket":
            return self._stream.socket
        return None


@contextlib.contextmanager
def _named(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Errors on the way, as httpcore calls them."""
    try:
        yield
    except trio.TooSlowError as error:
        raise late(error) from error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise broken(error) from error


def _within(seconds: float | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if seconds is None else trio.fail_after(seconds)
