"""Memory of a transfer is the system's again, though something small was allocated after it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Once something of 20 MiB was freed, glibc by itself has blocks of 4 MiB in its heap, which cannot
# shrink below what was allocated last.
SCRIPT = """
import ctypes
from pathlib import Path
{given}
libc = ctypes.CDLL(None)
if hasattr(libc, "mallopt"):
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.free(libc.malloc(20 << 20))
    blocks = [libc.malloc(4 << 20) for _ in range(16)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    small = libc.malloc(2000)
    for block in blocks:
        libc.free(block)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    print(int(rollup.partition("Anonymous:")[2].split()[0]) // 1024)
"""


@pytest.mark.parametrize("module", ["mount.process.memory", "server.memory"])
def test_what_is_large_is_given_back_when_it_is_freed(module: str) -> None:
    def anonymous(given: str) -> int:
        """In MiB; 0 where the C library is another."""
        command = [sys.executable, "-c", SCRIPT.format(given=given)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout or 0)

    kept = anonymous(f"import {module}")
    given = anonymous(f"import {module} as m; m.keep_little()")
    assert kept == 0 or given < kept - 40
