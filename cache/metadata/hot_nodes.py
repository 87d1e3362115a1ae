"""Nodes that were used a moment ago: SQLite is not asked for the same row again and again. Making
one small file asks for its directory, and for itself, sixteen times.

Knows: which rows it has a copy of. Must not know: SQL, names, what a node is for.

Whoever asks gets a copy of its own: callers keep nodes while they change rows, and some change
what they were given.

Concurrency: trio thread only, no awaits. `Tree` alone uses it, and alone writes rows of `node`
while there is one: each of its statements that does so tells here, in the same step, what it
changed, or that it does not know (`clear`). A transaction that is rolled back clears it.

Invariant: what `get` returns is what the row says.
"""

from __future__ import annotations

import copy
from typing import Generic, Protocol, TypeVar


class HasInode(Protocol):
    ino: int


N = TypeVar("N", bound=HasInode)

# Rows, about half a kilobyte each.
MOST = 4096


class HotNodes(Generic[N]):
    """At most `most` rows; those that came first go first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._nodes: dict[int, N] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, ino: int) -> N | None:
        """A copy of the row; None when it is not here, which says nothing of the database."""
        node = self._nodes.get(ino)
        return None if node is None else copy.copy(node)

    def put(self, node: N) -> N:
        """The row was read, or written whole; returns what was given."""
        if node.ino not in self._nodes and len(self._nodes) >= self._most:
            del self._nodes[next(iter(self._nodes))]
        self._nodes[node.ino] = copy.copy(node)
        return node

    def changed(self, ino: int, fields: dict[str, object]) -> None:
        """These columns of a row have these values now."""
        node = self._nodes.get(ino)
        if node is not None:
            for name, value in fields.items():
                setattr(node, name, value)

    def drop(self, ino: int) -> None:
        """The row is gone, or has changed in a way that is not told."""
        self._nodes.pop(ino, None)

    def clear(self) -> None:
        """Anything may have changed."""
        self._nodes.clear()
