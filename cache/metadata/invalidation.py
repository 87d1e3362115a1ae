"""Things that the kernel must forget, once the transaction that made them untrue is in.

Knows: the port to the kernel, and that nothing may be told before the commit. Must not know: why
something changed.

Concurrency: synchronous, on the trio thread. `forget_*` are called inside transactions,
`tell` after the outermost one; a rollback forgets what was noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cache.metadata.database import Database


class Invalidator(Protocol):
    """Makes the kernel forget. Implemented by `mount`; calls return at once."""

    def forget_entry(self, parent: int, name: str, gone: int = 0) -> None:
        """The name means something else now, or nothing. `gone` is the inode that it meant, if no
        name will ever mean that again: programs that watch it are told."""

    def forget_attributes(self, ino: int) -> None:
        """The inode's attributes changed (never a regular file's size or mtime)."""

    def forget_content(self, ino: int) -> None:
        """The inode's bytes may not be read any more, also not from the kernel's page cache."""


class Invalidation:
    def __init__(
        self, db: Database, invalidator: Invalidator, is_gone: Callable[[int], bool]
    ) -> None:
        self._invalidator, self._is_gone = invalidator, is_gone
        self._noted: list[Callable[[], None]] = []
        db.on_rollback.append(self._noted.clear)

    def forget_entry(self, parent: int, name: str, meant: int = 0) -> None:
        """`meant` is the inode that had the name. Whether it is gone is known when everything has
        been applied: it may get another name, or lose its last one, by what follows."""

        def forget() -> None:
            gone = meant if meant and self._is_gone(meant) else 0
            self._invalidator.forget_entry(parent, name, gone)

        self._noted.append(forget)

    def forget_attributes(self, ino: int) -> None:
        self._noted.append(lambda: self._invalidator.forget_attributes(ino))

    def forget_content(self, ino: int) -> None:
        self._noted.append(lambda: self._invalidator.forget_content(ino))

    def tell(self) -> None:
        """Hand over everything noted so far."""
        noted, self._noted[:] = list(self._noted), []
        for item in noted:
            item()
