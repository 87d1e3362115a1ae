"""The memory of a process, by kind: resident alone says little, file pages are the page cache's.

Knows: /proc/PID/smaps_rollup (proc(5)). Must not know: whose process it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from bench.processes import family

SAMPLE_SECONDS = 0.25


class Memory(msgspec.Struct, frozen=True):
    """Bytes resident. `anonymous`: its own, which nothing but the process gives back; `file`: pages
    of mapped files, which the kernel may take; `shared`: shared memory, buffers of pipes too."""

    anonymous: int = 0
    file: int = 0
    shared: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.anonymous + other.anonymous, self.file + other.file, self.shared + other.shared
        )


def parse(rollup: str) -> Memory:
    """Of the text of a smaps_rollup: shares of pages that several processes have (Pss)."""
    kib = {}
    for line in rollup.splitlines()[1:]:
        name, _, value = line.partition(":")
        kib[name] = int(value.split()[0])
    return Memory(kib["Pss_Anon"] << 10, kib["Pss_File"] << 10, kib["Pss_Shmem"] << 10)


def of(pids: Iterable[int]) -> Memory:
    """Of `pids` together; what ends meanwhile has none."""
    found = Memory()
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text:  # a process that is going has an empty one
            found += parse(text)
    return found


def by_part(pids: Mapping[str, int]) -> dict[str, Memory]:
    """Of each part of a peer, with the processes that it has started."""
    return {part: of(family(pid)) for part, pid in pids.items()}


class Peak:
    """The most anonymous memory of each part while this is open.

    Concurrency: a thread of its own samples; `anonymous` is read after it has ended."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self.anonymous: dict[str, int] = {}
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for part, found in by_part(self._pids()).items():
                self.anonymous[part] = max(self.anonymous.get(part, 0), found.anonymous)
            if self._done.wait(SAMPLE_SECONDS):
                return
