"""The memory of the mount's process: few heaps, and large pieces given back to the system.

Knows: glibc's allocator (mallopt(3)) and CPython's collector. Must not know: what memory is for.
"""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
# From this size on a block is the system's again when it is freed. glibc's own value grows, up to
# 32 MiB, to the size of whatever is freed; one that is set stays. Smaller ones (a request of the
# kernel has 1 MiB) stay for the next: to have them from the system each time costs processor.
LARGE_BYTES = 2 << 20


def keep_little() -> None:
    """Share one heap between all threads, so that memory which transfers have used is given back.
    Before threads are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def keep_what_is_loaded() -> None:
    """Let the collector look only at what comes from now on: all that was imported stays anyway,
    and nobody is answered while it is looked through."""
    gc.freeze()
