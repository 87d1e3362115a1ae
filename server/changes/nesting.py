"""Which of the files that are shared with somebody are below others that are: worked out once.

Knows: how that is found, and until when it holds. Must not know: under which names shared files
appear (`views`), who may see what (`access`).

Every request for changes asks this, and others decide how much there is to ask of: so it is found
with one question for all, and remembered. What is remembered of one account and drive holds while
the same files are shared and nothing in the drive has moved (`drives.moved_seq`): both are read in
the asker's own snapshot, so an answer always fits it.

Concurrency: any thread. Memory is bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select

from server.metadata.schema import entries, files, grants

# Shared files of all accounts together that are remembered.
MAX_ROOTS = 100_000

_up = (
    select(entries.c.file, entries.c.parent)
    .join_from(grants, entries, grants.c.file == entries.c.file)
    .join(files, files.c.id == grants.c.file)
    .where(
        grants.c.account == bindparam("account"),
        files.c.drive.in_(bindparam("drives", expanding=True)),
    )
    .cte("up", recursive=True)
)
_up = _up.union(select(entries.c.file, entries.c.parent).join(_up, entries.c.file == _up.c.parent))
_UP = select(_up.c.file, _up.c.parent)


class _Found(NamedTuple):
    moved_seq: int
    roots: frozenset[str]
    nested: frozenset[str]


class Nesting:
    """See above."""

    def __init__(self, max_roots: int = MAX_ROOTS) -> None:
        self._max_roots = max_roots
        self._lock = threading.Lock()  # guards the two below
        self._known: OrderedDict[tuple[str, str], _Found] = OrderedDict()
        self._roots = 0

    def of(self, conn: Connection, account: str, rows: Iterable[Row[Any]]) -> set[str]:
        """Those of the shared files `rows` (`id`, `drive`, and the drive's `moved_seq`) that are
        below others of them."""
        roots: defaultdict[str, set[str]] = defaultdict(set)
        moved: dict[str, int] = {}
        for row in rows:
            roots[row.drive].add(row.id)
            moved[row.drive] = row.moved_seq
        found, unknown = set[str](), list[str]()
        for drive, ids in roots.items():
            if len(ids) == 1:
                continue  # there is nothing that it could be below
            known = self._recall(account, drive)
            if known is not None and known.moved_seq == moved[drive] and known.roots == ids:
                found |= known.nested
            else:
                unknown.append(drive)
        if unknown:
            below = _below(conn, account, unknown, set[str]().union(*roots.values()))
            for drive in unknown:
                nested = frozenset(roots[drive] & below)
                found |= nested
                self._note(account, drive, _Found(moved[drive], frozenset(roots[drive]), nested))
        return found

    def _recall(self, account: str, drive: str) -> _Found | None:
        with self._lock:
            known = self._known.get((account, drive))
            if known is not None:
                self._known.move_to_end((account, drive))
            return known

    def _note(self, account: str, drive: str, known: _Found) -> None:
        with self._lock:
            before = self._known.pop((account, drive), None)
            self._roots += len(known.roots) - (len(before.roots) if before is not None else 0)
            self._known[account, drive] = known
            while self._roots > self._max_roots:
                self._roots -= len(self._known.popitem(last=False)[1].roots)


def _below(conn: Connection, account: str, drives: list[str], roots: set[str]) -> set[str]:
    """Everything on the way from one of `roots` down to another."""
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for file, parent in conn.execute(_UP, {"account": account, "drives": drives}):
        inside[parent].append(file)
    found, waiting = set[str](), [root for root in roots if root in inside]
    while waiting:
        for file in inside.get(waiting.pop(), ()):
            if file not in found:
                found.add(file)
                waiting.append(file)
    return found
