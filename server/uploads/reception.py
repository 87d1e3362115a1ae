"""Where stored objects are received: noted in the database, looked at, and vouched for.

Knows: which thread notes arrivals and verdicts, and when. Must not know: what they mean
(`arrivals`, `verification`), who asks.

Arrivals: a stored object is announced to `arrived`, which queues it and makes sure that one `flush`
is on its way to the write thread, after a pause in which many gather: all of them share one commit,
of about `NOTED` chunks. Who needs to know of a chunk sooner notes its arrival, and no others, which
are not theirs to wait for: a batch in its own transaction (`Noting`), an announcement before its
own (`note`). What a crash forgot in between, a batch and an announcement ask the blob store for;
of a bundle the sender is told that it is there, and reports it again so (`put`).

Verification: what a flush marked is read back by one thread of its own, which nobody waits for,
from a bounded queue, after a pause in which many gather: that is cheaper, and a reader who is
sooner does not wait for it. Its verdicts share the commits of arrivals; when it has nothing more to
look at, it sees to a flush itself. What does not fit the queue, and what was stored before the
process started, is looked at when it is first asked for (`look_into`), at most `AT_ONCE` objects at
a time.

Concurrency: `_lock` guards the queues. `_flush` and what calls it run in the write thread only: a
chunk is marked uploaded, and a bad object removed, by that thread alone.

Why one class: arrivals and verdicts share a lock, the flush that is under way, and its commit.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from remote.protocol.content import Descriptor
from remote.protocol.errors import Refused, Unavailable
from remote.protocol.messages import Keyed
from server.metadata.db import Database
from server.metrics import Metrics
from server.permissions.caller import Caller
from server.pools import OWN, FairPool
from server.storage.blobs import BlobKey, BlobStore
from server.uploads import arrivals, bundles, leases, verification
from server.uploads.arrivals import Arrival
from server.uploads.bundles import index_of
from server.uploads.verification import Suspect, Verdict

log = structlog.get_logger("nearline.server")

T = TypeVar("T")

# How long an arrival waits for others, unless somebody asks for it.
GATHER_SECONDS = 0.5
# Objects waiting to be looked at; more than these wait until they are asked for.
QUEUE = 20_000
PAUSE_SECONDS = 0.25
# Objects whose rows are read at once.
STEP = 256
AT_ONCE = 2
# Chunks that arrive and verdicts of one transaction of the server's own: others wait meanwhile. And
# so many more than it names chunks one on behalf of somebody may note: a chunk arrives once for
# each upload that shows possession of it, and in several drives.
NOTED = 500


# Operations whose chunks are looked up between two looks at the time.
LOOKED_UP = 50


class Readiness(NamedTuple):
    """Operations, from the first, that may be applied once the `doubtful` chunks have been looked
    into: `ready` is their number. `pending` chunks are first to be sought in the blob store
    (`find_and_note`)."""

    ready: int
    doubtful: list[BlobKey]
    pending: list[BlobKey]


class Noting:
    """A write transaction in which arrivals are noted; see `Reception.noting`."""

    def __init__(self, reception: Reception, conn: Connection) -> None:
        self._reception, self.conn = reception, conn
        self.waiting: list[Arrival] = []
        self.verdicts: list[Verdict] = []
        self.stored: list[BlobKey] = []
        self.bad: list[Verdict] = []

    def note(self, which: Callable[[BlobKey], bool], most: int) -> None:
        """Note about `most` of the chunks that are one of `which`."""
        reception, now_ns = self._reception, time.time_ns()
        waiting, verdicts = reception._take(which, most)
        try:
            if waiting:
                self.stored += arrivals.arrived(self.conn, reception._blobs, waiting, now_ns)
            if verdicts:
                self.bad += verification.record(self.conn, verdicts, now_ns)
        except OperationalError:  # busy, or the disk is full: the next flush tries again
            reception.put_back(waiting, verdicts)
            raise
        self.waiting += waiting
        self.verdicts += verdicts

    def find_ready(
        self, ops: Sequence[Keyed], caller: Caller, is_over: Callable[[], bool]
    ) -> Readiness:
        """Note the chunks that `ops` need, and say which of them nobody has reported or verified;
        of the first operations at least, when `is_over` says that there is no time for all."""
        named = arrivals.chunks_of(ops)
        if not named:
            return Readiness(len(ops), [], [])
        needed = frozenset(named)
        self.note(lambda key: key.chunk in needed, len(named) + NOTED)
        found = Readiness(0, [], [])
        while found.ready < len(ops) and not (found.ready and is_over()):
            part = ops[found.ready : found.ready + LOOKED_UP]
            unready = arrivals.unready(self.conn, part, caller, time.time_ns())
            found.pending.extend(unready.pending)
            found.doubtful.extend(unready.doubtful)
            found = found._replace(ready=found.ready + len(part))
        return found


class Reception:
    """`reads`, `writes` and `files` are the service's threads."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        reads: Executor,
        writes: FairPool,
        files: Executor,
        metrics: Metrics,
    ) -> None:
        self._db, self._blobs, self._metrics = db, blobs, metrics
        self._reads, self._writes, self._files = reads, writes, files
        self._lock = threading.Lock()  # guards the queues and flags below
        self._arrivals: list[Arrival] = []
        self._verdicts: list[Verdict] = []
        self._flush_queued = False
        self._queue: deque[BlobKey] = deque()
        self._looking = False
        self._hurry = threading.Event()  # set: do not pause
        self._closing = False
        self._looker = ThreadPoolExecutor(1, "verify")
        self._gatherer = ThreadPoolExecutor(1, "gather")
        self._under_way: dict[Suspect, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    def close(self) -> None:
        """Stop looking; what was not looked at is when it is asked for."""
        with self._lock:
            self._closing = True
        self._hurry.set()
        self._looker.shutdown(wait=True, cancel_futures=True)
        self._gatherer.shutdown(wait=True)

    @property
    def waiting_arrivals(self) -> int:
        """Stored objects that no transaction has taken note of yet."""
        with self._lock:
            return len(self._arrivals)

    @property
    def waiting_verification(self) -> int:
        """Stored objects in the queue to be looked at."""
        with self._lock:
            return len(self._queue)

    # --- arrivals ---

    def arrived(self, arrival: Arrival) -> None:
        """A stored object is durable. From any thread; returns at once."""
        with self._lock:
            self._arrivals.append(arrival)
        self._see_to_flush()

    async def promise_of(self, version: str, key: BlobKey) -> Descriptor | None:
        """The form in which the live upload of `version` said it would store the chunk; None: it
        did not."""

        def job() -> Descriptor | None:
            with self._db.read() as conn:
                return leases.promise_of(conn, version, key.drive, key.chunk, time.time_ns())

        return await asyncio.get_running_loop().run_in_executor(self._reads, job)

    @contextmanager
    def noting(self) -> Iterator[Noting]:
        """A write transaction, in the write thread. What was noted in one that fails is noted by
        the next flush."""
        noting: Noting | None = None
        try:
            with self._db.write() as conn:
                noting = Noting(self, conn)
                yield noting
        except BaseException:
            if noting is not None:
                self.put_back(noting.waiting, noting.verdicts)
            raise
        self._remove(noting.bad)
        self._look_at(noting.stored)

    def put_back(self, waiting: list[Arrival], verdicts: list[Verdict]) -> None:
        """These were not noted after all."""
        with self._lock:
            self._arrivals[:0], self._verdicts[:0] = waiting, verdicts

    def note(self, chunks: Set[bytes], account: str) -> None:
        """Note those of these chunks that have arrived, also those of which a process that ended
        was told and had not noted it: in the drives of `account` they are sought. In the write
        thread."""
        if not chunks:
            return
        self._flush(lambda key: key.chunk in chunks, len(chunks) + NOTED)
        with self._db.read() as conn:
            promised = arrivals.promised(conn, account, chunks)
        self.find_and_note(promised)

    def find_and_note(self, keys: Iterable[BlobKey]) -> None:
        """Note those of these pending chunks that are there after all. In the write thread."""
        wanted = list(keys)
        if not wanted:
            return
        found = [
            Arrival(key, head) for key in wanted if (head := self._blobs.head(key)) is not None
        ]
        found += self._lost_bundles(wanted)
        for arrival in found:
            log.info("object_found_without_event", object=arrival.key.chunk.hex())
        with self._lock:
            self._arrivals += found
        if found:
            there = {key for arrival in found for key in arrival.chunks()}
            self._flush(there.__contains__, len(there) + NOTED)

    def _lost_bundles(self, keys: Sequence[BlobKey]) -> list[Arrival]:
        """Those in which these chunks were, and that were out of reach for a while."""
        with self._db.read() as conn:
            lost = bundles.places_of_lost(conn, keys)
        read = [(key, head, index_of(self._blobs, key)) for key, head in lost]
        return [Arrival(key, head, bundle=found) for key, head, found in read if found is not None]

    def _see_to_flush(self) -> None:
        with self._lock:
            if self._flush_queued:
                return
            self._flush_queued = True
            if not self._closing:
                self._gatherer.submit(self._flush_soon).add_done_callback(_report)
                return
        self._writes.submit(self.flush).add_done_callback(_report)

    def _flush_soon(self) -> None:
        self._hurry.wait(GATHER_SECONDS)
        self._writes.submit(self.flush).add_done_callback(_report)

    def flush(self) -> None:
        """Note what has gathered, in one transaction; when it is very much, a part of it, and see
        to the rest. In the write thread."""
        with self._lock:
            self._flush_queued = False
        self._flush(lambda _key: True, NOTED)
        if self.waiting_arrivals or self._verdicts:
            self._see_to_flush()

    def _flush(self, which: Callable[[BlobKey], bool], most: int) -> None:
        """Note about `most` of the chunks that are one of `which`."""
        if self._is_any(which):
            with self.noting() as noting:
                noting.note(which, most)

    def _is_any(self, which: Callable[[BlobKey], bool]) -> bool:
        with self._lock:
            keys = [key for item in self._arrivals for key in item.chunks()]
            keys += [item.suspect.key for item in self._verdicts]
        return any(map(which, keys))

    def _take(
        self, which: Callable[[BlobKey], bool], most: int
    ) -> tuple[list[Arrival], list[Verdict]]:
        """Of arrivals and of verdicts that wait the first with `most` chunks that are one of
        `which`. A bundle comes whole, whatever else is in it."""
        with self._lock:
            waiting, self._arrivals = _parted(
                self._arrivals, lambda each: sum(map(which, each.chunks())), most
            )
            verdicts, self._verdicts = _parted(
                self._verdicts, lambda each: int(which(each.suspect.key)), most
            )
        return waiting, verdicts

    def _remove(self, bad: list[Verdict]) -> None:
        """Remove bad objects. One that cannot be removed stays, as after a crash: nobody believes
        it. The transaction that condemned it, perhaps somebody's batch, is committed and has not
        failed."""
        for item in bad:
            chunk = item.suspect.key.chunk.hex()
            self._metrics.bad_chunks.inc()
            log.error("chunk_bad", chunk=chunk, why=item.why)
            try:
                with self._db.write() as conn:
                    verification.remove(conn, self._blobs, item)
            except (OSError, OperationalError) as error:
                log.error("bad_chunk_not_removed", chunk=chunk, error=str(error))

    # --- verification, behind everybody's back ---

    def _look_at(self, keys: Sequence[BlobKey]) -> None:
        with self._lock:
            self._queue.extend(keys[: max(0, QUEUE - len(self._queue))])
            if self._looking or not self._queue or self._closing:
                return
            self._looking = True
        self._looker.submit(self._look).add_done_callback(_report)

    def _look(self) -> None:
        self._hurry.wait(PAUSE_SECONDS)
        try:
            while keys := self._next_keys():
                for suspect in self._suspects(keys):
                    if self._closing:
                        return
                    self._try_to_judge(suspect)
        except BaseException:
            self._looking = False  # the next flush begins again
            raise
        self._see_to_flush()

    def _try_to_judge(self, suspect: Suspect) -> None:
        try:
            self._judge(suspect)
        except OSError as error:
            log.error("chunk_not_verified", chunk=suspect.key.chunk.hex(), error=str(error))

    def _next_keys(self) -> list[BlobKey]:
        with self._lock:
            found = [self._queue.popleft() for _ in range(min(STEP, len(self._queue)))]
            self._looking = bool(found)
        return found

    def _judge(self, suspect: Suspect) -> None:
        verdict = verification.judge(self._blobs, suspect)
        self._metrics.verified_bytes.inc(suspect.place.length)
        with self._lock:
            self._verdicts.append(verdict)

    # --- verification, because somebody waits ---

    async def vouch(self, keys: Sequence[BlobKey], whose: Hashable = OWN) -> None:
        """Return when each of these chunks may be given to anybody. `whose` job that is.

        Raises `Refused(Unavailable)` if one is not what it should be, and is to be uploaded again.
        """
        await self.look_into(keys, whose)
        if await asyncio.get_running_loop().run_in_executor(self._reads, self._doubtful, keys):
            message = "some of the content is damaged or not there; it can be had once it is"
            raise Refused(Unavailable(message=f"{message} uploaded again"))

    async def look_into(self, keys: Sequence[BlobKey], whose: Hashable = OWN) -> None:
        """Return when each of these chunks is verified, or known not to be there. `whose` job that
        is.

        Raises `Refused(Unavailable)` when the disk does not let us know.
        """
        loop = asyncio.get_running_loop()
        await asyncio.wrap_future(self._writes.submit_for(whose, lambda: self._retrieve(keys)))
        suspects = await loop.run_in_executor(self._reads, self._suspects, keys)
        try:
            await asyncio.gather(*(self._judged(suspect) for suspect in suspects))
        except OSError as error:
            log.error("chunk_not_verified", error=str(error))
            message = "the server cannot read what it stores; its log says why"
            raise Refused(Unavailable(message=message)) from error
        finally:
            note = partial(self._flush, frozenset(keys).__contains__, 2 * len(keys))
            await asyncio.wrap_future(self._writes.submit_for(whose, note))

    async def _judged(self, suspect: Suspect) -> None:
        """However many wait for one object, it is read once."""
        task = self._under_way.get(suspect)
        if task is None:
            task = self._under_way[suspect] = asyncio.create_task(self._judge_soon(suspect))
            task.add_done_callback(lambda _: self._under_way.pop(suspect, None))
        await asyncio.shield(task)

    async def _judge_soon(self, suspect: Suspect) -> None:
        async with self._places:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._files, self._judge, suspect)

    def _retrieve(self, keys: Sequence[BlobKey]) -> None:
        """Note chunks that are pending although their object is there (it was out of reach for a
        while)."""
        self._flush(frozenset(keys).__contains__, 2 * len(keys))
        with self._db.read() as conn:
            pending = verification.pending(conn, keys)
        self.find_and_note(pending)

    def _suspects(self, keys: Sequence[BlobKey]) -> list[Suspect]:
        with self._db.read() as conn:
            return verification.suspects(conn, keys)

    def _doubtful(self, keys: Sequence[BlobKey]) -> bool:
        with self._db.read() as conn:
            return verification.any_doubtful(conn, keys)


def _parted(items: list[T], weigh: Callable[[T], int], most: int) -> tuple[list[T], list[T]]:
    """The first that weigh something, until they weigh `most`, and the others."""
    taken: list[T] = []
    left: list[T] = []
    weight = 0
    for item in items:
        more = weigh(item) if weight < most else 0
        weight += more
        (taken if more else left).append(item)
    return taken, left


def _report(done: Future[None]) -> None:
    error = done.exception() if not done.cancelled() else None
    if error is not None:
        log.error("arrivals_not_recorded", error=repr(error), exc_info=error)
