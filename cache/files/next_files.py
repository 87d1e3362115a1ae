"""Small files that a program comes to next are fetched before it opens them.

Knows: how a sweep (`sweep`) becomes files, that many are located in one request and fetched within
the memory that `remote.transfer` gives to what nobody waits for. Must not know: how a sweep is
recognised, how bytes come.

A small file that is not here costs its reader two round trips. Files that are here, that are large
(they are read ahead by themselves) or that were written here want nothing, and cost a lookup.

Concurrency: trio thread only. `begun` is synchronous; `run` is the one task that fetches, and a
failure of it is nobody's: whoever reads the file asks again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Literal, Protocol

import structlog
import trio

from cache.files.sweep import GAP, Order, Place, Sweeps, Wanted
from cache.metadata.tree import Node, Tree
from remote.protocol.errors import NearlineError
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import MAX_WHOLE

SMALL_BYTES = 512 * 1024
MAX_ASKED = 4096  # versions of which it is remembered that they were fetched for a sweep
MAX_WAITING = 512  # files

_COLUMNS: dict[Order, Literal["cookie", "name"]] = {"readdir": "cookie", "name": "name"}

log = structlog.get_logger(__name__)


class WholeReader(Protocol):
    """The part of `cache.blocks.reader.Reader` that this module needs."""

    def is_here(self, version: VersionId) -> bool: ...

    async def fetch_whole(self, wanted: Sequence[tuple[FileId, VersionId]]) -> None: ...


class NextFiles:
    def __init__(self, tree: Tree, reader: WholeReader) -> None:
        self._tree, self._reader = tree, reader
        self._sweeps = Sweeps()
        self._asked: OrderedDict[VersionId, None] = OrderedDict()
        self._waiting: deque[tuple[FileId, VersionId]] = deque(maxlen=MAX_WAITING)
        self._wake = trio.Event()

    def begun(self, ino: int) -> None:
        """A file is read for the first time since it was opened."""
        node = self._tree.find(ino)
        if node is None or not _is_small(node) or not self._is_of_a_sweep(node):
            return
        place = self._tree.place(ino)
        if place is None:
            return
        directory, cookie, name = place

        def distance(order: Order, before: Place, now: Place) -> int | None:
            by = _COLUMNS[order]
            values = getattr(before, by), getattr(now, by)
            between = self._tree.count_between(directory, by, *values, GAP + 1)
            return between if 0 < between <= GAP else None

        wanted = self._sweeps.opened(directory, Place(cookie, name), distance)
        if wanted is not None:
            self._ask(directory, wanted)

    def entered(self, directory: int) -> None:
        """Somebody looks through the directory."""
        wanted = self._sweeps.entered(directory)
        if wanted is not None:
            self._ask(directory, wanted)

    def _is_of_a_sweep(self, node: Node) -> bool:
        """It is not here, or is here because it was fetched for a sweep."""
        assert node.version is not None
        if node.version in self._asked:
            del self._asked[node.version]
            return True
        return not self._reader.is_here(node.version)

    def _ask(self, directory: int, wanted: Wanted) -> None:
        by = _COLUMNS[wanted.order]
        most = 2 * wanted.most  # not all are small
        after = getattr(wanted.after, by)
        found = self._tree.entries_behind(directory, by, after, most)
        small = list(islice((one for one in found if _is_small(one.node)), wanted.most))
        last = small[-1] if len(small) == wanted.most else (found[-1] if found else None)
        ends = len(found) < most and len(small) < wanted.most
        place = None if last is None or ends else Place(last.cookie, last.name)
        self._sweeps.asked(directory, place, len(small))
        for one in small:
            node = one.node
            assert node.version is not None
            if not self._reader.is_here(node.version):
                self._asked[node.version] = None
                self._waiting.append((node.base_file or node.file, node.version))
        while len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)
        if self._waiting:
            self._wake.set()

    async def run(self) -> None:
        """Fetch, until cancelled."""
        while True:
            await self._wake.wait()
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(MAX_WHOLE, len(self._waiting)))]
                try:
                    await self._reader.fetch_whole(some)
                except NearlineError as problem:
                    log.debug("not_fetched_ahead", why=str(problem))
            self._wake = trio.Event()


def _is_small(node: Node) -> bool:
    """Of what the server has; what was written here is here."""
    return node.is_regular and node.version is not None and 0 < node.base_size <= SMALL_BYTES
