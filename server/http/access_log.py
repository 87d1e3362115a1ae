"""One request from its arrival to its log line.

Knows: request ids, the access log, request metrics, in what order a request is admitted and routed.
Must not know: any endpoint, why something is turned away (`admission`).

Every answer carries `X-Request-Id`: the caller's own if it is well formed, else a new one. Logged
paths have no query: signatures and cursors stay out of the log. What rates turn away, and refusals
beyond their rate, are counted and not logged, so that a flood is not one of the log too. Where no
other rate slows its sender down, such a refusal is one for too many refusals. Whoever is told to
come again later is told so a moment later: else it could ask as fast as it can be refused.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import structlog

from remote.protocol.errors import RULES, RateLimited
from server.addresses import client_of
from server.http import bodies
from server.http.admission import REFUSALS, Admission, is_free
from server.http.bearer import token_of
from server.http.bodies import Receive
from server.http.problems import Message, Send, header, refuse
from server.http.recent_tokens import RecentTokens
from server.http.redaction import shown_path
from server.metrics import Metrics
from server.settings import Tunables

# Answers one connection; returns the route's name for the metrics.
Route = Callable[[Any, Receive, Send], Awaitable[str]]

log = structlog.get_logger("nearline.http")

_sleep = asyncio.sleep
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Paths whose good answers are counted but not logged; so are those of signed objects.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_QUIET_ROUTES = frozenset({"/blobs", "/chunks"})
_TOO_MANY = RULES[RateLimited].status
# Routes that take as long as there is nothing to tell, or as the client's network needs.
_LASTING = frozenset({"/v1/changes/wait", "/v1/changes/live", "/blobs", "/chunks", "/content"})


class Noting(NamedTuple):
    """Where requests are counted, who sends them, and what is slow."""

    metrics: Metrics
    recent_tokens: RecentTokens
    tunables: Tunables


class LoggedRequest:
    """One request. `run` it once."""

    def __init__(self, noting: Noting, admission: Admission, scope: Any, send: Send) -> None:
        self._noting, self._admission, self._scope, self._forward = noting, admission, scope, send
        self._id = _request_id(scope)
        self._status = 0
        self._is_flood = False
        self._is_paced = False
        self._is_over = False

    async def run(self, route: Route, receive: Receive) -> None:
        began = time.perf_counter()
        name = "unknown"
        try:
            name = await self._answer(route, receive)
        finally:
            bodies.give_back(self._scope)
            self._note(name, time.perf_counter() - began)

    async def _answer(self, route: Route, receive: Receive) -> str:
        scope = self._scope
        refusal = await self._admission.admit(scope, receive)
        if refusal is not None:
            self._is_flood = isinstance(refusal.problem, RateLimited)
            problem, status, close = refusal
            await refuse(scope, self._send, problem, status=status, close=close)
            return "turned away"
        self._is_paced = not is_free(scope["path"])
        if scope["type"] == "http":
            receive = bodies.body_of(scope)
        return await route(scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        if self._is_over:
            return
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            instead = self._too_many_refusals(message["status"])
            if instead is not None:
                await refuse(self._scope, self._send, instead, close=True)
                self._is_over = True
                return
            if message["status"] == _TOO_MANY:
                await self._hold_back()
            self._begin(message)
        elif message["type"] == "websocket.accept":
            self._status = 101
        elif _is_last(message) and bodies.unread(self._scope) and not self._is_flood:
            await self._forward({**message, "more_body": True})
            await bodies.body_of(self._scope).drain()
            message = {**message, "body": b""}
        await self._forward(message)

    async def _hold_back(self) -> None:
        bodies.give_back(self._scope)
        await _sleep(self._noting.tunables.refused_seconds)

    def _begin(self, message: Message) -> None:
        self._status = message["status"]
        given = [*message.get("headers", ()), (b"x-request-id", self._id)]
        if bodies.unread(self._scope) and not any(name == b"connection" for name, _ in given):
            given.append((b"connection", b"close"))
        message["headers"] = self._admission.secured(given)

    def _too_many_refusals(self, status: int) -> RateLimited | None:
        """Count an answer if it refuses a stranger something; what to say instead, if anything."""
        if status not in REFUSALS or (self._is_paced and self._who()):
            return None
        problem = self._admission.refusal(self._scope)
        self._is_flood = self._is_flood or problem is not None
        return None if self._is_paced else problem

    def _note(self, route: str, seconds: float) -> None:
        method = self._scope.get("method", "WS")
        metrics = self._noting.metrics
        metrics.requests.labels(method, route, str(self._status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if self._is_flood or (self._is_quiet(route) and 200 <= self._status < 400):
            return
        slow = seconds > self._noting.tunables.slow_seconds and route not in _LASTING
        (log.warning if slow else log.info)(
            "slow_request" if slow else "request",
            id=self._id.decode(),
            method=method,
            path=shown_path(self._scope["path"]),
            status=self._status,
            ms=round(seconds * 1000, 1),
            address=client_of(self._scope),
            **self._who(),
        )

    def _is_quiet(self, route: str) -> bool:
        return route in _QUIET_ROUTES or self._scope["path"] in _QUIET

    def _who(self) -> dict[str, str]:
        """Account and device, by their ids; nothing for who has no good token."""
        authorization = header(self._scope, b"authorization").decode("latin-1")
        holder = self._noting.recent_tokens.of(token_of(authorization))
        return {} if holder is None else holder._asdict()


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _request_id(scope: Any) -> bytes:
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
