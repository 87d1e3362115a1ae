"""Everything one server process holds, and which thread does what.

Knows: the parts and how they are put together. Must not know: HTTP messages.

Threads: the event loop never touches SQLite or a disk's queue. `reads` answers questions from
snapshots; `writes` is a single thread, so write transactions wait in its queue and not for a lock;
`passwords` bounds the memory that Argon2 takes; `files` moves stored objects.

What is stored is noted and verified by `reception`, which shares these threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection

from remote.content import Descriptor
from remote.errors import AnyProblem, Refused, Unauthorized, Unavailable
from remote.wire import Applied, Keyed, PresignedPut
from server.changes.fanout import LocalFanout
from server.changes.feed import Cursors
from server.drive import commits
from server.front.known import KnownCallers
from server.front.limits import Places, TokenBuckets
from server.gauges import Gauges
from server.metadata.db import Database
from server.metrics import Metrics
from server.people import tokens
from server.people.caller import Caller
from server.pools import Pool
from server.public.links_signing import LinkSigner
from server.settings import Settings
from server.storage.blobs import BlobKey, LocalBlobStore
from server.storage.keys import load_keys
from server.storage.quota import Budget
from server.storage.reception import Reception
from server.storage.signer import UrlSigner
from server.storage.uploads import Terms
from server.upkeep.janitor import Janitor

log = structlog.get_logger("nearline.server")

T = TypeVar("T")


DOUBTS = 5
"""How often a batch looks into chunks that became doubtful meanwhile."""


class _Doubt(NamedTuple):
    """Chunks to look into before a batch can be applied."""

    keys: list[BlobKey]


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
        self.login_tries_from = TokenBuckets(
            10 * tunables.login_burst, tunables.login_seconds_per_try / 10
        )
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
        self.reception = Reception(
            self.db, self.blobs, self.reads, self.writes, self.files, self.metrics
        )
        self.metrics.registry.register(Gauges(self.db, queues, self.reception))
        self.janitor = Janitor(settings, self.db, self.blobs, self.metrics, self.fanout.publish)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fanout.attach(loop)
        self.janitor.start(loop)

    def stop_waiting(self) -> None:
        """Let long polls and sockets end, so that the process can."""
        self.fanout.close()

    def close(self) -> None:
        """Wait for what was begun, then let go of everything."""
        self.fanout.close()
        self.janitor.close()
        self.reception.close()
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
                marked = self.writes.submit(self._mark_seen, caller.device, now_ns)
                marked.add_done_callback(_report)
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
        """Commit a batch and publish its news.

        Raises `Refused` with Unauthorized, or with Unavailable when chunks of other devices that it
        refers to cannot be verified now.
        """

        def who(conn: Connection) -> Caller:
            return self._authenticate(conn, token, time.time_ns())

        def job() -> list[Applied | AnyProblem] | _Doubt:
            self.reception.flush()
            doubtful = self.reception.settle(ops, who)
            if doubtful:
                return _Doubt(doubtful)
            now_ns = time.time_ns()
            with self.db.write() as conn:
                caller = self._authenticate(conn, token, now_ns)
                results, news = commits.apply(conn, caller, ops, now_ns)
                if self._seen.is_first(caller.device, now_ns):
                    tokens.mark_seen(conn, caller.device, now_ns)
            for each in news:
                self.fanout.publish(each)
            return results

        results = await self._without_doubt(job)
        for keyed, result in zip(ops, results, strict=True):
            answer = "applied" if isinstance(result, Applied) else type(result).__name__
            self.metrics.operations.labels(type(keyed.op).__name__, answer).inc()
        return results

    async def _without_doubt(self, job: Callable[[], T | _Doubt]) -> T:
        """Run `job` in the write thread, again after each time it named chunks to look into."""
        loop = asyncio.get_running_loop()
        for _ in range(DOUBTS):
            done = await loop.run_in_executor(self.writes, job)
            if not isinstance(done, _Doubt):
                return done
            await self.reception.look_into(done.keys)
        raise Refused(Unavailable(message="the server is still verifying what is referred to"))

    def _authenticate(self, conn: Connection, token: str | None, now_ns: int) -> Caller:
        try:
            caller = tokens.authenticate(conn, token, now_ns)
        except Refused:
            self.known.forget(token)
            raise
        self.known.note(token, caller)
        return caller

    def _mark_seen(self, device: str, now_ns: int) -> None:
        with self.db.write() as conn:
            tokens.mark_seen(conn, device, now_ns)

    def terms(self, conn: Connection, caller: Caller) -> Terms:
        """How uploads are leased in the write transaction of `conn`."""
        budget = Budget(conn, caller, self.settings.tunables.pending_limit_bytes)
        return Terms(self.upload_ns, budget, self._put_url)

    def _put_url(self, drive: str, descriptor: Descriptor, proof: str | None) -> PresignedPut:
        return self.signer.put(drive, descriptor, time.time_ns(), proof)


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
        log.error("device_not_marked_seen", error=repr(error), exc_info=error)
