"""System calls that wait for the network are given up when their caller is told to end.

Knows: the signals of a thread, from /proc/TID/status (proc(5)). Must not know: what is waited for.

The kernel tells a FUSE server of a signal by an INTERRUPT request, and then waits for the answer,
even of a caller that was killed: who does not answer makes `kill -9` hang. pyfuse3 does not pass
INTERRUPT on. But a signal that a waiting thread has not taken is *pending* until the call returns,
and the request says which thread waits. So the signals of those who wait are looked at, some times
a second, and the call answers EINTR once one is pending by which somebody wants the program to end.
Signals that mean anything else (a timer, a child's end, the size of a window, stopping) end no
wait: with SA_RESTART programs rely on never seeing EINTR for them, and FUSE cannot restart a call.

Only a signal that was pending at two looks counts: in a program of many threads another one may be
about to take it.

Reading is different. Who waits for a page that is being read waits in the kernel, where what kills
ends the wait at once and without us, as on any disk. Of other signals the kernel says nothing, nor
pyfuse3 who reads. That is taken to be who opened the file; we fail the request, the kernel
asks once more on behalf of who waits, and that failing too read(2) gives EINTR. But a page that is
touched through mmap and cannot be read is a SIGBUS. So nothing is done for a caller that has mapped
the file, nor for one whose mappings we may not see.

Concurrency: trio thread only. `CALLER` is set anew by each request that comes under
`watched`; what a request starts in another task must not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import trio

from cache.blocks.reader import Prefetch, Reader
from remote.protocol.ids import FileId, VersionId


class Caller(NamedTuple):
    """The thread that made a request, as this process's namespace numbers it (0: not known), and
    for a read the inode."""

    thread: int = 0
    ino: int = 0


NOBODY = Caller()
CALLER: ContextVar[Caller] = ContextVar("CALLER", default=NOBODY)

LOOK_SECONDS = 0.1
# A look takes about 40 us: many who wait must not cost a processor.
LOOK_SECONDS_EACH = 0.001


def _mask(*signals: signal.Signals) -> int:
    return sum(1 << number - 1 for number in signals)


# A fatal signal makes SIGKILL pending in every thread, but for those that leave a core file.
ENDING = _mask(
    signal.SIGKILL,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGXCPU,
)


@dataclass(eq=False)
class _Wait:
    caller: Caller
    scope: trio.CancelScope
    is_suspect: bool = False


class Interrupts:
    """One for a mount. Nothing is interrupted while `run` does not run."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._waits: set[_Wait] = set()
        self._somebody = trio.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Cancel the block, and raise InterruptedError (EINTR), when `CALLER` is told to end."""
        wait = _Wait(CALLER.get(), trio.CancelScope())
        if not wait.caller.thread:
            yield
            return
        self._waits.add(wait)
        self._somebody.set()
        try:
            with wait.scope:
                yield
        finally:
            self._waits.discard(wait)
        if wait.scope.cancelled_caught:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    async def run(self) -> None:
        """Look after those who wait, until cancelled."""
        while True:
            if not self._waits:
                self._somebody = trio.Event()
                await self._somebody.wait()
            await trio.sleep(max(LOOK_SECONDS, LOOK_SECONDS_EACH * len(self._waits)))
            for wait in list(self._waits):
                await self._look(wait)

    async def _look(self, wait: _Wait) -> None:
        thread, ino = self._proc / str(wait.caller.thread), wait.caller.ino
        ending = _is_ending(thread)
        if ending and wait.is_suspect and not (ino and await _may_map(thread, ino)):
            wait.scope.cancel()
        wait.is_suspect = ending


class InterruptibleReader:
    """Implements `cache.files.contents.VersionReader`: what must be fetched is waited for
    `watched`."""

    def __init__(self, reader: Reader, interrupts: Interrupts) -> None:
        self._reader, self._interrupts = reader, interrupts
        self.try_read = reader.try_read  # waits for nothing

    async def read(
        self,
        file: FileId,
        version: VersionId,
        size: int,
        offset: int,
        length: int,
        window: Prefetch | None = None,
    ) -> memoryview:
        with self._interrupts.watched():
            return await self._reader.read(file, version, size, offset, length, window)


def _is_ending(thread: Path) -> bool:
    status = _read(thread / "status")
    if "VmSize:" not in status:  # its memory is gone: it has only its files left to close
        return was_killed(_read(thread / "stat"))
    return is_told_to_end(status)


async def _may_map(thread: Path, ino: int) -> bool:
    """In a worker thread: where much is mapped this takes long."""
    return maps(await trio.to_thread.run_sync(_read, thread / "maps"), ino)


def is_told_to_end(status: str) -> bool:
    """True if the thread with this /proc/TID/status has such a signal pending, and lets it come."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    pending, shared, blocked = (int(fields.get(f, "0"), 16) for f in ("SigPnd", "ShdPnd", "SigBlk"))
    return bool((pending | shared) & ~blocked & ENDING)


def was_killed(stat: str) -> bool:
    """True if the thread with this /proc/TID/stat ends by a signal: the last field is its exit
    code as wait(2) has it. One that ends by itself still wants to know whether its files are safe:
    who waits for it relies on that."""
    return bool(stat) and bool(int(stat.split()[-1]) & 0x7F)


def maps(mappings: str, ino: int) -> bool:
    """True if some file of this inode number is mapped, or may be, by this /proc/TID/maps."""
    numbers = {line.split(maxsplit=5)[4] for line in mappings.splitlines()}
    return not numbers or str(ino) in numbers


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # it has ended meanwhile, or hides
        return ""
