"""Memory by kind, of a process that does as it is told."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

from bench import memory
from bench.memory import Memory
from bench.processes import family

ROLLUP = """00400000-7ffd5000 ---p 00000000 00:00 0                          [rollup]
Rss:                1000 kB
Pss:                 900 kB
Pss_Dirty:           300 kB
Pss_Anon:            300 kB
Pss_File:            500 kB
Pss_Shmem:           100 kB
"""


def test_a_rollup_is_read_by_kind() -> None:
    assert memory.parse(ROLLUP) == Memory(300 << 10, 500 << 10, 100 << 10)


def test_what_is_mapped_from_a_file_is_not_anonymous(tmp_path: Path) -> None:
    size = 32 << 20
    file = tmp_path / "mapped"
    file.write_bytes(bytes(size))
    before = memory.of([os.getpid()])
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) == 0
        mapped = memory.of([os.getpid()])
    # On a file system in memory its pages are shared memory.
    assert mapped.file + mapped.shared - before.file - before.shared > size * 0.9
    assert mapped.anonymous - before.anonymous < size * 0.1


def test_a_process_that_is_gone_has_none_and_children_count() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in family(os.getpid())
    child.communicate(b"\n")
    assert memory.of([child.pid]) == Memory()
