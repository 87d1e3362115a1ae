"""The findings of fsck, and the words in which it names them.

Knows: findings, paths and names of accounts for people. Must not know: what is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, Executable, bindparam, select

from server.metadata.schema import accounts, drives, entries, files, versions

# Directories in a path; each costs a question for each finding.
LEVELS_TOLD = 100


class Finding(msgspec.Struct):
    """Something that is wrong: `kind` for programs, `what` and `todo` for people.

    `path` is that of `file` in the drive of `account`; `chunk` is in hex. `repaired`: it was set
    right by this run."""

    kind: str
    what: str
    todo: str
    account: str | None = None
    path: str | None = None
    file: str | None = None
    version: str | None = None
    chunk: str | None = None
    repaired: bool = False


# Sets one finding right in a write transaction, looking again first. False: it could not.
Fix = Callable[[Connection], bool]


@dataclass
class Found:
    """A finding, and how it can be set right; no `fix`: only by a person."""

    finding: Finding
    fix: Fix | None = None


_DRIVE = (
    select(accounts.c.name, drives.c.root)
    .join_from(drives, accounts, drives.c.owner == accounts.c.id)
    .where(drives.c.id == bindparam("drive"))
)
_FILE = select(files.c.drive, files.c.trashed_parent, files.c.trashed_name).where(
    files.c.id == bindparam("file")
)
_ENTRY = (
    select(entries.c.parent, entries.c.name)
    .where(entries.c.file == bindparam("file"))
    .order_by(entries.c.parent, entries.c.name)
    .limit(1)
)
_HOLDERS = select(versions.c.file).where(versions.c.id == bindparam("version")).limit(1)


@dataclass
class Names:
    """Names things in the database of `conn`, remembering drives."""

    conn: Connection
    _drives: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def account(self, drive: str) -> str:
        """The name of the account that a drive is of."""
        return self._drive(drive)[0]

    def path(self, file: str) -> str:
        """Where `file` is in its drive; for people, so what is broken is named as far as known, and
        what is very deep from some directory on."""
        names: list[str] = []
        seen: set[str] = set()
        while file not in seen and len(names) < LEVELS_TOLD:
            seen.add(file)
            above = self._above(file)
            if above is None:
                break
            names.append(above[1])
            file = above[0]
        start = "" if self._is_root(file) else f"(file {file})"
        for name in reversed(names):
            start = f"{start}/{name}"
        return start or "/"

    def finding(
        self, kind: str, what: str, todo: str, file: str, version: str | None = None
    ) -> Finding:
        """A finding about a file."""
        row = self.conn.execute(_FILE, {"file": file}).first()
        account = self.account(row.drive) if row is not None else None
        return Finding(
            kind, what, todo, account=account, path=self.path(file), file=file, version=version
        )

    def holder(self, version: str) -> str | None:
        """A file that has `version` in its history."""
        return self.conn.execute(_HOLDERS, {"version": version}).scalar()

    def _drive(self, drive: str) -> tuple[str, str | None]:
        if drive not in self._drives:
            row = self.conn.execute(_DRIVE, {"drive": drive}).first()
            self._drives[drive] = (row.name, row.root) if row else (f"(drive {drive})", None)
        return self._drives[drive]

    def _is_root(self, file: str) -> bool:
        row = self.conn.execute(_FILE, {"file": file}).first()
        return row is not None and self._drive(row.drive)[1] == file

    def _above(self, file: str) -> tuple[str, str] | None:
        """The directory that `file` is or was in, and its name there."""
        entry = self.conn.execute(_ENTRY, {"file": file}).first()
        if entry is not None:
            return entry.parent, entry.name
        row = self.conn.execute(_FILE, {"file": file}).first()
        if row is None or row.trashed_parent is None or row.trashed_name is None:
            return None
        return row.trashed_parent, f"{row.trashed_name} (in the trash)"


def execute(statement: Executable) -> Fix:
    """Carries out a statement that says by itself what is wrong."""

    def fix(conn: Connection) -> bool:
        conn.execute(statement)
        return True

    return fix
