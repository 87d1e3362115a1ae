"""The server collects its garbage by itself, gently.

Knows: when a collection is due, and how to leave the server to its clients meanwhile. Must not
know: what is collected (`gc`).

Concurrency: `start` and `close` on the event loop's side; a run has a thread of its own. Its write
transactions are short and take their turn at the database's lock between those of requests; after
each step it rests for `REST` times as long as the step took, and `close` ends both rest and run.
While somebody else holds the collectors' lock (`lock`) a run is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog
from prometheus_client import Counter, Gauge

from server.durable import write_private
from server.maintenance import gc, lock
from server.maintenance.gc_chunks import Collected, Options
from server.metadata.db import Database
from server.metrics import Metrics
from server.settings import Settings, Tunables
from server.storage.blobs import BlobStore

# A server that has just started has other things to do.
FIRST_SECONDS = 300.0
REST = 4.0
# How often the blob store is listed for objects without a row, which costs the most.
LIST_SECONDS = 86_400.0

log = structlog.get_logger("nearline.server")


class _Told(Exception):
    """The server ends."""


class Janitor:
    """Collects garbage every `collect_seconds` from `start` until `close`; `tell` takes the news of
    what that ended to those who listen, from any thread."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        blobs: BlobStore,
        metrics: Metrics,
        tell: gc.Tell,
    ) -> None:
        self._data, self._tunables = settings.data_dir, settings.tunables
        self._db, self._blobs, self._tell = db, blobs, tell
        self._thread = ThreadPoolExecutor(1, "janitor")
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listed: float | None = None
        self._stepped = 0.0
        self._deleted = Counter(
            "nearline_collected_bytes_total",
            "Bytes of stored objects that garbage collection deleted",
            registry=metrics.registry,
        )
        self._finished = Gauge(
            "nearline_collected_timestamp_seconds",
            "When garbage collection last came to its end",
            registry=metrics.registry,
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remember the settings that decide what is kept, and begin. On the loop."""
        remember(self._data, self._tunables)
        self._loop = loop
        if self._tunables.collect_seconds:
            self._later(min(FIRST_SECONDS, self._tunables.collect_seconds))

    def close(self) -> None:
        """Stop between two steps, and wait for that. From any thread but the loop's."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def collect(self) -> Collected | None:
        """Run once, in this thread. None: somebody else collects, or the server ends."""
        begun = time.monotonic()
        listing = self._listed is None or begun - self._listed >= LIST_SECONDS
        options = msgspec.structs.replace(options_of(self._tunables), orphans=listing)
        self._stepped = begun
        with contextlib.suppress(_Told, lock.Collecting), lock.collecting(self._data):
            found = gc.run(self._db, self._blobs, options, self._rest, tell=self._tell)
            self._listed = begun if listing else self._listed
            self._deleted.inc(found.deleted_bytes + found.promised_bytes + found.orphans_bytes)
            self._finished.set_to_current_time()
            if not found.is_nothing():
                log.info("garbage_collected", **msgspec.structs.asdict(found))
            return found
        return None

    def _rest(self, _found: Collected) -> None:
        """Leave the machine to others for a while. Raises `_Told` when the server ends."""
        if self._closing.wait(REST * (time.monotonic() - self._stepped)):
            raise _Told
        self._stepped = time.monotonic()

    def _later(self, seconds: float) -> None:
        if self._loop is not None and not self._closing.is_set():
            self._loop.call_later(seconds, self._begin)

    def _begin(self) -> None:
        with contextlib.suppress(RuntimeError):  # closed: there are no more runs
            self._thread.submit(self.collect).add_done_callback(self._ended)

    def _ended(self, run: Future[Collected | None]) -> None:
        """In the janitor's thread. A run that failed is tried again when the next is due."""
        error = None if run.cancelled() else run.exception()
        if error is not None:
            log.error("garbage_collection_failed", error=repr(error), exc_info=error)
        if self._loop is not None and not self._closing.is_set():
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._later, self._tunables.collect_seconds)


# --- what is kept, also when an administrator collects ------------------------------------------


def options_of(tunables: Tunables) -> Options:
    """The retention that these settings ask for."""
    return Options(keep_days=tunables.keep_days, keep_versions=tunables.keep_versions)


class _Kept(msgspec.Struct):
    keep_days: int
    keep_versions: int


def remember(data_dir: Path, tunables: Tunables) -> None:
    """Write down what the server was told to keep: `admin gc` may be run without its settings, and
    must not keep less."""
    kept = _Kept(tunables.keep_days, tunables.keep_versions)
    write_private(data_dir / "kept.json", msgspec.json.encode(kept))


def remembered(data_dir: Path) -> Options:
    """The retention that the last server on this data was told; else the usual one."""
    try:
        kept = msgspec.json.decode((data_dir / "kept.json").read_bytes(), type=_Kept)
    except FileNotFoundError:
        return options_of(Tunables())
    return Options(keep_days=kept.keep_days, keep_versions=kept.keep_versions)
