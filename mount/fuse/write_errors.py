"""Writes that were refused, for those whose close(2) must say so.

Knows: which handles are open for writing, and what each of them is to be told. Must not know: FUSE,
why a write was refused.

With the write-back cache a write is refused after write(2) has returned, and Linux hands it over
with any handle that is open for writing on the inode: nobody can say whose bytes they were. So each
that was open for writing then is told. Linux itself tells the *next* close of the file only, which
can be that of a child or of a reader (findings/a-child-takes-the-error-of-a-write.sh); at one that
it would let pass it asks us (FLUSH).

- Every close is told until the handle's last one: FLUSH comes for each duplicate of a descriptor,
  a child's also, so that to have told it once is not to have told the writer.
- No later write takes it back. The kernel has dropped what it could not hand over, and hands over
  whole pages: it is not to be seen whether the same bytes came again, or only their neighbours.
- A handle opened later is not told: there is nothing of its own that was lost.
- fsync(2) is not told from here. Linux tells it, once for each description that was open
  (errseq_t), and asks us (FSYNC) only after that: who makes room and tries again, as a database
  does with a file that it never closes, must be able to succeed.

Concurrency: on the trio thread; no awaits in here but those of a write that is watched.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class WriteErrors:
    def __init__(self) -> None:
        self._writers: dict[int, set[int]] = {}  # inode: handles open for writing; none is empty
        self._owed: dict[int, int] = {}  # handle: the first errno since it was opened

    def opened(self, ino: int, handle: int) -> None:
        """A handle that is open for writing."""
        self._writers.setdefault(ino, set()).add(handle)

    def released(self, ino: int, handle: int) -> None:
        """Nobody has it any more. Any handle may be given."""
        self._owed.pop(handle, None)
        writers = self._writers.get(ino, set())
        writers.discard(handle)
        if not writers:
            self._writers.pop(ino, None)

    @contextlib.contextmanager
    def watched(self, ino: int) -> Iterator[None]:
        """Around a write: its exception is remembered, by its errno or else as EIO, and raised."""
        try:
            yield
        except Exception as error:
            self._failed(ino, getattr(error, "errno", None) or errno.EIO)
            raise

    def _failed(self, ino: int, number: int) -> None:
        for handle in self._writers.get(ino, ()):
            self._owed.setdefault(handle, number)

    def check(self, handle: int) -> None:
        """At a close. Raises OSError with what was refused while the handle was open."""
        number = self._owed.get(handle)
        if number is not None:
            raise OSError(number, os.strerror(number))
