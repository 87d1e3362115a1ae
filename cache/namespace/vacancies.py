"""Names that a file has left a moment ago, and that a new one may fill: how editors save.

Knows: which name a file left by a rename, gave a second one to by a link, or has since it was
exchanged with another, when, and for how long that counts. Must not know: the tree, the journal,
what filling does (`edits`). Pure: the moment is an argument.

What people give out (links, shares), and what has a history, is the document of that name. Editors
that keep the old version as a backup rename it away (`f` to `f~`) and make a new `f`, or rename one
to it. So whatever fills a name within `WINDOW` after it was left takes the identity of the file
that left it. NTFS does the same for its short names and times of birth, for as long ("file system
tunneling", MaximumTunnelEntryAgeInSeconds). An exchange and the deletion of one of the two are a
rename over that one in two steps.

Invariants: a file has left one name at most, the first within the window; back at that name it has
left none. Exchanged again with the same one, it was never exchanged. At most `MOST` of each are
remembered, the newest.

Concurrency: synchronous, on the trio thread. What is remembered may be out of date:
whoever finds something looks whether it is still so.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from remote.protocol.ids import FileId

T = TypeVar("T")

WINDOW = 15.0
# A file that is renamed to the free name is an editor's if it is no older than this, in seconds: it
# may be large, and takes its time to be written.
NEW_SECONDS = 300.0
MOST = 4096

Place = tuple[int, str]  # a directory's inode, and a name


class Vacancy(NamedTuple):
    """`file`, of inode `ino`, has left `place`. `gone_on`: by a rename over a file that took its
    content."""

    file: FileId
    ino: int
    place: Place
    at: float
    gone_on: bool = False


class Exchanged(NamedTuple):
    """A file is at `here`, and `other` at `there`: each where the other one was before."""

    here: Place
    other: FileId
    there: Place
    at: float


def is_new(file: FileId, now_ns: int) -> bool:
    """Was it made a moment ago? Ids tell when (`remote.protocol.ids.uuid7`)."""
    return now_ns // 1_000_000 - (int(file, 16) >> 80) <= NEW_SECONDS * 1000


class Vacancies:
    def __init__(self) -> None:
        self._by_file: dict[FileId, Vacancy] = {}
        self._by_place: dict[Place, Vacancy] = {}
        self._backups: dict[FileId, tuple[Place, float]] = {}  # names that links made
        self._exchanged: dict[FileId, Exchanged] = {}

    def left(self, vacancy: Vacancy) -> None:
        """A file was renamed."""
        known = self._by_file.get(vacancy.file)
        if known is not None and vacancy.at - known.at <= WINDOW:
            vacancy = known._replace(ino=vacancy.ino, gone_on=vacancy.gone_on)
        self._drop(known)
        self._drop(self._by_place.get(vacancy.place))
        if len(self._by_file) >= MOST:
            self._drop(next(iter(self._by_file.values())))
        self._by_file[vacancy.file] = self._by_place[vacancy.place] = vacancy

    def find(self, place: Place, now: float) -> Vacancy | None:
        """The vacancy that a file left at this name a moment ago."""
        found = self._by_place.get(place)
        return found if found is not None and now - found.at <= WINDOW else None

    def filled(self, place: Place) -> None:
        """The name means something again."""
        self._drop(self._by_place.get(place))

    def linked(self, file: FileId, backup: Place, now: float) -> None:
        """`file` was given a second name."""
        _remember(self._backups, file, (backup, now))

    def backup_of(self, file: FileId, now: float) -> Place | None:
        """The second name that the file was given a moment ago."""
        place, at = self._backups.get(file, (None, 0.0))
        return place if now - at <= WINDOW else None

    def exchanged(self, one: FileId, here: Place, other: FileId, there: Place, now: float) -> None:
        """`one` is at `here` now, where `other` was, and that one is at `there`, where it was."""
        before = self.exchange_of(one, now)
        if before is not None and before[:3] == (there, other, here):
            self._exchanged.pop(one)
            self._exchanged.pop(other, None)
            return
        _remember(self._exchanged, one, Exchanged(here, other, there, now))
        _remember(self._exchanged, other, Exchanged(there, one, here, now))

    def exchange_of(self, file: FileId, now: float) -> Exchanged | None:
        """With what the file was exchanged a moment ago."""
        found = self._exchanged.get(file)
        return found if found is not None and now - found.at <= WINDOW else None

    def _drop(self, vacancy: Vacancy | None) -> None:
        if vacancy is not None:
            del self._by_file[vacancy.file]
            del self._by_place[vacancy.place]


def _remember(table: dict[FileId, T], file: FileId, what: T) -> None:
    """As the newest in `table`."""
    table.pop(file, None)
    if len(table) >= MOST:
        del table[next(iter(table))]
    table[file] = what
