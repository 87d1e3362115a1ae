"""Has the kernel hand over what it holds of open files, and their writers pause for that moment.

Knows: which program does that, and when it is asked. Must not know: what is then done with the
files (`snapshots`).

fsync(2) on our own mount from this process could wedge it for ever: a thread that waits for its own
process's answer cannot be killed while pages are written back. So a child does it, which the end of
this process sets free.

Concurrency: one `run` task; `files` may be called by others meanwhile.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import structlog
import trio

from cache.files.snapshots import STEP_NS
from cache.metadata.journal import Journal
from cache.metadata.tree import Tree
from cache.sync.replayer import Replayer

log = structlog.get_logger(__name__)

# Paths given to one child.
AT_ONCE = 100


class WriteBack:
    def __init__(self, mountpoint: Path, tree: Tree, journal: Journal, replayer: Replayer) -> None:
        self._mountpoint, self._tree, self._journal = mountpoint, tree, journal
        self._replayer, self._snapshots = replayer, replayer.snapshots

    async def run(self) -> None:
        """Ask for the open files whose turn it is, until cancelled."""
        while True:
            await trio.sleep(STEP_NS / 1e9)
            await self._files(self._snapshots.to_ask())

    async def hand_over(self) -> None:
        """Return when everything that was written into open files is here."""
        await self._files(self._snapshots.open_inodes())

    async def open_files(self) -> None:
        """Return when everything that was written into open files is in a snapshot."""
        began = time.time_ns()
        with self._snapshots.hurry():
            await self._files(self._snapshots.open_inodes())
            while later := self._snapshots.put_off(began):
                await self._journal.changed.wait()
                ready = set(later) - set(self._snapshots.put_off(began))
                await self._files(list(ready))

    async def _files(self, inodes: list[int]) -> None:
        for start in range(0, len(inodes), AT_ONCE):
            some, began = inodes[start : start + AT_ONCE], time.time_ns()
            await self._sync(self._mountpoint / self._tree.path(ino) for ino in some)
            self._snapshots.asked(some, began)
        self._replayer.wake()

    async def _sync(self, paths: Iterable[Path]) -> None:
        command = ["sync", "--", *map(str, paths)]  # coreutils: fsync of each
        done = await trio.run_process(
            command, check=False, stdout=subprocess.DEVNULL, capture_stderr=True
        )
        if done.returncode:  # one was renamed or deleted in between, or may not be opened
            why = done.stderr.decode(errors="replace").strip()
            log.info("not_all_open_files_were_at_rest", why=why)
