"""A change as somebody may see it who sees only a part of the drive. Pure.

Knows: what of a change is at or below one file, and how a file that left that part looks from
there: deleted. Must not know: who sees what, how ancestors are found.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from msgspec import structs

from remote.protocol.messages import Change, FileRecord


@dataclass(frozen=True)
class Touched:
    """Where a change happened, after it: `above` gives for every file that it speaks of the file
    itself and all directories above; `lost` are (directory, file) of entries that went."""

    above: dict[str, set[str]]
    lost: frozenset[tuple[str, str]]

    @classmethod
    def by(
        cls, change: Change, lost: Set[tuple[str, str]], ancestors: Callable[[str], set[str]]
    ) -> Touched:
        spoken_of = {record.id for record in change.files}
        spoken_of |= {entry.parent for entry in change.entries}
        return cls({file: ancestors(file) for file in spoken_of}, frozenset(lost))

    @property
    def directories(self) -> set[str]:
        """Everything at or above what was touched: the parts that must be told are among these. A
        file that moved out is found through the directory that it left."""
        return set[str]().union(*self.above.values())


def trimmed(change: Change, touched: Touched, root: str) -> Change:
    """The part of `change` that speaks of `root` and of what is below it."""
    inside = {file for file, above in touched.above.items() if root in above}
    left = {file for directory, file in touched.lost if directory in inside} - inside
    records = [record for record in change.files if record.id in inside]
    records += [_gone(record) for record in change.files if record.id in left]
    named = [entry for entry in change.entries if entry.parent in inside]
    return structs.replace(change, files=records, entries=named)


def _gone(record: FileRecord) -> FileRecord:
    """A file that is not to be seen any more, and nothing of what it is now."""
    return FileRecord(
        id=record.id,
        kind=record.kind,
        mode=0,
        mtime_ns=record.ctime_ns,
        ctime_ns=record.ctime_ns,
        links=0,
        rev=record.rev,
    )
