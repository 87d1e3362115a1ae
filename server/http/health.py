"""Whether the server is fit to be sent requests.

Knows: what has to work. Must not know: HTTP. What is asked here waits for disks and for the write
thread: never on the event loop.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.metadata.db import HEAD, Database
from server.settings import Settings
from server.storage.blobs import INCOMING

log = structlog.get_logger("nearline.server")


def of_database(db: Database) -> str | None:
    """What is wrong with the database; None: nothing. To be asked on the write thread."""

    def ask() -> str | None:
        revision = db.revision()
        if revision != HEAD:
            return f"is of schema {revision}, not {HEAD}: restart the server"
        with db.write():  # takes the write lock; fails on a read-only file or file system
            return None

    return _said("the database", ask)


def of_files(settings: Settings) -> str | None:
    """What is wrong with the place where objects are stored; None: nothing."""

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
