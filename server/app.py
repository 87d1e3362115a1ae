"""The ASGI application: bytes go to the edge, everything else to the API.

Knows: dispatch, the application's life. Must not know: any endpoint, what is let in (`admission`),
what is noted of a request (`access_log`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.datastructures import State

from server.api import (
    changes,
    devices,
    files,
    link_pages,
    links,
    live,
    session,
    sharing,
    system,
    trash,
    uploads,
)
from server.api.exchange import HANDLERS
from server.http import head
from server.http.access_log import LoggedRequest, Noting
from server.http.admission import Admission
from server.http.bodies import Receive
from server.http.connections import Connections
from server.http.problems import Send
from server.links.content_http import ContentServer
from server.links.origin import CONTENT, Origins, refuse
from server.service import Service
from server.settings import Settings
from server.storage.edge import Edge
from server.uploads.put import Intake

ROUTES = (
    session.login,
    session.me,
    session.change_password,
    devices.listed,
    devices.make,
    devices.rotate,
    devices.revoke,
    files.file,
    files.children,
    files.listings,
    files.file_versions,
    files.file_changes,
    files.by_fingerprint,
    files.locate,
    files.locate_several,
    sharing.share,
    sharing.shares,
    sharing.unshare,
    sharing.shared,
    trash.page,
    trash.empty,
    links.make,
    links.of_file,
    links.of_drive,
    links.revoke,
    uploads.start,
    uploads.state,
    uploads.urls,
    uploads.complete,
    uploads.abandon,
    changes.apply,
    changes.changes,
    changes.wait,
    live.live,
    link_pages.top,
    link_pages.below,
    link_pages.download,
    link_pages.archive,
    link_pages.unlock,
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


def _edge_of(service: Service) -> Edge:
    blobs, signer, metrics, threads = service.blobs, service.signer, service.metrics, service.files
    intake = Intake(blobs, signer, service.reception, metrics, threads)
    return Edge(blobs, signer, intake.put, metrics, threads)


class Application:
    """An ASGI 3 callable."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._edge = _edge_of(service)
        tunables = service.settings.tunables
        self.connections = Connections(tunables, service.metrics, service.known)
        self._admission = Admission(service.settings, service.metrics, service.known, service.tries)
        self._noting = Noting(service.metrics, service.known, tunables)
        self._origins = Origins(tunables.content_url)
        self._content = ContentServer(
            service.library,
            service.links,
            service.metrics,
            service.visits,
            service.downloads,
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
        await LoggedRequest(self._noting, self._admission, scope, send).run(self.route, receive)

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
        scope, send = head.as_get(scope, send)
        await self._api(scope, receive, send)  # type: ignore[arg-type]  # untyped ASGI messages
        return str(scope.get("path_template") or "unknown")
