"""The ASGI application: bytes go to the edge, everything else to the API.

Knows: dispatch, request ids, access log, request metrics, the application's life. Must not know:
any endpoint, what is let in (`guard`).

Every answer carries `X-Request-Id`: the caller's own if it is well formed, else a new one. Logged
URLs have no query: signatures and cursors stay out of the log.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar
from litestar.datastructures import State

from server.api import changes, devices, files, live, session, sharing, system, uploads
from server.api.exchange import HANDLERS
from server.documents import Library
from server.documents_http import ContentServer
from server.documents_origin import CONTENT, Origins, refuse
from server.answers import Message, Send, refuse
from server.connections import Connections
from server.edge import Edge
from server.guard import Guard, Receive, TooSlow, Turned, patient
from server.proxies import client_of
from server.service import Service, token_of
from server.settings import Settings

log = structlog.get_logger("nearline.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_LINK = re.compile(r"/+s/")
_QUIET = ("/healthz", "/readyz", "/metrics", "/blobs", "/chunks")
"""Routes whose good answers are counted but not logged."""

ROUTES = (
    session.login,
    session.me,
    devices.listed,
    devices.make,
    devices.rotate,
    devices.revoke,
    files.file,
    files.children,
    files.file_versions,
    files.file_changes,
    files.by_fingerprint,
    files.locate,
    sharing.share,
    sharing.shares,
    sharing.unshare,
    sharing.shared,
    uploads.start,
    uploads.state,
    uploads.urls,
    uploads.complete,
    uploads.abandon,
    changes.apply,
    changes.changes,
    changes.wait,
    live.live,
    system.healthz,
    system.readyz,
    system.metrics,
    system.schema,
)


def create_app(settings: Settings) -> Application:
    """The application over the data directory of `settings`, which it opens at once.

    Raises `db.DataTooNew` or `keys.BadKey`. One process at a time: see `main`.
    """
    return Application(Service(settings))


class Application:
    """An ASGI 3 callable."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._edge = Edge(
            service.blobs, service.signer, service.arrived, service.metrics, service.files
        )
        tunables = service.settings.tunables
        self._origins = Origins(tunables.content_url)
        self._content = ContentServer(
            Library(service.db.read, service.blobs),
            service.links,
            service.metrics,
            service.reads,
            service.files,
            tunables.send_seconds,
        )
        self._api = Litestar(
            ROUTES,
            state=State({"service": service}),
            exception_handlers=HANDLERS,
            openapi_config=None,
            logging_config=None,
            lifespan=[self._life],
            request_max_body_size=tunables.body_limit,
        )

    @asynccontextmanager
    async def _life(self, _app: Litestar) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self.service.start(loop)
        try:
            yield
        finally:
            await loop.run_in_executor(None, self.service.close)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)  # type: ignore[arg-type]  # untyped ASGI messages
            return
        await _Observed(self, scope, send).run(receive)

    async def route(self, scope: Any, receive: Receive, send: Send) -> str:
        """Answer one connection; returns the route's name for the metrics."""
        if self._origins.refuses(scope):
            await refuse(scope, send)
            return "unknown"
        if scope["type"] == "http" and scope["path"].startswith(("/blobs/", "/chunks/")):
            await self._edge(scope, receive, send)
            return "/blobs" if scope["path"].startswith("/blobs/") else "/chunks"
        if scope["type"] == "http" and scope["path"].startswith(CONTENT):
            await self._content(scope, receive, send)
            return "/content"
        await self._api(scope, receive, send)  # type: ignore[arg-type]  # untyped ASGI messages
        return str(scope.get("path_template") or "unknown")


class _Observed:
    """One request with its id, its log line and its place in the metrics."""

    def __init__(self, app: Application, scope: Any, send: Send) -> None:
        self._app, self._scope, self._forward = app, scope, send
        self._id = _request_id(scope)
        self._status = 0

    async def run(self, receive: Receive) -> None:
        began = time.perf_counter()
        route = "unknown"
        try:
            route = await self._app.route(self._scope, receive, self._send)
        finally:
            self._note(route, time.perf_counter() - began)

    async def _send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        elif message["type"] == "websocket.accept":
            self._status = 101
        await self._forward(message)

    def _note(self, route: str, seconds: float) -> None:
        method = self._scope.get("method", "WS")
        metrics = self._app.service.metrics
        metrics.requests.labels(method, route, str(self._status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if route in _QUIET and 200 <= self._status < 400:
            return
        log.info(
            "request",
            id=self._id.decode(),
            method=method,
            path=_shown(self._scope["path"]),
            status=self._status,
            ms=round(seconds * 1000, 1),
        )


def _shown(path: str) -> str:
    """A path for the log: the secret of a link is in its URL, so nothing of that is written."""
    return "/s/[link]" if _LINK.match(path) else path


def _request_id(scope: Any) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(8).encode()
