"""Directories that are known and were never listed: which of them a walk comes to next.

Knows: which directory holds which, as listings told. Must not know: the database, who asks, what is
in a directory beside directories. Pure.

Programs that walk a tree (find, ls -R, du, git status) come to everything below a directory, and
then to its neighbours. So what is below the directory that somebody came to is wanted first,
breadth first; and once a neighbour of it had been visited too, what is behind it.

It is a guess: what is not here is listed when somebody looks. Invariant: `_open` holds, for each
listed directory with something unlisted below it, those of its directories that are unlisted or
open themselves. Memory is bounded by forgetting everything.

Concurrency: of one task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

MAX_DIRECTORIES = 50_000


class Frontier:
    """Directories by inode number; in the order in which they were listed."""

    def __init__(self, most: int = MAX_DIRECTORIES) -> None:
        self._most = most
        self._open: dict[int, dict[int, None]] = {}
        self._parent: dict[int, int] = {}
        self._walked: dict[int, int] = {}  # which directory in this one was visited last

    def listed(self, directory: int, below: Iterable[int]) -> None:
        """`directory` was listed now, and holds the directories `below`."""
        found = dict.fromkeys(below)
        if len(self._parent) + len(found) > self._most:
            self._forget_all()
        if found:
            self._open[directory] = found
            for item in found:
                self._open.pop(item, None)  # it was listed once, and is not any more
                if self._parent.get(item, directory) != directory:
                    self.drop(item)  # moved: two that hold each other would be walked for ever
            self._parent.update(dict.fromkeys(found, directory))
        else:
            self.drop(directory)

    def drop(self, directory: int) -> None:
        """Nothing in it is wanted: it is listed to the bottom, gone, or too large to be guessed."""
        self._open.pop(directory, None)
        while (parent := self._parent.pop(directory, None)) is not None:
            held = self._open.get(parent)
            if held is None:
                return
            held.pop(directory, None)
            if held:
                return
            del self._open[parent]
            self._walked.pop(parent, None)
            directory = parent

    def next_after(self, visited: int, most: int) -> list[int]:
        """Up to `most` unlisted directories that whoever came to `visited` may come to next, the
        likeliest first."""
        parent = self._parent.get(visited)
        found = dict.fromkeys(islice(self._below(visited), most))
        last = visited if parent is None else self._walked.get(parent, visited)
        if parent is not None and last != visited and len(found) < most:
            behind = (item for item in self._below(parent, after=visited) if item not in found)
            found.update(dict.fromkeys(islice(behind, most - len(found))))
        return list(found)

    def visit(self, directory: int) -> None:
        """Somebody came to `directory`: its neighbours are wanted from the next one on."""
        parent = self._parent.get(directory)
        if parent is not None:
            self._walked[parent] = directory

    def _below(self, top: int, after: int = 0) -> Iterator[int]:
        """Unlisted directories below `top`, breadth first, of its own only those behind `after`."""
        waiting = deque([top])
        while waiting:
            held = self._open.get(waiting[0], ())
            for item in held:
                if waiting[0] == top and item <= after:
                    continue
                if item in self._open:
                    waiting.append(item)
                else:
                    yield item
            waiting.popleft()

    def _forget_all(self) -> None:
        self._open.clear()
        self._parent.clear()
        self._walked.clear()
