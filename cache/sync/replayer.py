"""Sends the journal to the server, in order, batched, for ever: the loop, and who waits for it.

Knows: when to look for what is due, and when everything of somebody's has been sent. Must not know:
which order is right (`schedule`, `operations`), which uploads run (`uploads`), what answers mean
(`batches`), the kernel.

Concurrency: one `run` task. At most one batch is under way, so the server sees operations
in the order they were chosen; uploads run beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

import structlog
import trio

from cache.files.snapshots import Snapshots
from cache.metadata.damage import DamagedState
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, needed, stuck
from cache.namespace.merge import Merge
from cache.sync.batches import Batches
from cache.sync.full_drives import FullDrives
from cache.sync.retries import Waits
from cache.sync.schedule import BUSY_SECONDS, FEW, Pace, Schedule, next_of_age
from cache.sync.signals import Contact, Wake
from cache.sync.uploads import Uploads

log = structlog.get_logger(__name__)

# Seconds between two looks while nobody waits: what becomes due meanwhile goes in one batch.
SHORTEST_REST = 0.01
LONGEST_REST = 0.5


class Replayer:
    """`sends` are the batches, and the operations once their bytes are there, that have to wait
    after a failure."""

    def __init__(
        self,
        journal: Journal,
        merge: Merge,
        snapshots: Snapshots,
        schedule: Schedule,
        pace: Pace,
        uploads: Uploads,
        batches: Batches,
        sends: Waits,
        contact: Contact,
        wake: Wake,
    ) -> None:
        self._journal, self._merge, self.snapshots = journal, merge, snapshots
        self._schedule, self._pace = schedule, pace
        self._uploads, self._batches, self._sends = uploads, batches, sends
        self._contact, self._wake = contact, wake

    # --- outside ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed that may make an operation due."""
        self._wake()

    def asked(self) -> None:
        """An application asked something just now: it comes first."""
        self._pace.last_request = trio.current_time()

    def retry_now(self) -> None:
        """The network is back: do not wait out the backoff."""
        self._uploads.retry_now()
        self._sends.retry_now()
        self.wake()

    def lost_touch(self) -> None:
        """The server cannot be asked what is new any more."""
        self._contact.lost()

    @property
    def reachable(self) -> bool:
        """True if what was sent last, since `lost_touch`, has arrived."""
        return self._contact.reachable

    @property
    def full_drives(self) -> FullDrives:
        return self._uploads.full_drives

    @property
    def waiting_because(self) -> str | None:
        """Why something is not on the server yet; None while all goes well."""
        return self._sends.reason or self._uploads.reason

    async def flush(self, which: Callable[[Op], bool] | None = None) -> list[Op]:
        """Return when every operation that is in the journal now (of those that `which` picks) has
        been acknowledged, or is stuck for good (refused, or behind one that is): the latter. What
        is being written is not waited for: whoever wants it has it brought to rest before."""
        which_or_all = which or (lambda op: not self.snapshots.is_moving(op))
        origins = {op.origin for op in self._journal if which_or_all(op)}
        with self.expedited(None if which is None else needed(self._journal, origins)):
            self.retry_now()
            refused, kept = list[str](), set[str]()
            while first := self._first(origins, kept):
                if (now := [op.key for op in self._journal.refused()]) != refused:
                    refused, kept = now, stuck(self._journal)
                elif refused and first.key in stuck(self._upto(first)):
                    kept.add(first.key)
                else:
                    await self._journal.changed.wait()
        return [op for op in self._journal if op.origin in origins]

    def _first(self, origins: set[str], kept: set[str]) -> Op | None:
        """The first operation of these that can still be sent."""
        ops = (op for op in self._journal if op.origin in origins)
        return next((op for op in ops if op.key not in kept), None)

    def _upto(self, last: Op) -> Iterator[Op]:
        yield from itertools.takewhile(lambda op: op is not last, self._journal)
        yield last

    @contextlib.contextmanager
    def expedited(self, origins: set[str] | None) -> Iterator[None]:
        """Operations with these origins are sent as soon as they can be; None: all."""
        with self._pace.expedited(origins):
            self.wake()
            yield

    # --- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        self._journal.read()
        async with trio.open_nursery() as nursery:
            while True:
                woken, changed = self._wake.sleep(), self._journal.changed
                began, began_ns = trio.current_time(), time.time_ns()
                busy = self._pace.is_busy(began)
                for op, problem in self._uploads.refused_uploads():
                    await self._batches.resolve(op, problem)
                await self._batches.make_room()
                self._release_free()
                self._uploads.tidy()
                self._batches.tidy()
                self._schedule.admit(self._journal.after)
                batch = self._schedule.choose(self._may_be_sent, self._batches.most)
                self._uploads.start(nursery)
                if batch and self._batches.may_try(began):
                    await self._batches.send(batch)
                    await self._gather(len(batch), trio.current_time() - began)
                else:
                    if not batch:
                        self._batches.nothing_to_send()
                    looking = trio.current_time() - began
                    await self._wait((changed, woken), began, began_ns, busy)
                    await self._rest(looking)

    def _release_free(self) -> None:
        """Apply what nothing holds back any more; on a full disk, at the next look."""
        try:
            self._merge.release_free()
        except DamagedState:
            raise
        except OSError as error:
            log.warning("cannot_apply_what_was_held_back", why=str(error))

    def _may_be_sent(self, op: Op) -> bool:
        can = self._sends.may_try(op.key, trio.current_time())
        return can and not self._pace.lingers(op, time.time_ns())

    async def _gather(self, sent: int, took: float) -> None:
        """While applications are at work (deleting a tree), what they do one by one becomes due one
        by one. A batch costs both sides more than what is in a small one: send at most a sixth of
        the time, unless somebody comes to wait for it."""
        if sent < FEW and self._pace.is_busy(trio.current_time()):
            with trio.move_on_after(min(5 * took, LONGEST_REST)):
                while not self._pace.hurries:
                    await self._wake.sleep().wait()

    async def _rest(self, looking: float) -> None:
        """Every edit is a reason to look: look at most a sixth of the time; and not before the end
        of a burst could be known, because until then nothing of it is sent."""
        if not self._pace.hurries:
            burst = self._pace.is_busy(trio.current_time()) and len(self._journal) > FEW
            least = BUSY_SECONDS if burst else SHORTEST_REST
            await trio.sleep(max(least, min(5 * looking, LONGEST_REST)))

    async def _wait(
        self, events: tuple[trio.Event, ...], looked: float, at_ns: int, busy: bool
    ) -> None:
        """Until the journal changes, we are woken, or time makes due what was looked at before."""
        due = self._next_due_ns(at_ns)
        left = float("inf") if due is None else max(0.001, (due - time.time_ns()) / 1e9)
        if (busy or self._pace.is_busy(trio.current_time())) and len(self._journal):
            left = min(left, BUSY_SECONDS)
        for again in (self._sends.next_try(looked), self._uploads.next_try(looked)):
            left = left if again is None else min(left, max(0.001, again - trio.current_time()))
        with trio.move_on_after(left):
            async with trio.open_nursery() as nursery:
                for event in events:
                    nursery.start_soon(_wait_then_cancel, event, nursery.cancel_scope)

    def _next_due_ns(self, looked_ns: int) -> int | None:
        ages = next_of_age(self._journal.newest_first(), looked_ns)
        dues = [item for item in (ages, self.snapshots.next_due_ns()) if item is not None]
        return min((item for item in dues if item > looked_ns), default=None)


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
