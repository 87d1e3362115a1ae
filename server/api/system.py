"""Health, readiness, metrics and the schema: for operators and tools, without a token."""

from __future__ import annotations

import asyncio

from litestar import Response, get
from sqlalchemy import text

from server.api import openapi
from server.api.exchange import JSON, AnyRequest, Reply, service_of


@get("/healthz")
async def healthz() -> Reply:
    """The process answers."""
    return Response(b"ok\n", media_type="text/plain")


@get("/readyz")
async def readyz(request: AnyRequest) -> Reply:
    """The database answers too."""
    service = service_of(request)

    def ask() -> None:
        with service.db.read() as conn:
            conn.execute(text("SELECT 1"))

    await asyncio.get_running_loop().run_in_executor(service.reads, ask)
    return Response(b"ready\n", media_type="text/plain")


@get("/metrics")
async def metrics(request: AnyRequest) -> Reply:
    shown = service_of(request).metrics.text()
    return Response(shown, media_type="text/plain; version=0.0.4; charset=utf-8")


@get(["/schema", "/schema/openapi.json"])
async def schema() -> Reply:
    return Response(openapi.document(), media_type=JSON)
