"""The bound on the depth of a tree, as far as this machine knows it: the server refuses what is
deeper.

Knows: the bound, and that a tree is only looked at as far as that is quick. Must not know: what an
edit does (`edits`), the server's own bookkeeping.

No directory is more than `MAX_LEVELS` below its drive's root, and no path of one has more than
`MAX_PATH_BYTES`. Of a drive that others share, only what is below the shared directory is known
here; of directories that nobody listed, nothing. What the server refuses then stays in the journal
and is shown, like all that it refuses.

Concurrency: synchronous, on the trio thread.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from cache.metadata.tree import Node, Tree
from remote.protocol.messages import MAX_LEVELS, MAX_PATH_BYTES

# Entries of a tree that moves which are looked at: some milliseconds.
LOOKED_AT = 5_000
# Levels that are climbed: trees of a time without a bound may be deeper than it.
_MOST = 16 * MAX_LEVELS


class Extent(NamedTuple):
    """Levels, and bytes of path, a slash before each name: from a root down to a directory, or from
    a directory down to the furthest below it."""

    levels: int
    size: int

    def and_then(self, name: str) -> Extent:
        return Extent(self.levels + 1, self.size + 1 + len(name.encode()))


def check_new(tree: Tree, parent: Node, name: str) -> None:
    """Raise OSError (ENAMETOOLONG) unless a directory may be made as `name` in `parent`."""
    _check(place(tree, parent).and_then(name), Extent(0, 0), Extent(0, 0))


def check_move(tree: Tree, node: Node, here: tuple[Node, str], there: tuple[Node, str]) -> None:
    """Raise OSError (ENAMETOOLONG) unless `node`, which is `here`, a directory and a name, may go
    `there`. What is no directory may go anywhere, and a directory where it is no deeper than it
    is."""
    if node.is_directory:
        before = place(tree, here[0]).and_then(here[1])
        after = place(tree, there[0]).and_then(there[1])
        if after.levels > before.levels or after.size > before.size:
            _check(after, below(tree, node), before)


def _check(there: Extent, under: Extent, before: Extent) -> None:
    levels = there.levels <= max(before.levels, MAX_LEVELS - under.levels)
    if not (levels and there.size <= max(before.size, MAX_PATH_BYTES - under.size)):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def place(tree: Tree, directory: Node) -> Extent:
    """Where a directory is in its drive, as far as the drive is known here."""
    row = tree.db.one(
        "WITH RECURSIVE up (ino, levels, size) AS ("
        " SELECT ?, 0, 0 UNION ALL"
        " SELECT entry.parent, up.levels + 1, up.size + 1 + length(CAST(entry.name AS BLOB))"
        " FROM up JOIN entry ON entry.ino = up.ino JOIN node ON node.ino = entry.ino"
        " WHERE node.drive = ? AND up.levels < ?"
        ") SELECT max(levels), max(size) FROM up",
        directory.ino,
        directory.drive,
        _MOST,
    )
    assert row is not None
    return Extent(row[0], row[1])


def below(tree: Tree, top: Node) -> Extent:
    """The reach of the directories below `top`, as far as a look shows."""
    found, left = Extent(0, 0), LOOKED_AT
    waiting = [(top.ino, Extent(0, 0))] if top.subdirs else []
    while waiting and left > 0:
        directory, here = waiting.pop()
        entries = tree.entries(directory, 0, left)
        left -= len(entries)
        for entry in entries:
            if entry.node.is_directory:
                inner = here.and_then(entry.name)
                found = Extent(max(found.levels, inner.levels), max(found.size, inner.size))
                if entry.node.subdirs:
                    waiting.append((entry.node.ino, inner))
    return found
