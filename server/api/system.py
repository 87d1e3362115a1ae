"""Health, readiness, metrics and the schema: for operators and tools, without a device's token."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence

import msgspec

from remote.protocol.errors import Refused, Unauthorized
from server.api import openapi
from server.api.endpoint import get
from server.api.exchange import Request, Response
from server.http.problems import JSON


@get("/healthz")
async def healthz(request: Request) -> Response:
    """The process answers."""
    return _told([])


@get("/readyz")
async def readyz(request: Request) -> Response:
    """Requests can be answered (`health`). 503, and why, if not."""
    return _told(await request.service.readiness.faults())


def _told(faults: Sequence[str]) -> Response:
    body = msgspec.json.encode({"ok": not faults, "problems": faults})
    return Response(body, JSON, 503 if faults else 200)


@get("/metrics")
async def metrics(request: Request) -> Response:
    _check_operator(request)
    service, loop = request.service, asyncio.get_running_loop()
    shown = await loop.run_in_executor(service.reads, service.metrics.text)
    return Response(shown, "text/plain; version=0.0.4; charset=utf-8")


@get("/schema")
async def schema(request: Request) -> Response:
    return _document(request)


@get("/schema/openapi.json")
async def schema_file(request: Request) -> Response:
    return _document(request)


def _document(request: Request) -> Response:
    _check_operator(request)
    return Response(openapi.document(request.endpoints), JSON)


def _check_operator(request: Request) -> None:
    """Raise `Refused(Unauthorized)` unless this is the bearer of `metrics_token`, if there is
    one."""
    wanted = request.service.settings.tunables.metrics_token
    given = request.token or ""
    if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Refused(Unauthorized(message="send the metrics_token of the server's configuration"))
