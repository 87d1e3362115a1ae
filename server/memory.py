"""Giving memory back to the system.

Knows: that CPython's collector counts objects and not bytes, and that glibc keeps what was freed
(malloc_trim(3), mallopt(3)). Must not know: what the memory was for.

Concurrency: any thread; everybody waits meanwhile, some tens of milliseconds.
"""

from __future__ import annotations

import ctypes
import gc

_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)
# glibc's; other systems give back by themselves, or not.
_set = getattr(_libc, "mallopt", None)
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
# From this size on a block is the system's again when it is freed. glibc's own value grows, up to
# 32 MiB, to the size of whatever is freed; one that is set stays.
LARGE_BYTES = 2 << 20


def keep_little() -> None:
    """Share one heap between all threads, so that memory which requests have used is given back.
    Before threads are started."""
    if _set is not None:
        _set(_M_ARENA_MAX, 1)
        _set(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Free what only refers to itself, and let the system have what is free."""
    gc.collect()
    if _trim is not None:
        _trim(0)


def keep_what_is_loaded() -> None:
    """Let the collector look only at what comes from now on: all that was imported stays anyway,
    and looking through it took 85 ms each time, in which nobody was answered (measured beside
    accounts that ask for much; 15 ms since)."""
    gc.collect()
    gc.freeze()
