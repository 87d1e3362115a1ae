"""The server process: lock, socket, signals, and the end.

Knows: how a server starts and stops. Must not know: what it serves.

Order at start: lock the data directory (a second server on the same data would corrupt nothing, but
would not tell the first one's sockets of its commits), bind the port, so that the public URL is
known, then open the data. `ready` is called, and DATA/server.url written, when requests are
answered. At SIGTERM or SIGINT: no new connections, long polls answered, sockets closed, what was
begun is finished for at most `GRACE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import structlog
import uvicorn

from server.keys import write_private
from server.settings import BadSettings, Settings, read_config

GRACE_SECONDS = 5
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Addresses that mean all, and the one a client on this machine can use instead."""

log = structlog.get_logger("nearline.server")


class AlreadyServed(RuntimeError):
    """Another server runs on this data directory."""


class CannotListen(RuntimeError):
    """The address cannot be had."""


def serve(
    data_dir: Path,
    listen: str = "127.0.0.1:8750",
    public_url: str | None = None,
    config: Path | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve `data_dir` in the foreground until SIGTERM or SIGINT.

    `listen` is HOST:PORT, port 0 for any free one; `public_url` is the origin clients use, by
    default that of the configuration file, else http://HOST:PORT. `ready` gets it as soon as
    requests are answered; until the end it stands in DATA/server.url too.

    Raises `AlreadyServed`, `CannotListen`, `settings.BadSettings`, `db.DataTooNew`, `keys.BadKey`.
    """
    tunables = read_config(config)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(data_dir), _listening(listen) as sock:
        chosen = public_url or tunables.public_url
        url = (chosen or _url_of(sock)).rstrip("/")
        settings = Settings(data_dir, url, tunables)
        _log_to_stderr()
        if chosen is None and sock.getsockname()[0] in _ANY:
            log.warning("no_public_url", url=url, hint="other machines need --public-url")
        from server.app import create_app

        app = create_app(settings)
        announced = data_dir / "server.url"

        def started() -> None:
            write_private(announced, url.encode() + b"\n")
            if ready is not None:
                ready(url)

        options = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ws_per_message_deflate=False,
            ws_max_size=64 * 1024,
        )
        try:
            Server(options, started, app.service.stop_waiting).run(sockets=[sock])
        finally:
            announced.unlink(missing_ok=True)


class Server(uvicorn.Server):
    """uvicorn that says when it is up, lets its waiters go before it stops, stops at once when
    told, and lets the process end normally after a signal.

    `started_callback` is called on the loop when connections are accepted; `stop_waiting` when no
    more are.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        started_callback: Callable[[], None],
        stop_waiting: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._started_callback, self._stop_waiting = started_callback, stop_waiting
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._started_callback()

    async def main_loop(self) -> None:
        """uvicorn's polls ten times a second for the end; this waits for it, and ticks once a
        second for the Date header."""
        counter = 0
        while not await self.on_tick(counter) and not self._told.is_set():
            counter = (counter + 10) % 864_000
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
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


@contextlib.contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise BadSettings(f"cannot listen on {listen!r}: write HOST:PORT, such as 127.0.0.1:8750")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=512)
    except OSError as error:
        raise CannotListen(f"cannot listen on {listen}: {error.strerror or error}") from error
    with sock:
        yield sock


def _url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = _ANY.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def _log_to_stderr() -> None:
    """One JSON object a line on stderr, from structlog and the standard library alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format='{"logger":"%(name)s","event":"%(message)s"}',
    )
    logging.getLogger("uvicorn.error").addFilter(_not_about_handshakes)


def _not_about_handshakes(record: logging.LogRecord) -> bool:
    """uvicorn 0.54 calls it an error when a WebSocket handshake is refused over HTTP, as `api.live`
    does for everybody without a good token; the access log has that already."""
    return "without completing handshake" not in record.getMessage()
