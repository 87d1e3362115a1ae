"""When a file that somebody has open for writing is uploaded: at moments when nobody writes.

Knows: which inodes are open for writing, how old what was written into them is. Must not know:
FUSE, how a snapshot travels (`uploader`), what else is to be sent (`schedule`).

A version must be the file as it was at one moment, and with the kernel's write-back cache this
process does not see moments: pages arrive in any order. There is one that it can see. While the
kernel handles fsync(2) it holds the inode's lock from before it writes back until FSYNC is answered
(`fuse_fsync` in Linux), so no write(2) comes in between: the file as it is here during FSYNC is the
file as its writers know it. So whoever fsyncs chooses the moment; and where nobody does, somebody
is sent to (`asker`). Stores through mmap are not held up by that lock.

Concurrency: synchronous, on the trio thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from cache.files.contents import Contents
from cache.metadata.journal import Journal
from cache.metadata.operations import Op
from cache.metadata.tree import Tree

# A file that is never closed is uploaded this often.
EVERY_NS = 30_000_000_000
# How often it is looked whether it is time.
STEP_NS = 10_000_000_000


class Snapshots:
    """`freeze(op)` makes what was written so far the operation's content; False: not now.
    `has_asker`: somebody fsyncs for those who do not."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        freeze: Callable[[Op], bool],
        *,
        has_asker: bool,
    ) -> None:
        self._tree, self._journal, self._contents = tree, journal, contents
        self._freeze, self._has_asker = freeze, has_asker
        self._writers: Counter[int] = Counter()  # inodes open for writing, how often
        self._seen: dict[int, int] = {}  # when each was last opened or at rest
        self._given_up: set[int] = set()  # asking did not help
        self._hurry = 0

    def opened(self, ino: int) -> None:
        if not self._writers[ino]:
            self._seen[ino] = time.time_ns()
        self._writers[ino] += 1

    def closed(self, ino: int) -> bool:
        """True when nobody has it open for writing any more."""
        self._writers[ino] -= 1
        if self._writers[ino]:
            return False
        del self._writers[ino]
        del self._seen[ino]
        self._given_up.discard(ino)
        return True

    def is_open(self, ino: int) -> bool:
        return ino in self._writers

    def open_inodes(self) -> list[int]:
        return list(self._writers)

    def is_moving(self, op: Op) -> bool:
        """True if its content was written since the file was last at rest, and it can be at rest
        again."""
        is_open = op.has_content and op.version is None and op.ino in self._writers
        return is_open and self._has_asker and op.ino not in self._given_up

    def is_due(self, op: Op) -> bool:
        """True if a snapshot of an open file may be taken at this moment, because none is
        better."""
        return not self.is_moving(op) and _is_old(op.made_ns, EVERY_NS)

    def next_due_ns(self) -> int | None:
        """When `is_due` of some open file may change by time alone."""
        if not self._writers or (self._has_asker and not self._given_up):
            return None
        ops = filter(None, map(self._open_op, self._writers))
        return min((op.made_ns + EVERY_NS for op in ops), default=None)

    def to_ask(self) -> list[int]:
        """The open inodes that should be at rest for a moment now: what was written into them is
        old, or nobody knows whether something was."""
        found = []
        for ino in self._writers:
            op = self._open_op(ino)
            since = self._seen[ino] if op is None else op.made_ns
            if _is_old(since, EVERY_NS - STEP_NS) and self._contents.frozen(ino) is None:
                found.append(ino)
        return found

    def put_off(self, before_ns: int) -> list[int]:
        """The open inodes that were written before then, and could not be frozen because an earlier
        snapshot of theirs is still on its way."""
        ops = filter(None, map(self._open_op, self._writers))
        written = {op.ino for op in ops if op.made_ns < before_ns}
        return [ino for ino in written if self._contents.frozen(ino) is not None]

    def at_rest(self, ino: int, *, now: bool = False) -> None:
        """Everything that was written is here, and nobody writes before this returns. `now`: a
        snapshot is wanted, however young what was written is."""
        op = self._open_op(ino)
        if ino in self._seen:
            self._seen[ino] = time.time_ns()
        if op is None or self._contents.frozen(ino) is not None:
            return
        if now or self._hurry or _is_old(op.made_ns, EVERY_NS - STEP_NS):
            self._freeze(self._journal.first_content(op))

    def asked(self, inodes: Iterable[int], since_ns: int) -> None:
        """They were asked for. What was not at rest then never will be, that way: its name is gone,
        or the file may not be opened by us."""
        self._given_up |= {ino for ino in inodes if self._seen.get(ino, since_ns) < since_ns}

    def hurry(self) -> Hurry:
        """While entered, every rest is a moment for a snapshot."""
        return Hurry(self)

    def _open_op(self, ino: int) -> Op | None:
        node = self._tree.find(ino)
        return None if node is None else self._journal.open_content(node.file, ino)


def _is_old(then_ns: int, age_ns: int) -> bool:
    """True if `then_ns` is `age_ns` ago, or in the future: then the clock was set back since."""
    return not 0 <= time.time_ns() - then_ns < age_ns


class Hurry:
    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def __enter__(self) -> None:
        self._snapshots._hurry += 1

    def __exit__(self, *_: object) -> None:
        self._snapshots._hurry -= 1
