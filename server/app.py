"""The ASGI application: bytes go to the edge, everything else to the API.

Knows: dispatch, the application's life. Must not know: any endpoint, what is let in (`admission`),
what is noted of a request (`access_log`).
"""

from __future__ import annotations

import asyncio
from typing import Any

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
from server.api.dispatch import UNKNOWN, Api
from server.api.endpoint import Endpoint
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

_MODULES = (
    session,
    devices,
    files,
    sharing,
    trash,
    links,
    uploads,
    changes,
    live,
    link_pages,
    system,
)
# Whatever these modules declare.
ENDPOINTS = tuple(
    each for module in _MODULES for each in vars(module).values() if isinstance(each, Endpoint)
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
        self.connections = Connections(tunables, service.metrics, service.recent_tokens)
        self._admission = Admission(
            service.settings, service.metrics, service.recent_tokens, service.tries
        )
        self._noting = Noting(service.metrics, service.recent_tokens, tunables)
        self._origins = Origins(tunables.content_url)
        self._content = ContentServer(
            service.library,
            service.links,
            service.metrics,
            service.visits,
            service.downloads,
            tunables.send_seconds,
        )
        self._api = Api(service, ENDPOINTS)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        await LoggedRequest(self._noting, self._admission, scope, send).run(self.route, receive)

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the server's start to its end."""
        loop = asyncio.get_running_loop()
        await receive()
        self.service.start(loop)
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        finally:
            await loop.run_in_executor(None, self.service.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def route(self, scope: Any, receive: Receive, send: Send) -> str:
        """Answer one connection; returns the route's name for the metrics."""
        if self._origins.refuses(scope):
            await refuse(scope, send)
            return UNKNOWN
        if scope["type"] == "http" and scope["path"].startswith(("/blobs/", "/chunks/")):
            await self._edge(scope, receive, send)
            return "/blobs" if scope["path"].startswith("/blobs/") else "/chunks"
        if scope["type"] == "http" and scope["path"].startswith(CONTENT):
            await self._content(scope, receive, send)
            return "/content"
        scope, send = head.as_get(scope, send)
        return await self._api(scope, receive, send)
