"""The server process: lock, socket, TLS, signals, and the end.

Knows: how a server starts and stops. Must not know: what it serves.

Order at start: see that the data directory is private, lock it (a second server on the same data
would corrupt nothing, but would not tell the first one's sockets of its commits), bind the port, so
that the public URL is known, then open the data. `ready` is called, and DATA/server.url written,
when requests are answered. At SIGTERM or SIGINT: no new connections, long polls answered, sockets
closed, what was begun is finished for at most `GRACE_SECONDS`. At SIGHUP a server with TLS reads
its certificate again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog
import uvicorn

from server import datadir, memory
from server.durable import write_private
from server.http import logs
from server.http.accept import Acceptor
from server.http.certificate import Identity, tell_nothing
from server.http.listen import CannotListen, check_safe, listening, public_url
from server.http.protocols import Config, Http
from server.http.tls import Certificate, Tls
from server.settings import BadSettings, Settings, Tunables, read_config

if TYPE_CHECKING:
    from server.app import Application

__all__ = ["AlreadyServed", "CannotListen", "Server", "configure", "serve"]

GRACE_SECONDS = 5
# Clients send no messages; uvicorn must read one to let it be refused.
SOCKET_MESSAGE_BYTES = 4096
STARTUP_FAILURE = 3
_SPARE_DESCRIPTORS = 256

log = structlog.get_logger("nearline.server")


class AlreadyServed(RuntimeError):
    """Another server runs on this data directory."""


def serve(
    data_dir: Path,
    listen: str = "127.0.0.1:8750",
    public: str | None = None,
    config: Path | None = None,
    ready: Callable[[str], None] | None = None,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    insecure: bool = False,
) -> None:
    """Serve `data_dir` in the foreground until SIGTERM or SIGINT.

    `listen` is HOST:PORT, port 0 for any free one; `public` is the origin clients use, by default
    that of the configuration file, else where it listens. `ready` gets it as soon as requests are
    answered; until the end it stands in DATA/server.url too. `tls_cert` and `tls_key` are PEM
    files, by default those of the configuration file; without them, other machines are only
    listened to through trusted proxies, or if `insecure`.

    Raises `AlreadyServed`, `CannotListen`, `datadir.NotPrivate`, `settings.BadSettings`,
    `db.DataTooNew`, `keys.BadKey`.
    """
    tunables = read_config(config)
    certificate = _certificate(tunables, tls_cert, tls_key)
    tls = certificate is not None
    with _private(data_dir), _locked(data_dir), listening(listen) as sock:
        check_safe(sock, tls=tls, proxied=bool(tunables.trusted_proxies), insecure=insecure)
        url = public_url(sock, public or tunables.public_url, tls=tls)
        settings = Settings(data_dir, url, tunables)
        logs.configure()
        datadir.shut(data_dir)
        _allow_descriptors(2 * tunables.connections + _SPARE_DESCRIPTORS)
        _run(settings, sock, certificate, ready)


def _tls(data_dir: Path, certificate: Certificate | None) -> Tls:
    """With the operator's certificate nothing but TLS is spoken; without, plain HTTP too, and
    clients on this machine know the server by a certificate of its own."""
    if certificate is not None:
        tell_nothing(data_dir)
        return Tls(certificate.context, only=True)
    identity = Identity(data_dir)
    identity.tell(data_dir)
    log.info("identity", fingerprint=identity.fingerprint)
    return Tls(identity.context, only=False)


def _run(
    settings: Settings,
    sock: socket.socket,
    certificate: Certificate | None,
    ready: Callable[[str], None] | None,
) -> None:
    from server.app import create_app

    memory.keep_little()
    tls = _tls(settings.data_dir, certificate)
    app = create_app(settings)
    memory.keep_what_is_loaded()
    announced = settings.data_dir / "server.url"

    def started() -> None:
        write_private(announced, settings.public_url.encode() + b"\n")
        if ready is not None:
            ready(settings.public_url)

    try:
        reload = None if certificate is None else certificate.reload
        server = Server(configure(app), started, app.service.stop_waiting, tls, reload)
        server.run(sockets=[sock])
    finally:
        announced.unlink(missing_ok=True)


def configure(app: Application) -> Config:
    """The configuration with which uvicorn runs `app`."""
    return Config(
        app,
        app.connections,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws_per_message_deflate=False,
        ws_max_size=SOCKET_MESSAGE_BYTES,
    )


def _certificate(tunables: Tunables, cert: Path | None, key: Path | None) -> Certificate | None:
    if cert is None and key is None:
        cert, key = (Path(item) if item else None for item in (tunables.tls_cert, tunables.tls_key))
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise BadSettings("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
    return Certificate(cert, key)


def _allow_descriptors(wanted: int) -> None:
    """Raise the limit of open files to `wanted`, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


class Server(uvicorn.Server):
    """uvicorn that says when it is up, cuts who holds up connections, lets its waiters go before it
    stops, stops at once when told, and lets the process end normally after a signal.

    `started_callback` is called on the loop when connections are accepted; `stop_waiting` when no
    more are; `reload` at SIGHUP. Without `tls` it speaks plain HTTP.
    """

    def __init__(
        self,
        config: Config,
        started_callback: Callable[[], None],
        stop_waiting: Callable[[], None],
        tls: Tls | None = None,
        reload: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._connections = config.connections
        self._started_callback, self._stop_waiting = started_callback, stop_waiting
        self._tls, self._reload = tls, reload
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, with an accept of our own: see `accept`."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self._loop = asyncio.get_running_loop()
        acceptors = [
            Acceptor(sock, self._connections, self._make_protocol, self._tls)
            for sock in sockets or []
        ]
        for acceptor in acceptors:
            acceptor.open(self.config.backlog)
        self.servers = cast(
            list[asyncio.base_events.Server], acceptors
        )  # closed and waited for alike
        self.started = True
        self._started_callback()

    def _make_protocol(self) -> Http:
        make = cast(type[Http], self.config.http_protocol_class)
        state, app_state = self.server_state, self.lifespan.state
        return make(config=self.config, server_state=state, app_state=app_state)

    async def main_loop(self) -> None:
        """uvicorn's polls ten times a second for the end; this waits for it, and ticks once a
        second for the Date header and the connections."""
        counter = 0
        while not await self.on_tick(counter) and not self._told.is_set():
            counter = (counter + 10) % 864_000
            self._connections.sweep(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop_waiting()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """End soon. From any thread."""
        self.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.set)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's raises the signal again at the end, which would kill the process before it has
        tidied up; and a handler set with `signal` alone does not wake the loop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop}
        if self._reload is not None:
            handlers[signal.SIGHUP] = self._reload
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _private(data_dir: Path) -> Iterator[None]:
    with datadir.private():
        datadir.check(data_dir, serving=True)
        yield


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(data_dir / "lock", flags, 0o600)
    try:
        _lock(fd, data_dir)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, data_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"another server is running on {data_dir}; stop it, or use other data"
        raise AlreadyServed(message) from None
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
