"""Which operations may be sent next, whose bytes are wanted first, and who comes before whom. Pure.

Knows: the first operations of the journal, what each waits for, when one is due. Must not know:
the database, tasks and clocks (times are arguments), how anything is sent (`batches`, `uploads`).

It is told what changes, and looks only at that: choosing costs in proportion to what changed since
the last time and to what is chosen, not to what waits. The first `WINDOW` operations that are not
refused are looked at, so that a long journal costs no more memory than a short one; `admit` brings
the next when some have left.

Invariants: what is chosen, and in which order, is what one would choose who looks through the
journal from the first operation on, sends what is ready, and holds back whatever depends on what
was not sent (`tests/cache/sync/test_schedule.py` does that). Of each file, and of each inode, only
the first content may be on its way, because their snapshots are taken in order.

Concurrency: synchronous, on the trio thread. `came`, `went` and `touched` only note which ones to
look at, so they may be called inside transactions, and by a rollback.
"""

from __future__ import annotations

import contextlib
import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from cache.metadata.operations import Op, file_key, reads, writes
from cache.sync.order import NEVER, Order

WINDOW = 4096

# While applications use the mount they come first. A burst (unpacking an archive, copying a tree)
# has it for itself; one that goes on is uploaded beside them; a few files never wait for it.
UPLOADS = 64  # large ones; `share` says what a small one takes of such a place
UPLOADS_WHEN_BUSY = 8
BUSY_SECONDS = 0.05
BURST_NS = 10_000_000_000
FEW = 16
# So many in so short a time are not few either.
STREAM_SECONDS = 1.0
# An operation this young may still be folded away.
LINGER_NS = 30_000_000
# Small files that are uploaded in the place of a large one: they wait for each other, mostly, and
# travel together. What counts is the memory that they are read into.
SHARES = 8
SHARE_BYTES = 128 * 1024


@dataclass(slots=True)
class _Held:
    """An operation as it was when it was last looked at."""

    op: Op
    wrote: frozenset[str]
    read: frozenset[str]
    content: tuple[str | int, ...]  # the file and the inode whose content it gives
    refused: bool
    is_sendable: bool = False
    is_wanting: bool = False


class Schedule:
    """`has_bytes` says of an operation with content whether the server has the bytes; when that
    changes, `touched` is called."""

    def __init__(self, has_bytes: Callable[[Op], bool], window: int = WINDOW) -> None:
        self._has_bytes, self._window = has_bytes, window
        self._held: dict[int, _Held] = {}  # by `seq`
        self._refused = 0  # how many of them are
        self._records, self._contents = Order(), Order()
        self._sendable: list[int] = []  # wait for no other and no bytes; in order
        self._wanting: list[int] = []  # their bytes are wanted next; in order
        self._changed: dict[int, Op | None] = {}  # not looked at yet; None: it has gone
        self.upto = -NEVER  # operations with a greater `seq` are not looked at yet
        self._newest = -NEVER  # the greatest there ever was

    # --- what happens to the journal --------------------------------------------------------------

    def came(self, op: Op) -> None:
        """It was added, or says something else now."""
        self._newest = max(self._newest, op.seq)
        if op.seq <= self.upto:
            self._changed[op.seq] = op

    def went(self, op: Op) -> None:
        """It has left, or is about to say something else."""
        if op.seq <= self.upto:
            self._changed[op.seq] = None

    def touched(self, op: Op) -> None:
        """Its bytes came to the server, or have to be brought there again."""
        held = self._held.get(op.seq)
        if held is not None and held.op is op:
            self._changed.setdefault(op.seq, op)

    def admit(self, after: Callable[[int, int], Iterable[Op]]) -> None:
        """Look at further operations as far as there is room; `after(seq, most)` are the next in
        the journal."""
        self._look()
        while self.upto < self._newest and (room := self._room()) > 0:
            some = list(after(self.upto, room))
            for op in some:
                self.upto = op.seq
                self._changed[op.seq] = op
            if len(some) < room:
                self.upto = max(self.upto, self._newest)
            self._look()

    def _room(self) -> int:
        return self._window - len(self._held) + self._refused

    # --- choosing ---------------------------------------------------------------------------------

    def choose(self, may: Callable[[Op], bool], limit: int) -> list[Op]:
        """The operations to be sent now, in order, at most `limit`. What `may` says no to waits,
        and with it whatever depends on it."""
        self._look()
        chosen: list[_Held] = []
        first = iter(list(self._sendable))
        freed: list[int] = []  # by what is chosen: it may go along
        following = next(first, NEVER)
        while len(chosen) < limit and (freed or following != NEVER):
            if freed and freed[0] < following:
                seq = heapq.heappop(freed)
            else:
                seq, following = following, next(first, NEVER)
            held = self._held[seq]
            if may(held.op):
                chosen.append(held)
                for item in self._records.remove(seq, _until_answered(held), held.read):
                    if self._has_all(self._held[item]):
                        heapq.heappush(freed, item)
        for held in reversed(chosen):
            self._records.add(held.op.seq, _until_answered(held), held.read)
        return [held.op for held in chosen]

    def wanting(self) -> Iterator[Op]:
        """Operations whose bytes are to be brought to the server, in order, with no earlier content
        of the same file, or from the same inode, before them."""
        self._look()
        return (self._held[seq].op for seq in list(self._wanting))

    # --- keeping track ----------------------------------------------------------------------------

    def _look(self) -> None:
        """At what has changed."""
        while self._changed:
            seq, op = self._changed.popitem()
            held = self._held.get(seq)
            if op is None:
                if held is not None:
                    self._remove(seq, held)
            elif held is None:
                self._add(op)
            else:
                self._renew(held, op)

    def _renew(self, held: _Held, op: Op) -> None:
        fresh = _looked_at(op)
        if (fresh.wrote, fresh.read, fresh.content) == (held.wrote, held.read, held.content):
            self._refused += fresh.refused - held.refused
            held.op, held.refused = op, fresh.refused
            self._sort(op.seq)
        else:
            self._remove(op.seq, held)
            self._add(op)

    def _add(self, op: Op) -> None:
        held = self._held[op.seq] = _looked_at(op)
        self._refused += held.refused
        behind = self._records.add(op.seq, held.wrote, held.read)
        behind += self._contents.add(op.seq, held.content, ())
        for seq in (op.seq, *behind):
            self._sort(seq)

    def _remove(self, seq: int, held: _Held) -> None:
        _keep(self._sendable, seq, held.is_sendable, False)
        _keep(self._wanting, seq, held.is_wanting, False)
        freed = self._records.remove(seq, held.wrote, held.read)
        freed += self._contents.remove(seq, held.content, ())
        self._refused -= held.refused
        del self._held[seq]
        for item in freed:
            self._sort(item)

    def _sort(self, seq: int) -> None:
        """Into what can be sent, what needs bytes, and what waits for others."""
        held = self._held[seq]
        has_all = self._has_all(held)
        is_sendable = has_all and self._records.is_free(seq)
        is_wanting = not (has_all or held.refused) and self._contents.is_free(seq)
        _keep(self._sendable, seq, held.is_sendable, is_sendable)
        _keep(self._wanting, seq, held.is_wanting, is_wanting)
        held.is_sendable, held.is_wanting = is_sendable, is_wanting

    def _has_all(self, held: _Held) -> bool:
        return not held.refused and (not held.content or self._has_bytes(held.op))


def _looked_at(op: Op) -> _Held:
    wrote = frozenset(writes(op))
    content = (file_key(op.file), op.ino) if op.has_content else ()
    return _Held(op, wrote, frozenset(reads(op)) - wrote, content, bool(op.refused))


def _until_answered(held: _Held) -> frozenset[str]:
    """The records of which it holds back nothing once it is in the same batch. Where it hands a
    content on, only its answer tells which file later bytes belong to, or what they overtake."""
    return frozenset() if held.op.kind in ("retake", "replace") else held.wrote


def _keep(seqs: list[int], seq: int, was_in: bool, is_in: bool) -> None:
    if is_in and not was_in:
        insort(seqs, seq)
    elif was_in and not is_in:
        del seqs[bisect_left(seqs, seq)]


class Pace:
    """The hurry of those who wait: somebody waits for operations to be sent, or applications are at
    work. Seconds are those of a clock that only goes forward, nanoseconds the time of day."""

    def __init__(self) -> None:
        self.last_request = float("-inf")  # seconds: when an application last asked something
        # Origins of what somebody waits for: it does not linger, and is snapshotted though open.
        # None: everything.
        self._hurries: list[set[str] | None] = []
        self._begun: deque[float] = deque(maxlen=FEW)  # when the last uploads began

    @contextlib.contextmanager
    def expedited(self, origins: set[str] | None) -> Iterator[None]:
        self._hurries.append(origins)
        try:
            yield
        finally:
            self._hurries.remove(origins)

    @property
    def hurries(self) -> bool:
        """True if anybody waits for anything."""
        return bool(self._hurries)

    def is_hurried(self, op: Op) -> bool:
        return any(item is None or op.origin in item for item in self._hurries)

    def is_asked_for(self, op: Op) -> bool:
        """True if somebody waits for just this, and not for whatever there is."""
        return any(item is not None and op.origin in item for item in self._hurries)

    def is_busy(self, now: float) -> bool:
        return not self._hurries and now - self.last_request < BUSY_SECONDS

    def lingers(self, op: Op, now_ns: int) -> bool:
        """True if it may still be folded away."""
        return not op.sent and not self.is_hurried(op) and is_younger(op, LINGER_NS, now_ns)

    def began(self, now: float) -> None:
        """An upload did."""
        self._begun.append(now)

    def _are_few(self, count: int, now: float) -> bool:
        """True if those that wait, and those that went a moment ago, are so few that they need not.
        A program that waits for the disk at each file lets each go before it makes the next."""
        is_stream = len(self._begun) == FEW and now - self._begun[0] < STREAM_SECONDS
        return count <= FEW and not is_stream

    def most_uploads(self, ops: Iterable[Op], count: int, now: float, now_ns: int) -> int:
        """The number of uploads that may be under way now; `ops` are the `count` that wait, in
        order."""
        if not self.is_busy(now):
            return UPLOADS
        if self._are_few(count, now):
            return UPLOADS_WHEN_BUSY
        oldest = next((op for op in ops if not op.refused), None)
        is_burst = oldest is not None and is_younger(oldest, BURST_NS, now_ns)
        return 0 if is_burst else UPLOADS_WHEN_BUSY


def share(size: int) -> int:
    """The number of the `SHARES` of one place that uploading a file of `size` bytes takes."""
    return max(1, min(SHARES, -(-size // SHARE_BYTES)))


def is_younger(op: Op, age_ns: int, now_ns: int) -> bool:
    """Was it made less than so long ago? What seems to be made in the future is not young: then the
    clock was set back since, and waiting until then might take years."""
    return 0 <= now_ns - op.made_ns < age_ns


def next_of_age(newest_first: Iterable[Op], looked_ns: int) -> int | None:
    """When the next of those that were too young at `looked_ns` is no more."""
    young = takewhile(lambda op: looked_ns - op.made_ns < LINGER_NS, newest_first)
    return min((op.made_ns + LINGER_NS for op in young), default=None)
