"""Directories that are being listed, and what the feed tells of them until the answer is in. Pure.

Knows: that records which come meanwhile are kept, and that there is a bound. Must not know: what a
record means (`merge`), how an answer is taken (`listing_merge`), what is asked.

Concurrency: synchronous, on the trio thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from remote.protocol.ids import FileId
from remote.protocol.messages import EntryRecord, FileRecord

# Records.
MAX_MEANWHILE = 10_000


class Meanwhile:
    """Records that the feed sends of a directory while it is being listed, and of files that are
    not known: they may be in it. Bounded: of more it is `is_incomplete`."""

    def __init__(self) -> None:
        self.entries: list[EntryRecord] = []
        self.files: dict[FileId, FileRecord] = {}
        self.is_incomplete = False

    def note(self, entry: EntryRecord, files: Mapping[FileId, FileRecord]) -> None:
        self.entries.append(entry)
        record = None if entry.file is None else files.get(entry.file)
        if record is not None:
            self.note_file(record)
        self._check()

    def note_file(self, record: FileRecord) -> None:
        before = self.files.get(record.id)
        if before is None or before.rev < record.rev:
            self.files[record.id] = record
        self._check()

    def newer(self, as_of: int) -> set[str]:
        """The names of which the feed has told something that came after a listing of `as_of`."""
        return {entry.name for entry in self.entries if entry.rev > as_of}

    def forget(self) -> None:
        """The feed cannot tell all that happened: keep nothing of it."""
        self.is_incomplete = True
        self.entries.clear()
        self.files.clear()

    def _check(self) -> None:
        if self.is_incomplete or len(self.entries) + len(self.files) > MAX_MEANWHILE:
            self.forget()


class Underway:
    """The listings that are under way, by the inode of the directory: one each."""

    def __init__(self) -> None:
        self._listings: dict[int, Meanwhile] = {}

    def __len__(self) -> int:
        return len(self._listings)

    def begin(self, ino: int) -> Meanwhile:
        """The directory is about to be asked for."""
        meanwhile = self._listings[ino] = Meanwhile()
        return meanwhile

    def end(self, ino: int, meanwhile: Meanwhile) -> None:
        """The answer is in, or none came. A listing that was begun since goes on."""
        if self._listings.get(ino) is meanwhile:
            del self._listings[ino]

    def newer(self, ino: int, as_of: int) -> set[str]:
        """As `Meanwhile.newer`, of the directory; nothing when it is not being listed."""
        meanwhile = self._listings.get(ino)
        return set() if meanwhile is None else meanwhile.newer(as_of)

    def note(self, ino: int, entry: EntryRecord, files: Mapping[FileId, FileRecord]) -> bool:
        """Keep a name in the directory, and the record of its file. False: it is not being
        listed."""
        meanwhile = self._listings.get(ino)
        if meanwhile is not None:
            meanwhile.note(entry, files)
        return meanwhile is not None

    def note_file(self, record: FileRecord) -> None:
        """Keep the record of a file that may be in any of them."""
        for meanwhile in self._listings.values():
            meanwhile.note_file(record)

    def forget(self) -> None:
        """The feed cannot tell all that happened: in none of them it is known."""
        for meanwhile in self._listings.values():
            meanwhile.forget()
