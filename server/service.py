"""Everything one server process holds, and which thread does what.

Knows: the parts and how they are put together. Must not know: HTTP messages.

Threads: the event loop never touches SQLite or a disk's queue. `reads` answers questions from
snapshots; `writes` is a single thread, so write transactions wait in its queue and not for a lock.
In both queues accounts take turns by the time that they have had (`fair_queue`), so that nobody
waits for all that somebody else asks; whose a job is, is known before it is queued, and asked again
inside its transaction. `passwords`, behind the `desk`, bounds the memory that Argon2 takes; `files`
moves stored objects. Whoever visits a link has threads of their own: `visits` answers their
questions and `downloads` puts their content together, so that no account waits behind visitors.

What is stored is noted and verified by `reception`, which shares these threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence, Set
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection

from remote.protocol.content import Descriptor
from remote.protocol.errors import AnyProblem, Refused, Unavailable
from remote.protocol.messages import Applied, Keyed, PresignedPut
from server.accounts import tokens
from server.changes.fanout import LocalFanout, News, account_topic
from server.changes.feed import Cursors
from server.changes.nesting import Nesting
from server.drive import commits, sharing
from server.gauges import Gauges
from server.http import password_queue
from server.http.health import Readiness
from server.http.password_tries import PasswordTries
from server.http.rate_limits import Places, TokenBuckets
from server.http.recent_tokens import RecentTokens
from server.links import tree
from server.links.content import Library
from server.links.signing import LinkSigner
from server.maintenance.admin_watch import Beside
from server.maintenance.janitor import Janitor
from server.metadata.db import Database
from server.metrics import Metrics
from server.permissions.caller import Caller
from server.pools import STRANGERS, FairPool, Pool
from server.settings import Settings
from server.storage.blobs import BlobKey, Head, LocalBlobStore
from server.storage.keys import load_keys
from server.storage.signer import UrlSigner
from server.uploads.copies import Copies
from server.uploads.quota import Budget, Limits
from server.uploads.reception import Reception
from server.uploads.sessions import Terms

log = structlog.get_logger("nearline.server")

T = TypeVar("T")


# How often a batch looks into chunks that became doubtful meanwhile.
DOUBTS = 5


# How long a batch may go on while others wait. They wait for it once, and then for one of each
# account that asks for much.
SHARED_SECONDS = 0.02


class _Doubt(NamedTuple):
    """Chunks to look into before a batch can be applied."""

    keys: list[BlobKey]


class _Unreported(NamedTuple):
    """Chunks that nobody has said are stored, to be sought before a batch can be applied."""

    keys: list[BlobKey]


class _Rotated:
    """The caller with a token that had been rotated and not been used yet."""

    caller: Caller | None = None

    def note(self, caller: Caller) -> None:
        if caller.is_rotated:
            self.caller = caller


class Service:
    """The parts of a running server. Make it once, `start` it on the loop, `close` it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.db = Database(settings.database)
        self.db.migrate()
        keys = load_keys(settings.keys, int(time.time()))
        self.blobs = LocalBlobStore(settings.blobs)
        self.blobs.sweep()
        self.signer = UrlSigner(keys, settings)
        self.links = LinkSigner(keys, settings)
        self.cursors = Cursors(keys.cursor, keys.past_cursors)
        self.fanout = LocalFanout()
        self.metrics = Metrics()
        tunables = settings.tunables
        self.tries = PasswordTries(tunables)
        self.locked_links = TokenBuckets(30, 2)  # links made with a password, per account
        self.login_failures = TokenBuckets(1, 60)  # audit rows, per address and name
        self.login_failures_from = TokenBuckets(60, 60)  # audit rows, per address
        misses = (tunables.share_miss_burst, tunables.share_miss_seconds)
        self.share_misses = TokenBuckets(*misses)  # names that are no account's, per account
        self.share_pace = sharing.Pace(tunables.stranger_burst, tunables.stranger_seconds)
        self.recent_tokens = RecentTokens()
        self.library = Library(self.db.read, self.blobs)
        self.counts = tree.Counts()
        self.nesting = Nesting()
        self.sockets = Places(tunables.connections, tunables.sockets_per_account)
        self._seen = tokens.SeenThisHour()
        self.upload_ns = tunables.upload_days * 86_400 * 10**9
        self.reads = FairPool(4, "read")
        self.writes = FairPool(1, "write")
        self.passwords = Pool(password_queue.THREADS, "password")
        self.desk = password_queue.Desk(self.passwords)
        self.files = Pool(8, "file")
        self.readiness = Readiness(settings, self.db, self.writes, self.files)
        self.visits = Pool(2, "visit")
        self.downloads = Pool(4, "download")
        queues: dict[str, Pool] = {
            "read": self.reads,
            "write": self.writes,
            "password": self.passwords,
            "file": self.files,
            "visit": self.visits,
            "download": self.downloads,
        }
        self.reception = Reception(
            self.db, self.blobs, self.reads, self.writes, self.files, self.metrics
        )
        self.copies = Copies(self.db, self.blobs, self.reads, self.writes, self.files)
        self.metrics.registry.register(Gauges(self.db, queues, self.reception))
        self.janitor = Janitor(settings, self.db, self.blobs, self.metrics, self.fanout.publish)
        self.beside = Beside(self.db, self.reads, self._account_touched, self._read_keys)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fanout.attach(loop)
        self.janitor.start(loop)
        self.beside.start(loop)

    def stop_waiting(self) -> None:
        """Let long polls and sockets end, so that the process can."""
        self.fanout.close()

    def close(self) -> None:
        """Wait for what was begun, then let go of everything."""
        self.fanout.close()
        self.beside.close()
        self.janitor.close()
        self.reception.close()
        visitors = (self.downloads, self.visits)
        for pool in (*visitors, self.files, self.reads, self.writes, self.passwords):
            pool.shutdown(wait=True, cancel_futures=pool is not self.writes)
        self.db.close()

    # --- what administrators do beside the server ---

    def _account_touched(self, account: str) -> None:
        """Let its sockets and long polls look at their token and their view again."""
        self.fanout.publish(News(account_topic(account)))

    def _read_keys(self) -> None:
        keys = load_keys(self.settings.keys, int(time.time()))
        self.signer.use(keys)
        self.links.use(keys)
        self.cursors.use(keys.cursor, keys.past_cursors)
        log.info("keys_read", edge=keys.edge_id)

    # --- transactions on behalf of a caller ---

    async def read(self, token: str | None, work: Callable[[Connection, Caller], T]) -> T:
        """Authenticate and run `work` in one snapshot, off the loop."""

        def job() -> T:
            now_ns = time.time_ns()
            with self.db.read() as conn:
                caller = self._authenticate(conn, token, now_ns)
                rotated.note(caller)
                done = work(conn, caller)
            if self._seen.is_first(caller.device, now_ns):
                marked = self.writes.submit(self._mark_seen, caller.device, now_ns)
                marked.add_done_callback(_report)
            return done

        async with self._ending_old(token) as rotated:
            return await asyncio.wrap_future(self.reads.submit_for(self.whose(token), job))

    def whose(self, token: str | None) -> Hashable:
        """The account for which jobs that come with `token` count, for what does harm to nobody."""
        holder = self.recent_tokens.of(token)
        return STRANGERS if holder is None else holder.account

    async def account_of(self, token: str | None) -> str:
        """The account that `token` is of. Raises `Refused(Unauthorized)`.

        Asks the database only when the token is not known: who has no good one never gets into the
        queue of writers.
        """
        holder = self.recent_tokens.of(token)
        if holder is not None:
            return holder.account
        return await self.read(token, lambda _conn, caller: caller.account)

    async def write(
        self,
        token: str | None,
        work: Callable[[Connection, Caller], T],
        chunks: Set[bytes] = frozenset(),
    ) -> T:
        """Authenticate and run `work` in one write transaction, off the loop. It is to know which
        of `chunks` have arrived."""
        whose = await self.account_of(token)

        def job() -> T:
            self.reception.note(chunks, whose)
            now_ns = time.time_ns()
            with self.db.write() as conn:
                caller = self._admit(conn, token, now_ns)
                rotated.note(caller)
                return work(conn, caller)

        async with self._ending_old(token) as rotated:
            return await asyncio.wrap_future(self.writes.submit_for(whose, job))

    def turn(self, whose: str) -> Callable[[], bool]:
        """For a batch of an account that begins now in the write thread: whether it is to end."""
        return self.writes.turn(whose, commits.MAX_SECONDS, SHARED_SECONDS)

    async def apply(
        self, token: str | None, ops: Sequence[Keyed], sent_as: Sequence[str] = ()
    ) -> list[Applied | AnyProblem]:
        """Commit a batch and publish its news. `sent_as`: see `ApplyRequest`.

        Raises `Refused` with Unauthorized, or with Unavailable when chunks of other devices that it
        refers to cannot be verified now.
        """

        whose = await self.account_of(token)

        def job() -> list[Applied | AnyProblem] | _Doubt:
            is_over = self.turn(whose)
            done = attempt(is_over, seek=True)
            if isinstance(done, _Unreported):
                self.reception.find_and_note(done.keys)
                done = attempt(is_over, seek=False)
            assert not isinstance(done, _Unreported)
            return done

        def attempt(
            is_over: Callable[[], bool], *, seek: bool
        ) -> list[Applied | AnyProblem] | _Doubt | _Unreported:
            now_ns = time.time_ns()
            with self.reception.noting() as noting:
                caller = self._admit(noting.conn, token, now_ns)
                ready, doubtful, pending = noting.find_ready(ops, caller, is_over)
                if pending and seek:
                    return _Unreported(pending)
                if doubtful:
                    return _Doubt(doubtful)
                some = ops[:ready]
                results, news = commits.apply(noting.conn, caller, some, now_ns, is_over, sent_as)
            for item in news:
                self.fanout.publish(item)
            return results + [commits.LATER] * (len(ops) - ready)

        results = await self._without_doubt(whose, job)
        for keyed, result in zip(ops, results, strict=True):
            answer = "applied" if isinstance(result, Applied) else type(result).__name__
            self.metrics.operations.labels(type(keyed.op).__name__, answer).inc()
        return results

    async def note_arrivals(self, token: str | None) -> None:
        """Return when what has arrived is noted. Raises `Refused(Unauthorized)`."""
        await self.account_of(token)
        if self.reception.waiting_arrivals:
            await asyncio.wrap_future(self.writes.submit(self.reception.flush))

    async def _without_doubt(self, whose: str, job: Callable[[], T | _Doubt]) -> T:
        """Run `job` in the write thread, again after each time it named chunks to look into."""
        for _ in range(DOUBTS):
            done = await asyncio.wrap_future(self.writes.submit_for(whose, job))
            if not isinstance(done, _Doubt):
                return done
            await self.reception.look_into(done.keys, whose)
        raise Refused(Unavailable(message="the server is still verifying what is referred to"))

    def _authenticate(self, conn: Connection, token: str | None, now_ns: int) -> Caller:
        try:
            caller = tokens.authenticate(conn, token, now_ns)
        except Refused:
            self.recent_tokens.forget(token)
            raise
        self.recent_tokens.note(token, caller)
        return caller

    @asynccontextmanager
    async def _ending_old(self, token: str | None) -> AsyncIterator[_Rotated]:
        """The first use of a rotated token ends the one before: when the block has ended, and so
        before anything is answered, in a transaction of its own, for what was asked for may be
        refused or have been a reading."""
        rotated = _Rotated()
        try:
            yield rotated
        finally:
            if rotated.caller is not None:
                loop, device = asyncio.get_running_loop(), rotated.caller.device
                await loop.run_in_executor(self.writes, self._end_old, device, token)

    def _admit(self, conn: Connection, token: str | None, now_ns: int) -> Caller:
        """Authenticate in a write transaction, with all that follows from a token's use."""
        caller = self._authenticate(conn, token, now_ns)
        if caller.is_rotated:
            tokens.end_old(conn, caller.device, token, now_ns)
        if self._seen.is_first(caller.device, now_ns):
            tokens.mark_seen(conn, caller.device, now_ns)
        return caller

    def _end_old(self, device: str, token: str | None) -> None:
        with self.db.write() as conn:
            tokens.end_old(conn, device, token, time.time_ns())

    def _mark_seen(self, device: str, now_ns: int) -> None:
        with self.db.write() as conn:
            tokens.mark_seen(conn, device, now_ns)

    def terms(self, conn: Connection, caller: Caller) -> Terms:
        """The terms of leases in the write transaction of `conn`."""
        tunables = self.settings.tunables
        limits = Limits(tunables.pending_limit_bytes, tunables.pending_limit_chunks)
        return Terms(self.upload_ns, Budget(conn, caller, limits), self._put_url)

    def _put_url(self, drive: str, descriptor: Descriptor, proof: str | None) -> PresignedPut:
        head = Head(descriptor.stored_length, descriptor.sha256)
        return self.sign_put(BlobKey(drive, descriptor.id), head, proof)

    def sign_put(self, key: BlobKey, head: Head, proof: str | None = None) -> PresignedPut:
        """Permission to PUT an object, from now on: see `UrlSigner.put`."""
        return self.signer.put(key, head, time.time_ns(), proof)


def _report(done: Future[None]) -> None:
    error = done.exception() if not done.cancelled() else None
    if error is not None:
        log.error("device_not_marked_seen", error=repr(error), exc_info=error)
