"""Tells if the server is fit to be sent requests.

Knows: what has to work. Must not know: HTTP. What is asked of the database and the disk waits for
them and for the write thread: never on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.metadata.db import HEAD, Database
from server.settings import Settings
from server.storage.blobs import INCOMING

log = structlog.get_logger("nearline.server")

# How long the write thread may have other things to do before the server is not ready.
READY_SECONDS = 5.0


class Readiness:
    """Readiness to answer: the database and the blob directory can be written, the schema is the
    newest, and there is room on the disk. Concurrency: the event loop."""

    def __init__(
        self, settings: Settings, database: Database, writes: Executor, files: Executor
    ) -> None:
        self._settings, self._database = settings, database
        self._writes, self._files = writes, files
        self._look: asyncio.Task[list[str]] | None = None

    async def faults(self) -> list[str]:
        """Everything that is wrong. Anybody may ask, without a limit; however many do at a time, it
        is looked into once."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._found())
        return await asyncio.shield(self._look)

    async def _found(self) -> list[str]:
        loop = asyncio.get_running_loop()
        asked = (
            loop.run_in_executor(self._writes, of_database, self._database),
            loop.run_in_executor(self._files, of_files, self._settings),
        )
        try:
            async with asyncio.timeout(READY_SECONDS):
                return [item for item in await asyncio.gather(*asked) if item is not None]
        except TimeoutError:
            return [f"the database or the disk did not answer within {READY_SECONDS:g} s"]


def of_database(db: Database) -> str | None:
    """The fault of the database; None: it has none. To be asked on the write thread."""

    def ask() -> str | None:
        revision = db.revision()
        if revision != HEAD:
            return f"is of schema {revision}, not {HEAD}: restart the server"
        with db.write():  # takes the write lock; fails on a read-only file or file system
            return None

    return _said("the database", ask)


def of_files(settings: Settings) -> str | None:
    """The fault of the place where objects are stored; None: it has none."""

    def ask() -> str | None:
        with tempfile.NamedTemporaryFile(dir=settings.blobs / INCOMING) as probe:
            probe.write(b"probe")
            probe.flush()
            os.fdatasync(probe.fileno())
        free, least = shutil.disk_usage(settings.data_dir).free, settings.tunables.min_free_bytes
        return f"has {free} bytes free, less than min_free_bytes {least}" if free < least else None

    return _said("the data directory", ask)


def _said(what: str, ask: Callable[[], str | None]) -> str | None:
    """The answer of `ask` in words. The error itself is for the log: health is told to anybody."""
    try:
        wrong = ask()
    except (OSError, SQLAlchemyError) as error:
        log.error("unfit", what=what, error=str(getattr(error, "orig", error)))
        return f"{what} cannot be written: the server's log says why"
    return None if wrong is None else f"{what} {wrong}"
