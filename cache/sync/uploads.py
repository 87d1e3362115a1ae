"""Which uploads run, as tasks beside everything else, and what becomes of each when it ends.

Knows: how many may run, whose turn it is, what a failure of one means for the others. Must not
know: the order of operations (`schedule`), how bytes travel (`uploader`), what is sent when they
are there (`batches`), the kernel.

Concurrency: one task an operation, as many as fit into `schedule.UPLOADS` places; one snapshot of
an inode at a time; beside them at most `EARLY_UPLOADS` of files that are still being written. What
failed waits in `waits`, not in a task: it takes nobody's place. A task ends by waking the loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeGuard

import structlog
import trio

from cache.files.contents import Contents
from cache.files.snapshots import Snapshots
from cache.files.spool import DamagedSpool
from cache.metadata.journal import Journal
from cache.metadata.operations import Op
from cache.metadata.tree import Tree
from cache.sync.full_drives import FullDrives
from cache.sync.resolver import Resolver
from cache.sync.retries import Line, Waits
from cache.sync.schedule import LINGER_NS, SHARES, Pace, Schedule, is_younger, share
from cache.sync.signals import Contact
from cache.sync.uploader import Uploader
from remote.protocol.errors import (
    Exists,
    NearlineError,
    NotFound,
    Problem,
    QuotaExceeded,
    Refused,
    Retry,
)
from remote.protocol.ids import FileId

# Growing files that are sent at a time: each takes the memory of two steps, and more of them would
# be no faster, because what they have under way together is bounded.
EARLY_UPLOADS = 3

log = structlog.get_logger(__name__)


class Uploads:
    """`sends` are the operations that failed once their bytes were there."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        snapshots: Snapshots,
        uploader: Uploader,
        resolver: Resolver,
        schedule: Schedule,
        pace: Pace,
        sends: Waits,
        contact: Contact,
        wake: Callable[[], None],
    ) -> None:
        self._tree, self._journal, self._contents = tree, journal, contents
        self._snapshots, self._uploader, self._resolver = snapshots, uploader, resolver
        self._schedule, self._pace, self._sends = schedule, pace, sends
        self._contact, self._wake = contact, wake
        self.full_drives, self.waits, self._line = FullDrives(), Waits(), Line()
        self._running: dict[str, int] = {}  # operation key: its inode
        self._shares: dict[int, int] = {}  # of these inodes: what each takes of the places
        self._early: dict[str, int] = {}
        self._refused: list[tuple[Op, Problem]] = []  # to be resolved between batches

    def retry_now(self) -> None:
        """Do not wait out the backoff."""
        self.full_drives.retry_now()
        self.waits.retry_now()
        self._line.worked()

    @property
    def reason(self) -> str | None:
        """Why something does not get through; None while all does."""
        return self.waits.reason or self.full_drives.reason

    def tidy(self) -> None:
        """Forget what is not in the journal any more."""
        self._uploader.tidy(self._running)
        self.waits.only(lambda key: self._journal.get(key) is not None)

    def next_try(self, looked: float) -> float | None:
        """When something that was not tried at `looked` may be, by time alone."""
        tries = [self._line.next_try(looked) or self.waits.next_try(looked)]
        tries += [] if self._running else [self.full_drives.next_try(looked)]
        return min((item for item in tries if item is not None), default=None)

    def refused_uploads(self) -> Iterator[tuple[Op, Problem]]:
        """Operations of which the server would not even take the bytes; each once."""
        while self._refused:
            op, problem = self._refused.pop(0)
            if self._journal.get(op.key) is op:
                yield op, problem

    # --- beginning --------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery) -> None:
        """As many as may run now."""
        now, now_ns = trio.current_time(), time.time_ns()
        usual = self._pace.most_uploads(self._journal, len(self._journal), now, now_ns)
        most = self._line.most(now, usual)
        is_bad = self._line.is_bad  # then it is one at a time, whatever its size
        left = most * SHARES - sum(self._shares.values())
        if left <= 0 or (is_bad and self._running):
            return
        for op in self._in_turn(now):
            if op.ino in self._shares:
                continue  # one snapshot of an inode at a time, whichever operation it is for
            if op.version is None and self._contents.frozen(op.ino) is not None:
                continue  # an earlier snapshot of the same inode goes first
            if self._is_due(op, now_ns):
                self._running[op.key] = op.ino
                shares = SHARES if is_bad else share(self._place(op.ino)[1])
                self._shares[op.ino] = shares
                left -= shares
                self._pace.began(now)
                nursery.start_soon(self._upload, op, op.key)
                if left <= 0:
                    return
            elif op.kind == "create" and self._wants_early(op):
                self._early[op.key] = op.ino
                nursery.start_soon(self._upload_early, op, op.key)

    def _in_turn(self, now: float) -> Iterator[Op]:
        """Operations that may be tried: those that never failed first, and then each in turn."""
        failed = []
        for op in self._fitting(now) if self.full_drives.is_short else self._schedule.wanting():
            if not self.waits.turn(op.key):
                yield op
            elif self.waits.may_try(op.key, now):
                failed.append(op)
        yield from sorted(failed, key=lambda op: self.waits.turn(op.key))

    def _fitting(self, now: float) -> list[Op]:
        """Of the files for a full drive the smallest one, and that now and then."""
        wanting = list(self._schedule.wanting())
        self.full_drives.only({self._place(op.ino)[0] for op in wanting})
        chosen, smallest = [], dict[str, tuple[int, Op]]()
        for op in wanting:
            drive, size = self._place(op.ino)
            if not self.full_drives.is_full(drive):
                chosen.append(op)
            elif not self.waits.may_try(op.key, now):
                continue  # it waits for something else
            elif drive not in smallest or size < smallest[drive][0]:
                smallest[drive] = (size, op)
        trying = {self._place(ino)[0] for ino in self._running.values()}
        for drive, (_, op) in smallest.items():
            if drive not in trying and self.full_drives.may_try(drive, now):
                chosen.append(op)
        return chosen

    def _place(self, ino: int) -> tuple[str, int]:
        """The drive and the size of an inode, as far as the state is whole."""
        node = self._tree.find(ino)
        return ("", 0) if node is None else (node.drive, node.size)

    def _is_due(self, op: Op, now_ns: int) -> bool:
        """True if a snapshot of the file may be taken now."""
        if self._snapshots.is_moving(op):  # only for who would wait for ever otherwise
            return self._pace.is_asked_for(op)
        if op.version is not None or self._pace.is_hurried(op):
            return True
        if self._snapshots.is_open(op.ino):
            return self._snapshots.is_due(op)
        return not is_younger(op, LINGER_NS, now_ns)

    def _wants_early(self, op: Op) -> bool:
        """True if what is certain of a file that is still being written should be sent already."""
        if len(self._early) >= EARLY_UPLOADS or op.ino in self._early.values():
            return False
        return self._uploader.wants_early(op.ino)

    # --- the tasks --------------------------------------------------------------------------------

    async def _upload(self, op: Op, key: str) -> None:
        """One attempt."""
        below = self._uploader.parent_on_server(op)
        try:
            with self._resolver.putting_aside(op, "upload"):
                await _unwrapped(self._uploader.prepare, op)
                self.full_drives.fitted(self._place(op.ino)[0])
                self.waits.done(op.key)
                self._line.worked()
                if (why := self._sends.why(op.key)) is not None:
                    self._uploader.fail(op, why)  # its bytes are there; that it waits is shown
        except (NearlineError, OSError) as error:  # OSError: reading our own disk
            if self._journal.get(op.key) is op:
                self._failed(op, error, below)
        finally:
            if self._journal.get(op.key) is not op:
                self._uploader.forget(op)
            del self._shares[self._running.pop(key)]
            self._wake()

    async def _upload_early(self, op: Op, key: str) -> None:
        """Best effort: what cannot be sent now is sent with the snapshot."""
        try:
            with self._resolver.putting_aside(op, "early upload"):
                await _unwrapped(self._uploader.send_early, op)
                self.waits.done(op.key)
        except (NearlineError, OSError) as error:
            log.info("early_upload_stopped", path=self._tree.path(op.ino), why=str(error))
            if self._journal.get(op.key) is op:
                self._try_later(op, error)
        finally:
            del self._early[key]
            self._wake()

    # --- what failed ------------------------------------------------------------------------------

    def _failed(self, op: Op, problem: Exception, below: FileId | None) -> None:
        """Decide about a failed attempt; `below` is the directory through which it was tried."""
        if _is_taken(problem) or (_is_not_found(problem) and below in (None, op.body.parent)):
            self._refused.append((op, problem.problem))
        elif _is_not_found(problem) and self._uploader.parent_on_server(op) != below:
            pass  # where it is to be made has moved meanwhile: again, at once
        elif not self._give_up(op, problem) and not self._has_no_room(op, problem):
            self._try_later(op, problem)

    def _try_later(self, op: Op, problem: Exception) -> None:
        moved = self._uploader.fail(op, str(problem))
        told = problem.retry_after if isinstance(problem, NearlineError) else None
        now, why = trio.current_time(), str(problem)
        self.waits.failed(op.key, why, now, random.random(), retry_after=told, moved=moved)
        if moved:
            self._line.worked()
        elif isinstance(problem, NearlineError) and _is_of_the_line(problem):
            self._line.failed(now, random.random(), retry_after=told)
            self._contact.failed()

    def _give_up(self, op: Op, problem: Exception) -> bool:
        """Mark an upload that the server refused for good, or of which the bytes are gone from our
        disk; True if it was. A directory above that was not found is made by an operation which is
        still to be sent: that decides."""
        retry = problem.retry if isinstance(problem, NearlineError) else Retry.LATER
        retry = Retry.NEVER if isinstance(problem, DamagedSpool) else retry
        if (
            _is_not_found(problem)
            or retry is not Retry.NEVER
            or self._journal.get(op.key) is not op
        ):
            return False
        said = str(problem.strerror) if isinstance(problem, OSError) else str(problem)
        self._resolver.refuse(op, problem.problem if isinstance(problem, Refused) else None, said)
        return True

    def _has_no_room(self, op: Op, problem: Exception) -> bool:
        """Note a drive that is full; True if it is. Others are not held up by who waits for it."""
        if not (isinstance(problem, Refused) and isinstance(problem.problem, QuotaExceeded)):
            return False
        now, why = trio.current_time(), str(problem)
        self.full_drives.refused(self._place(op.ino)[0], now, random.random(), why)
        self.waits.done(op.key)
        self._uploader.fail(op, why)
        return True


def _is_of_the_line(problem: NearlineError) -> bool:
    """Would others fail in the same way? A refusal is of what was refused, but for "not now"."""
    return not isinstance(problem, Refused) or problem.patience > 0


def _is_not_found(problem: Exception) -> TypeGuard[Refused]:
    """The file, or the directory it was to be in, is gone, or not shared any more."""
    return isinstance(problem, Refused) and isinstance(problem.problem, NotFound)


def _is_taken(problem: Exception) -> TypeGuard[Refused]:
    """The id of the version is another's."""
    return isinstance(problem, Refused) and isinstance(problem.problem, Exists)


async def _unwrapped(work: Callable[[Op], Awaitable[None]], op: Op) -> None:
    """Run it; if its nursery failed with expected errors only, raise one of them."""
    try:
        await work(op)
    except BaseExceptionGroup as error:
        ours, rest = error.split((NearlineError, OSError))
        if rest is not None or ours is None:
            raise
        found: BaseException = ours
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from error
