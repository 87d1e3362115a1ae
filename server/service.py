"""Everything one server process holds, and which thread does what.

Knows: the parts and how they are put together. Must not know: HTTP messages.

Threads: the event loop never touches SQLite or a disk's queue. `reads` answers questions from
snapshots; `writes` is a single thread, so write transactions wait in its queue and not for a lock;
`passwords` bounds the memory that Argon2 takes; `files` moves stored objects.

Arrivals: a stored object is announced to `arrived`, which queues it and makes sure that one flush
is on its way through `writes`. All that gather while earlier transactions run share one commit. A
batch that needs the chunk and was sent after its PUT was answered is behind that flush in the same
queue; what a crash forgot in between, `apply` asks the blob store for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from remote.content import Descriptor
from remote.errors import AnyProblem, Refused, Unauthorized
from remote.wire import Applied, Keyed, PresignedPut
from server import arrivals, commits, tokens
from server.accounts import Caller
from server.arrivals import Arrival
from server.blobs import BlobKey, Head, LocalBlobStore
from server.db import Database
from server.fanout import LocalFanout
from server.feed import Cursors
from server.gauges import Gauges
from server.keys import load_keys
from server.known import KnownCallers
from server.limits import Places, TokenBuckets
from server.links_signing import LinkSigner
from server.metrics import Metrics
from server.pools import Pool
from server.settings import Settings
from server.signer import UrlSigner

log = structlog.get_logger("nearline.server")

T = TypeVar("T")


class Service:
    """The parts of a running server. Make it once, `start` it on the loop, `close` it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.db = Database(settings.database)
        self.db.migrate()
        keys = load_keys(settings.keys)
        self.blobs = LocalBlobStore(settings.blobs)
        self.blobs.sweep()
        self.signer = UrlSigner(keys, settings)
        self.links = LinkSigner(keys, settings)
        self.cursors = Cursors(keys.cursor)
        self.fanout = LocalFanout()
        self.metrics = Metrics()
        tunables = settings.tunables
        self.login_tries = TokenBuckets(tunables.login_burst, tunables.login_seconds_per_try)
        self.login_failures = TokenBuckets(1, 60)  # audit rows, per address and name
        self.login_failures_from = TokenBuckets(60, 60)  # audit rows, per address
        self.known = KnownCallers()
        self.sockets = Places(tunables.connections, tunables.sockets_per_account)
        self._seen = tokens.SeenThisHour()
        self.upload_ns = tunables.upload_days * 86_400 * 10**9
        self.reads = Pool(4, "read")
        self.writes = Pool(1, "write")
        self.passwords = Pool(2, "password")
        self.files = Pool(8, "file")
        pools = {"read": self.reads, "write": self.writes, "password": self.passwords}
        queues = pools | {"file": self.files}
        self.metrics.registry.register(Gauges(self.db, queues, lambda: self.waiting_arrivals))
        self._arrivals: list[Arrival] = []
        self._flush_queued = False
        self._arrivals_lock = threading.Lock()  # guards the two above

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fanout.attach(loop)

    def stop_waiting(self) -> None:
        """Let long polls and sockets end, so that the process can."""
        self.fanout.close()

    def close(self) -> None:
        """Wait for what was begun, then let go of everything."""
        self.fanout.close()
        for pool in (self.files, self.reads, self.writes, self.passwords):
            pool.shutdown(wait=True, cancel_futures=pool is not self.writes)
        self.db.close()

    # --- transactions on behalf of a caller ---

    async def read(self, token: str | None, work: Callable[[Connection, Caller], T]) -> T:
        """Authenticate and run `work` in one snapshot, off the loop."""

        def job() -> T:
            now_ns = time.time_ns()
            with self.db.read() as conn:
                caller = self._authenticate(conn, token, now_ns)
                done = work(conn, caller)
            if self._seen.is_first(caller.device, now_ns):
                self.writes.submit(self._mark_seen, caller.device, now_ns)
            return done

        return await asyncio.get_running_loop().run_in_executor(self.reads, job)

    async def write(self, token: str | None, work: Callable[[Connection, Caller], T]) -> T:
        """Authenticate and run `work` in one write transaction, off the loop."""

        def job() -> T:
            now_ns = time.time_ns()
            with self.db.write() as conn:
                caller = self._authenticate(conn, token, now_ns)
                done = work(conn, caller)
                if self._seen.is_first(caller.device, now_ns):
                    tokens.mark_seen(conn, caller.device, now_ns)
            return done

        return await asyncio.get_running_loop().run_in_executor(self.writes, job)

    async def apply(self, token: str | None, ops: Sequence[Keyed]) -> list[Applied | AnyProblem]:
        """Commit a batch and publish its news. Raises `Refused(Unauthorized)`."""

        def job() -> list[Applied | AnyProblem]:
            self._flush()
            self._settle(token, ops)
            now_ns = time.time_ns()
            with self.db.write() as conn:
                caller = self._authenticate(conn, token, now_ns)
                results, news = commits.apply(conn, caller, ops, now_ns)
                if self._seen.is_first(caller.device, now_ns):
                    tokens.mark_seen(conn, caller.device, now_ns)
            for each in news:
                self.fanout.publish(each)
            return results

        results = await asyncio.get_running_loop().run_in_executor(self.writes, job)
        for keyed, result in zip(ops, results, strict=True):
            answer = "applied" if isinstance(result, Applied) else type(result).__name__
            self.metrics.operations.labels(type(keyed.op).__name__, answer).inc()
        return results

    def _authenticate(self, conn: Connection, token: str | None, now_ns: int) -> Caller:
        try:
            caller = tokens.authenticate(conn, token, now_ns)
        except Refused:
            self.known.forget(token)
            raise
        self.known.note(token, caller)
        return caller

    @property
    def waiting_arrivals(self) -> int:
        """Stored objects that no transaction has taken note of yet."""
        with self._arrivals_lock:
            return len(self._arrivals)

    def _mark_seen(self, device: str, now_ns: int) -> None:
        with self.db.write() as conn:
            tokens.mark_seen(conn, device, now_ns)

    def put_url(self, drive: str, descriptor: Descriptor) -> PresignedPut:
        return self.signer.put(drive, descriptor, time.time_ns())

    # --- chunks arriving ---

    def arrived(self, key: BlobKey, head: Head) -> None:
        """A stored object is durable. From any thread; returns at once."""
        with self._arrivals_lock:
            self._arrivals.append(Arrival(key, head))
            if self._flush_queued:
                return
            self._flush_queued = True
        self.writes.submit(self._flush).add_done_callback(_report)

    def _settle(self, token: str | None, ops: Sequence[Keyed]) -> None:
        """Mark the chunks that `ops` need and that are stored, although no event said so."""
        if all(getattr(keyed.op, "content", None) is None for keyed in ops):
            return
        with self.db.read() as conn:
            tokens.authenticate(conn, token, time.time_ns())
            keys = arrivals.unsettled(conn, ops)
        for key in keys:
            head = self.blobs.head(key)
            if head is not None:
                log.info("chunk_found_without_event", chunk=key.chunk.hex())
                self.arrived(key, head)
        if keys:
            self._flush()

    def _flush(self) -> None:
        with self._arrivals_lock:
            waiting, self._arrivals = self._arrivals, []
            self._flush_queued = False
        if waiting:
            with self.db.write() as conn:
                arrivals.arrived(conn, waiting, time.time_ns())


def token_of(authorization: str | None) -> str | None:
    """The bearer token of an Authorization header's value."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def check_present(token: str | None) -> None:
    """Cheap refusal before a body is read. Raises `Refused(Unauthorized)`."""
    if not token:
        raise Refused(Unauthorized(message="send an Authorization: Bearer header; log in first"))


def _report(done: Future[None]) -> None:
    error = done.exception() if not done.cancelled() else None
    if error is not None:
        log.error("arrivals_not_recorded", error=repr(error), exc_info=error)
