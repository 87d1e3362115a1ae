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
from typing import Literal, Protocol

import structlog
import trio

from cache.files.sweep import FRONT, GAP, Order, Place, Sweeps, Wanted
from cache.metadata.damage import DamagedState
from cache.metadata.tree import Node, Tree
from remote.protocol.errors import NearlineError
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import MAX_WHOLE

SMALL_BYTES = 512 * 1024
# Versions of which it is remembered that they were fetched for a sweep.
MAX_ASKED = 4096
# Files.
MAX_WAITING = 512
# Entries of a directory, for the next files in it.
LOOKED_AT = 128
# Gone through for one window.
MAX_DIRECTORIES = 16
MAX_CLIMB = 8

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
        if node is None or not _is_small(node):
            return
        assert node.version is not None
        asked = node.version in self._asked
        if not asked and self._reader.is_here(node.version):
            return
        self._asked.pop(node.version, None)
        place = self._tree.place(ino)
        if place is None:
            return
        directory, cookie, name = place

        def distance(order: Order, before: Place, now: Place) -> int | None:
            by = _COLUMNS[order]
            values = getattr(before, by), getattr(now, by)
            between = self._tree.count_between(directory, by, *values, GAP + 1)
            return between if 0 < between <= GAP else None

        wanted = self._sweeps.opened(directory, Place(cookie, name), distance, asked=asked)
        if wanted is not None:
            self._ask(wanted)

    def entered(self, directory: int) -> None:
        """Somebody looks through the directory."""
        wanted = self._sweeps.entered(directory)
        if wanted is not None:
            self._ask(wanted)

    def _ask(self, wanted: Wanted) -> None:
        """Have files fetched behind the window, in its directory and in those that follow."""
        window, left = wanted.window, wanted.most
        directory, place = window.directory, window.place
        passed: list[int] = []
        while True:
            count, last = self._ask_in(directory, place, wanted.order, left)
            left -= count
            if last is not None or len(passed) == MAX_DIRECTORIES:
                break
            follows = self._following(directory, wanted.order)
            if follows is None or follows in passed:
                break
            directory, place, last = follows, FRONT, FRONT
            passed.append(directory)
        self._sweeps.asked(window, directory, last, wanted.most - left, passed)
        if self._waiting:
            self._wake.set()

    def _ask_in(
        self, directory: int, after: Place, order: Order, most: int
    ) -> tuple[int, Place | None]:
        """The number of files asked for, and the place of the last; None: there are no more behind
        them."""
        by = _COLUMNS[order]
        found = self._tree.entries_behind(directory, by, getattr(after, by), LOOKED_AT)
        count, last = 0, after
        for item in found:
            if count == most:
                return count, last
            last = Place(item.cookie, item.name)
            version = item.node.version
            if version is None or not _is_small(item.node):
                continue
            count += 1
            if not self._reader.is_here(version):
                self._asked[version] = None
                self._waiting.append((item.node.base_file or item.node.file, version))
        while len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)
        return count, last if len(found) == LOOKED_AT else None

    def _following(self, directory: int, order: Order) -> int | None:
        """The directory that a walk comes to next: the first in this one, else the one behind it,
        or behind what holds it."""
        by, after = _COLUMNS[order], FRONT
        for _ in range(MAX_CLIMB):
            found = self._tree.entries_behind(directory, by, getattr(after, by), LOOKED_AT)
            for item in found:
                if item.node.is_directory and item.node.listed is not None:
                    return item.node.ino
            place = self._tree.place(directory)
            if place is None:
                return None
            directory, after = place[0], Place(place[1], place[2])
        return None

    async def run(self) -> None:
        """Fetch, until cancelled."""
        while True:
            await self._wake.wait()
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(MAX_WHOLE, len(self._waiting)))]
                try:
                    await self._reader.fetch_whole(some)
                except DamagedState:
                    raise
                except (NearlineError, OSError) as error:  # OSError: a full disk
                    log.debug("not_fetched_ahead", why=str(error))
            self._wake = trio.Event()


def _is_small(node: Node) -> bool:
    """Of what the server has; what was written here is here."""
    return node.is_regular and node.version is not None and 0 < node.base_size <= SMALL_BYTES
