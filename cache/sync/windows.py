"""Memory that files are cut in, used again while uploads go on.

Knows: buffers, and how many look into one. Must not know: files, chunks, when uploads rest (it is
told).

New memory costs as much as three times what reading into it does: every page is faulted in, and
cleared. What is large is therefore used again, and given back to the system as a whole when nothing
is being uploaded: an allocator would keep it.

Concurrency: trio thread only. Others may look into a window for as long as it is held for them.
"""

from __future__ import annotations

from mmap import mmap

from remote.transfer.limits import BufferPool

# Below it a buffer is not worth keeping.
SMALL = 1024 * 1024
KEEP_BYTES = 32 * 1024 * 1024


class Window:
    """`view` is there until `release` was called once, and once more for each `hold`."""

    def __init__(self, windows: Windows, buffer: mmap | bytearray, size: int) -> None:
        self._windows, self._buffer, self._holders = windows, buffer, 1
        self.view = memoryview(buffer)[:size]

    def hold(self) -> None:
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0 and isinstance(self._buffer, mmap):
            self._windows.give(self._buffer)


class Windows:
    def __init__(self) -> None:
        self._pool = BufferPool(KEEP_BYTES)

    def take(self, size: int) -> Window:
        """A window of `size` bytes with arbitrary content, held once. One that is never released
        is only not used again."""
        return Window(self, bytearray(size) if size < SMALL else self._pool.take(size), size)

    def give(self, buffer: mmap) -> None:
        """Nobody looks into it any more."""
        self._pool.give(buffer)

    def rest(self) -> None:
        """Let go of what nobody uses."""
        self._pool = BufferPool(KEEP_BYTES)
