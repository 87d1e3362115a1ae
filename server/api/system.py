"""Health, readiness, metrics and the schema: for operators and tools, without a device's token."""

from __future__ import annotations

import asyncio
import hmac

import msgspec
from litestar import Response, get

from remote.protocol.errors import Refused, Unauthorized
from server.api import openapi
from server.api.exchange import AnyRequest, Reply, service_of, token_in
from server.http import health
from server.http.problems import JSON
from server.service import Service

READY_SECONDS = 5.0
"""How long the write thread may have other things to do before the server is not ready."""


@get("/healthz")
async def healthz() -> Reply:
    """The process answers."""
    return _told([])


@get("/readyz")
async def readyz(request: AnyRequest) -> Reply:
    """Requests can be answered: the database and the blob directory can be written, the schema is
    the newest, and there is room on the disk. 503, and why, if not."""
    return _told(await _looked_into(request))


async def _looked_into(request: AnyRequest) -> list[str]:
    """Anybody may ask, without a limit; however many do at a time, it is looked into once."""
    state = request.app.state
    look: asyncio.Task[list[str]] | None = state.get("look")
    if look is None or look.done():
        look = state["look"] = asyncio.create_task(_wrong(service_of(request)))
    return await asyncio.shield(look)


async def _wrong(service: Service) -> list[str]:
    loop = asyncio.get_running_loop()
    asked = (
        loop.run_in_executor(service.writes, health.of_database, service.db),
        loop.run_in_executor(service.files, health.of_files, service.settings),
    )
    try:
        async with asyncio.timeout(READY_SECONDS):
            return [each for each in await asyncio.gather(*asked) if each is not None]
    except TimeoutError:
        return [f"the database or the disk did not answer within {READY_SECONDS:g} s"]


def _told(wrong: list[str]) -> Reply:
    body = msgspec.json.encode({"ok": not wrong, "problems": wrong})
    return Response(body, media_type=JSON, status_code=503 if wrong else 200)


@get("/metrics")
async def metrics(request: AnyRequest) -> Reply:
    _check_operator(request)
    service = service_of(request)
    loop = asyncio.get_running_loop()
    shown = await loop.run_in_executor(service.reads, service.metrics.text)
    return Response(shown, media_type="text/plain; version=0.0.4; charset=utf-8")


@get(["/schema", "/schema/openapi.json"])
async def schema(request: AnyRequest) -> Reply:
    _check_operator(request)
    return Response(openapi.document(), media_type=JSON)


def _check_operator(request: AnyRequest) -> None:
    """Raise `Refused(Unauthorized)` unless this is the bearer of `metrics_token`, if there is
    one."""
    wanted = service_of(request).settings.tunables.metrics_token
    given = token_in(request) or ""
    if wanted is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Refused(Unauthorized(message="send the metrics_token of the server's configuration"))
