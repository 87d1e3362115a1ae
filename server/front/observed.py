"""One request from its arrival to its log line.

Knows: request ids, the access log, request metrics, in what order a request passes the guard and
is routed. Must not know: any endpoint, why the guard turns something away.

Every answer carries `X-Request-Id`: the caller's own if it is well formed, else a new one. Logged
paths have no query: signatures and cursors stay out of the log. What rates turn away is counted and
not logged, so that a flood is not one of the log too.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from remote.errors import RateLimited
from server.front.answers import Message, Send, header, refuse
from server.front.guard import Guard, Receive, patient
from server.front.proxies import client_of
from server.service import Service, token_of

Route = Callable[[Any, Receive, Send], Awaitable[str]]
"""Answers one connection; returns the route's name for the metrics."""

log = structlog.get_logger("nearline.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_LINK = "/s/"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/blobs", "/chunks"})
"""Routes whose good answers are counted but not logged."""
_LASTING = frozenset({"/v1/changes/wait", "/v1/changes/live", "/blobs", "/chunks", "/content"})
"""Routes that take as long as there is nothing to tell, or as the client's network needs."""
_UNTIMED = ("/blobs/", "/chunks/", "/content/")
"""Paths whose handlers look after slow bodies themselves."""


class Observed:
    """One request. `run` it once."""

    def __init__(self, service: Service, guard: Guard, scope: Any, send: Send) -> None:
        self._service, self._guard, self._scope, self._forward = service, guard, scope, send
        self._id = _request_id(scope)
        self._status = 0
        self._is_flood = False

    async def run(self, route: Route, receive: Receive) -> None:
        began = time.perf_counter()
        name = "unknown"
        try:
            name = await self._answer(route, receive)
        finally:
            self._note(name, time.perf_counter() - began)

    async def _answer(self, route: Route, receive: Receive) -> str:
        scope = self._scope
        turned = await self._guard.admit(scope)
        if turned is not None:
            self._is_flood = isinstance(turned.problem, RateLimited)
            problem, status, close = turned
            await refuse(scope, self._send, problem, status=status, close=close)
            return "turned away"
        if scope["type"] == "http" and not scope["path"].startswith(_UNTIMED):
            receive = patient(receive, self._service.settings.tunables.body_seconds)
        return await route(scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self._status = message["status"]
            given = [*message.get("headers", ()), (b"x-request-id", self._id)]
            message["headers"] = self._guard.secured(given)
        elif message["type"] == "websocket.accept":
            self._status = 101
        await self._forward(message)

    def _note(self, route: str, seconds: float) -> None:
        method = self._scope.get("method", "WS")
        metrics = self._service.metrics
        metrics.requests.labels(method, route, str(self._status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self._is_flood or (route in _QUIET and 200 <= self._status < 400):
            return
        slow = seconds > self._service.settings.tunables.slow_seconds and route not in _LASTING
        (log.warning if slow else log.info)(
            "slow_request" if slow else "request",
            id=self._id.decode(),
            method=method,
            path=_shown(self._scope["path"]),
            status=self._status,
            ms=round(seconds * 1000, 1),
            address=client_of(self._scope),
            **self._who(),
        )

    def _who(self) -> dict[str, str]:
        """Account and device, by their ids; nothing for who has no good token."""
        authorization = header(self._scope, b"authorization").decode("latin-1")
        known = self._service.known.of(token_of(authorization))
        return {} if known is None else known._asdict()


def _shown(path: str) -> str:
    """A path for the log: the secret of a link is in its URL, so nothing of that is written."""
    return "/s/[link]" if path.startswith(_LINK) else path


def _request_id(scope: Any) -> bytes:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
