"""HTTP to a server on this machine, spoken over TLS whatever the URL says.

Knows: httpx, httpcore's streams, our own (`streams`). Must not know: tokens, where the certificate
comes from. Loaded with the HTTP libraries (`late`).

URLs of such a server begin with http://, in settings, logs and signatures: that is its name. On the
way to it they become TLS with its certificate as the only one that is good, so that no byte of a
request reaches another program that has the port.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx
import trio

from remote.http.streams import Tcp, Tls


class NotThatServer(httpx.ConnectError):
    """Whoever answers has not the key that belongs to the pinned certificate."""


def not_that_server() -> NotThatServer:
    return NotThatServer(
        "another program answers there, or the server's key changed; if it did, "
        "run `nearline login` again"
    )


class PinnedTransport(httpx.AsyncHTTPTransport):
    """Carries http:// requests over TLS to whom `context` trusts (`certificates.trusting`)."""

    def __init__(self, context: ssl.SSLContext, limits: httpx.Limits) -> None:
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
                raise not_that_server() from error
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
        tls = Tls(Tcp(self._stream), ssl_context, server_hostname)
        try:
            with _named(httpcore.ConnectTimeout, httpcore.ConnectError), _within(timeout):
                await self._shake_hands(tls)
        except BaseException:
            await self.aclose()
            raise
        return _Tls(tls, self._stream)

    async def _shake_hands(self, tls: Tls) -> None:
        try:
            await tls.shake_hands()
        except ssl.SSLError as error:
            raise _SomebodyElse(error) from error


class _Tls(httpcore.AsyncNetworkStream):
    """A connection of ours, as httpcore calls it."""

    def __init__(self, tls: Tls, stream: trio.SocketStream) -> None:
        self._tls, self._stream = tls, stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """All that is there, at most `max_bytes`; empty at the end."""
        plain = bytearray(max_bytes)
        with _named(httpcore.ReadTimeout, httpcore.ReadError), _within(timeout):
            size = await self._tls.receive_into(memoryview(plain))
        return bytes(memoryview(plain)[:size])

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _named(httpcore.WriteTimeout, httpcore.WriteError), _within(timeout):
            view = memoryview(buffer)
            while view:
                view = view[await self._tls.send(view) :]

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._tls.object
        if info == "is_readable":
            return self._tls.is_readable()
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
