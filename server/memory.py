"""Giving memory back to the system.

Knows: that CPython's collector counts objects and not bytes, and that glibc keeps what was freed
(malloc_trim(3)). Must not know: what the memory was for.

Concurrency: any thread; everybody waits meanwhile, some tens of milliseconds.
"""

from __future__ import annotations

import ctypes
import gc

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other systems give back by themselves, or not."""


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
