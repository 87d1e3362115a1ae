"""Sends the journal to the server, in order, batched, for ever.

Knows: when an operation is due, and what each answer means for the journal.
Must not know: which order is right (`operations`), what an operation says (`encode`), how
bytes travel (`uploader`), what conflicts mean (`resolver`), the kernel.

Concurrency contract: one `run` task. At most one batch is under way, so the server sees operations
in the order they were chosen; uploads run beside it, one task each, at most `UPLOADS`. What failed
waits in `retries`, not in a task: it takes nobody's place. Every acknowledgement is one
transaction: journal, tree and layers change together.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeGuard

import structlog
import trio

from cache.files.contents import Contents
from cache.files.snapshots import Snapshots
from cache.files.spool import Damaged
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import Body, Op, needed, new_id, reads, select, stuck, writes
from cache.metadata.tree import Tree
from cache.namespace.merge import Merge
from cache.sync.encode import message
from cache.sync.full_drives import FullDrives
from cache.sync.resolver import Resolver
from cache.sync.retries import Line, Waits
from cache.sync.succession import Succession
from cache.sync.uploader import Uploader
from remote.protocol import messages
from remote.protocol.errors import (
    RULES,
    BadRequest,
    ChunksMissing,
    Exists,
    NearlineError,
    NotFound,
    Problem,
    QuotaExceeded,
    Refused,
    Retry,
    TooLarge,
    Unavailable,
)
from remote.protocol.ids import FileId, VersionId

log = structlog.get_logger(__name__)

BATCH = 200
UPLOADS = 64
# While applications use the mount they come first. A burst (unpacking an archive, copying a tree)
# has it for itself; one that goes on is uploaded beside them; a few files never wait for it.
UPLOADS_WHEN_BUSY = 8
BUSY_SECONDS = 0.05
LONGEST_REST = 0.5
BURST_NS = 10_000_000_000
FEW = 16
LINGER_NS = 30_000_000  # an operation this young may still be folded away
BATCHES = "batches"  # what waits when a batch had no answer at all


class ApplyPort(Protocol):
    """The part of `remote.http.api.ApiClient` that the replayer needs."""

    async def apply(self, request: messages.ApplyRequest) -> messages.ApplyReply: ...


class Replayer:
    """`collect` drops nodes nobody needs any more."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        merge: Merge,
        uploader: Uploader,
        resolver: Resolver,
        port: ApplyPort,
        collect: Callable[[], None],
    ) -> None:
        self._db, self._tree, self._journal, self._contents = db, tree, journal, contents
        self._merge, self._uploader, self._port = merge, uploader, port
        self._resolver, self._collect = resolver, collect
        self._succession = Succession(db, tree, journal, uploader)
        self.snapshots = Snapshots(tree, journal, contents)
        self.snapshots.freeze = uploader.snapshot
        uploader.on_arrival = lambda: self._arrives(True)
        self.room = FullDrives()
        self._full_because: str | None = None
        self.last_request = float("-inf")  # trio time at which an application last asked something
        # Origins of what somebody waits for: it does not linger, and is snapshotted though open.
        # None: everything.
        self._hurries: list[set[str] | None] = []
        self._uploading: dict[str, int] = {}  # operation key: its inode
        self._early: dict[str, int] = {}
        self._turned_away: list[tuple[Op, Problem]] = []  # uploads to be resolved between batches
        self._uploads, self._sends, self._line = Waits(), Waits(), Line()
        self.reachable = False  # has what was sent last, since `lost_touch`, arrived?
        self.on_reachable: Callable[[], None] = lambda: None  # that has changed
        self._wake = trio.Event()
        self._most = BATCH  # operations sent at a time: fewer after a batch was refused as a whole

    # Outside.

    def wake(self) -> None:
        """Something changed that may make an operation due."""
        self._wake.set()

    def retry_now(self) -> None:
        """The network is back: do not wait out the backoff."""
        self.room.retry_now()
        self._uploads.retry_now()
        self._sends.retry_now()
        self._line.worked()
        self.wake()

    def lost_touch(self) -> None:
        """The server cannot be asked what is new any more."""
        self.reachable = False

    def _arrives(self, so: bool) -> None:
        if so != self.reachable:
            self.reachable = so
            self.on_reachable()

    @property
    def waiting_because(self) -> str | None:
        """Why something is not on the server yet; None while all goes well."""
        full = self._full_because if self.room.is_short else None
        return self._sends.reason or self._uploads.reason or full

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
        self._hurries.append(origins)
        self.wake()
        try:
            yield
        finally:
            self._hurries.remove(origins)

    def _is_hurried(self, op: Op) -> bool:
        return any(one is None or op.origin in one for one in self._hurries)

    # The loop.

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                changed, began = self._journal.changed, trio.current_time()
                began_ns, busy = time.time_ns(), self._is_busy()
                await self._resolve_uploads()
                self._merge.settle_free()
                self._forget_waits()
                batch, waiting = select(self._journal, self._is_ready, self._most)
                self._start_uploads(nursery, waiting)
                if batch and self._sends.may_try(BATCHES, began):
                    await self._or_wait(functools.partial(self._send, batch))
                else:
                    if not batch:  # there is nothing that could wait
                        self._sends.done(BATCHES)
                    looking = trio.current_time() - began
                    await self._wait(changed, began, began_ns, busy)
                    await self._rest(looking)

    async def _rest(self, looking: float) -> None:
        """Every edit is a reason to look, for milliseconds: look at most a sixth of the time."""
        if not self._hurries:
            await trio.sleep(min(5 * looking, LONGEST_REST))

    def _forget_waits(self) -> None:
        """Of what is not in the journal any more."""
        self._uploader.tidy(self._uploading)
        self._uploads.only(lambda key: self._journal.get(key) is not None)
        self._sends.only(lambda key: key == BATCHES or self._journal.get(key) is not None)

    async def _wait(self, changed: trio.Event, looked: float, at_ns: int, busy: bool) -> None:
        """Until the journal changes, we are woken, or time makes due what was looked at before."""
        due = self._next_due_ns(at_ns)
        left = float("inf") if due is None else max(0.001, (due - time.time_ns()) / 1e9)
        if (busy or self._is_busy()) and len(self._journal):
            left = min(left, BUSY_SECONDS)
        next_try = self.room.next_try()
        if next_try is not None and not self._uploading:
            left = min(left, max(0.001, next_try - trio.current_time()))
        upload = self._line.next_try(looked) or self._uploads.next_try(looked)
        for again in (self._sends.next_try(looked), upload):
            left = left if again is None else min(left, max(0.001, again - trio.current_time()))
        with trio.move_on_after(left):
            async with trio.open_nursery() as nursery:
                for event in (changed, self._wake):
                    nursery.start_soon(_wait_then_cancel, event, nursery.cancel_scope)

    def _is_busy(self) -> bool:
        idle = trio.current_time() - self.last_request
        return not self._hurries and idle < BUSY_SECONDS

    def _most_uploads(self) -> int:
        """How many may be under way now."""
        if not self._is_busy():
            return UPLOADS
        if len(self._journal) <= FEW:
            return UPLOADS_WHEN_BUSY
        oldest = next((op for op in self._journal if not op.refused), None)
        return 0 if oldest is not None and _is_younger(oldest, BURST_NS) else UPLOADS_WHEN_BUSY

    def _is_early_due(self, op: Op) -> bool:
        """Should what is certain of a file that is still being written be sent already?"""
        is_burst = self._is_busy() and _is_younger(op, BURST_NS)
        return not is_burst and self._uploader.wants_early(op.ino)

    def _next_due_ns(self, looked_ns: int) -> int | None:
        due = []
        for op in self._journal.newest_first():
            if looked_ns - op.made_ns >= LINGER_NS:
                break
            due.append(op.made_ns + LINGER_NS)
        snapshot = self.snapshots.next_due_ns()
        due += [] if snapshot is None else [snapshot]
        return min((one for one in due if one > looked_ns), default=None)

    def _is_ready(self, op: Op) -> bool:
        if not self._sends.may_try(op.key, trio.current_time()):
            return False
        if not op.sent and not self._is_hurried(op) and _is_younger(op, LINGER_NS):
            return False
        return not op.has_content or op.key in self._uploader.ready

    def _is_due(self, op: Op) -> bool:
        """May a snapshot of the file be taken now?"""
        if self.snapshots.is_moving(op):  # only for who would wait for ever otherwise
            return any(one is not None and op.origin in one for one in self._hurries)
        if op.version is not None or self._is_hurried(op):
            return True
        if self.snapshots.is_open(op.ino):
            return self.snapshots.is_due(op)
        return not _is_younger(op, LINGER_NS)

    def _start_uploads(self, nursery: trio.Nursery, waiting: list[Op]) -> None:
        now = trio.current_time()
        most = self._line.most(now, self._most_uploads())
        chosen = self._in_turn(waiting)
        if len(self._uploads):  # what never failed first, and then everybody in turn
            chosen.sort(key=lambda op: self._uploads.turn(op.key))
        for op in chosen:
            if len(self._uploading) >= most:
                return
            if op.key in self._uploader.ready or not self._uploads.may_try(op.key, now):
                continue
            if op.ino in self._uploading.values() or op.ino in self._early.values():
                continue  # one snapshot of an inode at a time, whichever operation it is for
            if op.version is None and self._contents.frozen(op.ino) is not None:
                continue  # an earlier snapshot of the same inode goes first
            if self._is_due(op):
                self._uploading[op.key] = op.ino
                nursery.start_soon(self._upload, op, op.key)
            elif op.kind == "create" and self._is_early_due(op):
                self._early[op.key] = op.ino
                nursery.start_soon(self._upload_early, op, op.key)

    def _in_turn(self, waiting: list[Op]) -> list[Op]:
        """`waiting`, but of the files for a full drive the smallest one, and that now and then."""
        if not self.room.is_short:
            return waiting
        self.room.only({self._place(op.ino)[0] for op in waiting})
        chosen, smallest = [], dict[str, tuple[int, Op]]()
        now = trio.current_time()
        for op in waiting:
            drive, size = self._place(op.ino)
            if not self.room.is_full(drive):
                chosen.append(op)
            elif not self._uploads.may_try(op.key, now):
                continue  # it waits for something else
            elif drive not in smallest or size < smallest[drive][0]:
                smallest[drive] = (size, op)
        trying = {self._place(ino)[0] for ino in self._uploading.values()}
        for drive, (_, op) in smallest.items():
            if drive not in trying and self.room.may_try(drive, now):
                chosen.append(op)
        return chosen

    def _place(self, ino: int) -> tuple[str, int]:
        """The drive and the size of an inode, as far as the state is whole."""
        node = self._tree.find(ino)
        return ("", 0) if node is None else (node.drive, node.size)

    async def _upload(self, op: Op, key: str) -> None:
        """One attempt."""
        below = self._uploader.known_parent(op)
        try:
            with self._putting_aside(op, "upload"):
                await _unwrapped(self._uploader.prepare, op)
                self.room.fitted(self._place(op.ino)[0])
                self._uploads.done(op.key)
                self._line.worked()
                if (why := self._sends.why(op.key)) is not None:
                    self._uploader.fail(op, why)  # its bytes are there; that it waits is shown
        except (NearlineError, OSError) as problem:  # OSError: reading our own disk
            if self._journal.get(op.key) is op:
                self._upload_failed(op, problem, below)
        finally:
            if self._journal.get(op.key) is not op:
                self._uploader.forget(op)
            del self._uploading[key]
            self.wake()

    def _upload_failed(self, op: Op, problem: Exception, below: FileId | None) -> None:
        """What becomes of it; `below` is the directory through which it was tried."""
        if _is_taken(problem) or (_is_not_found(problem) and below in (None, op.body.parent)):
            self._turned_away.append((op, problem.problem))
        elif _is_not_found(problem) and self._uploader.known_parent(op) != below:
            pass  # where it is to be made has moved meanwhile: again, at once
        elif not self._give_up(op, problem) and not self._has_no_room(op, problem):
            self._upload_waits(op, problem)

    def _upload_waits(self, op: Op, problem: Exception) -> None:
        moved = self._uploader.fail(op, str(problem))
        told = problem.retry_after if isinstance(problem, NearlineError) else None
        now, why = trio.current_time(), str(problem)
        self._uploads.failed(op.key, why, now, random.random(), retry_after=told, moved=moved)
        if moved:
            self._line.worked()
        elif isinstance(problem, NearlineError) and _is_of_the_line(problem):
            self._line.failed(now, random.random(), retry_after=told)
            self._arrives(False)

    async def _resolve_uploads(self) -> None:
        """What the server would not even take the bytes of."""
        while self._turned_away:
            op, problem = self._turned_away.pop(0)
            if self._journal.get(op.key) is op:
                await self._or_wait(functools.partial(self._resolve, op, problem))

    async def _upload_early(self, op: Op, key: str) -> None:
        """Best effort: what cannot be sent now is sent with the snapshot."""
        try:
            with self._putting_aside(op, "early upload"):
                await _unwrapped(self._uploader.send_early, op)
                self._uploads.done(op.key)
        except (NearlineError, OSError) as problem:
            log.info("early upload stopped", path=self._tree.path(op.ino), why=str(problem))
            if self._journal.get(op.key) is op:
                self._upload_waits(op, problem)
        finally:
            del self._early[key]
            self.wake()

    def _give_up(self, op: Op, problem: Exception) -> bool:
        """Mark an upload that the server refused for good, or of which the bytes are gone from our
        disk; True if it was. A directory above that was not found is made by an operation which is
        still to be sent: that decides."""
        retry = problem.retry if isinstance(problem, NearlineError) else Retry.LATER
        retry = Retry.NEVER if isinstance(problem, Damaged) else retry
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
        self.room.refused(self._place(op.ino)[0], trio.current_time(), random.random())
        self._uploads.done(op.key)
        self._full_because = str(problem)
        self._uploader.fail(op, str(problem))
        return True

    def _send_waits(
        self, key: str, problem: Exception, jitter: float | None = None, *, moved: bool = False
    ) -> None:
        """An operation, or all `BATCHES`, are to be sent again later."""
        chance = random.random() if jitter is None else jitter
        told = problem.retry_after if isinstance(problem, NearlineError) else None
        now, why = trio.current_time(), str(problem)
        self._sends.failed(key, why, now, chance, retry_after=told, moved=moved)
        op = self._journal.get(key)
        if op is not None and op.has_content:
            self._uploader.fail(op, why)

    # Batches.

    async def _or_wait(self, work: Callable[[], Awaitable[None]]) -> None:
        """Send or resolve; when our own disk fails (full: nothing can be noted), wait. Whatever the
        server took then keeps its key, and is answered the same when it is sent again."""
        try:
            await work()
        except OSError as problem:
            log.error("cannot note what the server answered", why=str(problem))
            self._send_waits(BATCHES, problem)

    async def _send(self, batch: list[Op]) -> None:
        with self._db.transaction():
            for op in batch:
                if not op.sent:
                    self._journal.rewrite(op, sent=True)
        batch, keyed = self._messages(batch)
        if not batch:
            return
        try:
            sent_as = self._merge.devices()
            reply = await self._port.apply(messages.ApplyRequest(ops=keyed, sent_as=sent_as))
            self._arrives(True)
            self._sends.done(BATCHES)
            self._most = min(BATCH, 2 * self._most)
            await self._take_answers(batch, reply)
        except Refused as refusal:
            await self._refused_whole(batch, refusal)
        except NearlineError as problem:  # what has no answer yet is sent again, as it was
            self._arrives(False)
            self._send_waits(BATCHES, problem)

    async def _refused_whole(self, batch: list[Op], refusal: Refused) -> None:
        """No operation was answered. A message that is too large, or that the server cannot read,
        would be so for ever: less is sent, down to the operation whose fault it is."""
        if not isinstance(refusal.problem, BadRequest | TooLarge):
            self._send_waits(BATCHES, refusal)
        elif len(batch) > 1:
            self._most = len(batch) // 2
        else:
            await self._resolve(batch[0], refusal.problem)

    async def _take_answers(self, batch: list[Op], reply: messages.ApplyReply) -> None:
        tainted: set[str] = set()
        later: list[tuple[Op, Problem]] = []
        some = any(isinstance(answer, messages.Applied) for answer in reply.results)
        # As they were sent: resolving one may rewrite those behind it.
        sent = [(op.key, writes(op), reads(op) | writes(op)) for op in batch]
        for op, answer, (key, wrote, used) in zip(batch, reply.results, sent, strict=True):
            if self._journal.get(key) is not op:  # an earlier one took it along, or made it anew
                tainted |= set() if isinstance(answer, messages.Applied) else wrote
                continue
            if isinstance(answer, messages.Applied):
                with self._putting_aside(op, "acknowledgement"):
                    await self._applied(op, answer)
                continue
            retry = RULES[type(answer)].retry
            if retry is Retry.NEVER and not tainted & used:
                await self._resolve(op, answer)
            else:
                missing = answer.chunks if isinstance(answer, ChunksMissing) else ()
                self._again(op, retry, missing)
                later += [] if retry is Retry.NEVER else [(op, answer)]
            tainted |= wrote
        jitter = random.random()  # the same for all, so that they go in one batch again
        # It was too much for one batch, or others waited, and they have had their turn by now.
        at_once = some and all(isinstance(problem, Unavailable) for _, problem in later)
        for op, problem in later:
            if at_once:
                self._sends.done(op.key)
            else:
                moved = some and isinstance(problem, Unavailable)
                self._send_waits(op.key, Refused(problem), jitter, moved=moved)

    def _again(self, op: Op, retry: Retry = Retry.LATER, missing: Sequence[bytes] = ()) -> None:
        """Not applied, and it may be changed again: make it anew and send it later. A refusal that
        was only due to an earlier one is the answer to its key for ever: that needs a new key."""
        if retry is Retry.REPAIR:
            self._uploader.resend(op, missing)
        with self._db.transaction():
            key = new_id() if retry is Retry.NEVER else op.key
            self._journal.rewrite(op, sent=False, key=key)

    async def _resolve(self, op: Op, problem: Problem) -> None:
        try:
            with self._putting_aside(op, "resolution"):
                await self._resolver.resolve(op, problem)
            self._uploads.hurry()  # what is made below it waits for that
        except NearlineError as trouble:  # could not ask the server: the answer will be the same
            self._again(op)
            self._send_waits(op.key, trouble)

    @contextlib.contextmanager
    def _putting_aside(self, op: Op, what: str) -> Iterator[None]:
        """A fault of ours with one operation must not end the mount, and with it the access to
        every other file. Its bytes stay, it goes no further, and it is shown."""
        try:
            yield
        except (NearlineError, OSError):
            raise
        except Exception:
            log.exception("a fault of this program", what=what, operation=op.kind, file=op.file)
            if self._journal.get(op.key) is op:
                self._resolver.refuse(op, None, "a fault of this program; the mount's log has it")

    async def _applied(self, op: Op, answer: messages.Applied) -> None:
        content = self._uploader.ready.get(op.key)
        told = next((one.version for one in answer.change.files if one.id == op.file), None)
        if content is not None and told is not None and told != content.version:
            self._take_earlier_answer(op, told, answer.change)
            return
        copy = await self._resolver.overtaken(op, answer)
        with self._db.transaction():
            if copy is not None and answer.overtaken is not None:
                self._resolver.keep_copy(op, answer.overtaken, copy)
            if content is not None:
                size = content.manifest.size
                self._contents.commit(op.ino, op.file, content.version, size)
            self._succession.acknowledged(op, content, answer.change)
            self._merge.acknowledge(op, answer.change)
            if op.body.anew:
                self._tree.update(op.ino, listed=None)
        self._merge.after_commit()
        self._uploader.forget(op)
        self._collect()
        if op.body.anew:
            await self._resolver.look_again(op.ino)

    def _take_earlier_answer(self, op: Op, version: VersionId, change: messages.Change) -> None:
        """The server had applied the operation, as `version`, before this machine lost power and
        with that the knowledge of it: the answer to a key is given again, whatever is sent with it.
        What the server has is newer than what came back here, unless somebody has written into that
        since: then ours is the next version."""
        later = [one for one in self._journal.of_file(op.file) if one.has_content and one is not op]
        with self._db.transaction():
            if op.body.before_loss and not later:
                self._contents.discard(op.ino)
                self._tree.update(op.ino, size=self._tree.node(op.ino).base_size)
                self._merge.acknowledge(op, change)
            else:
                body = Body(base=version)
                self._journal.rewrite(op, kind="write", key=new_id(), body=body, sent=False)
        self._merge.after_commit()
        self._uploader.forget(op)
        self._collect()

    # Messages.

    def _messages(self, batch: list[Op]) -> tuple[list[Op], list[messages.Keyed]]:
        """The operations that can be sent, as they are sent. One whose inode is gone (a damaged
        state database) is put aside, so that it holds up nothing but what depends on it."""
        sendable, keyed = [], []
        for op in batch:
            try:
                content = self._uploader.ready.get(op.key)
                said = message(op, self._tree, content)
                keyed.append(messages.Keyed(key=op.key, op=said))
                sendable.append(op)
            except OSError as damage:
                self._resolver.refuse(op, None, f"damaged state: {damage}")
        return sendable, keyed


def _is_younger(op: Op, age_ns: int) -> bool:
    """Was it made less than so long ago? What seems to be made in the future is not young: then the
    clock was set back since, and waiting until then might take years."""
    return 0 <= time.time_ns() - op.made_ns < age_ns


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
    except BaseExceptionGroup as group:
        ours, rest = group.split((NearlineError, OSError))
        if rest is not None or ours is None:
            raise
        found: BaseException = ours
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from group


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
