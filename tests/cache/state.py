"""A device's durable state without a server: what tests of edits, merge and contents stand on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache.blocks.reader import Prefetch
from cache.device import Local
from cache.files.spool import Spool
from cache.metadata import clock
from cache.metadata.manifests import Manifests
from cache.metadata.operations import Op
from cache.metadata.tree import ROOT, Node
from cache.recovery.opening import open_database
from cache.recovery.power_loss import Losses, recover
from remote.protocol.messages import Change, Child, EntryRecord, FileRecord, Kind, Me

ROOT_FILE = "0" * 31 + "1"
_numbers = itertools.count(16)


def new_file() -> str:
    return f"{next(_numbers):032x}"


@dataclass
class Kernel:
    """An `Invalidator` that remembers what it was told."""

    entries: list[tuple[int, str]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    attributes: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)

    def forget_entry(self, parent: int, name: str, gone: int = 0) -> None:
        self.entries.append((parent, name))
        if gone:
            self.gone.append(gone)

    def forget_attributes(self, ino: int) -> None:
        self.attributes.append(ino)

    def forget_content(self, ino: int) -> None:
        self.contents.append(ino)


class Versions:
    """`contents.VersionReader` over a dict."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    def try_read(
        self, file: str, version: str, offset: int, length: int, window: Prefetch | None
    ) -> memoryview | None:
        return None

    async def read(
        self, file: str, version: str, size: int, offset: int, length: int, window: Prefetch | None
    ) -> memoryview:
        assert len(self.bytes[version]) == size
        return memoryview(self.bytes[version])[offset : offset + length]


class State(Local):
    """Everything of one device that is on disk, opened; `reopen` is the death of the process."""

    def __init__(
        self,
        directory: Path,
        *,
        on_rekey: Callable[[str, str], None] = lambda old, new: None,
        on_change: Callable[[int, int, int], None] = lambda ino, start, stop: None,
    ) -> None:
        self.directory, self.versions, self.boot = directory, Versions(), "1"
        self._on_rekey, self._on_change = on_rekey, on_change
        self.open()
        self.merge.adopt(
            Me(
                account="anna",
                device_id="d" * 32,
                drive="e" * 32,
                root=ROOT_FILE,
                cursor="0",
                seq=0,
                used_bytes=0,
                quota_bytes=None,
                now_ns=0,
            )
        )
        with self.db.transaction():
            self.tree.update(ROOT, listed=0)

    def open(self) -> None:
        self.kernel, self.in_use = Kernel(), set[int]()
        db = open_database(self.directory / "tree.sqlite", boot=self.boot)
        super().__init__(
            db,
            Spool(self.directory / "spool"),
            Manifests(db),
            self.versions,
            self.kernel,
            self.in_use.__contains__,
            on_rekey=self._on_rekey,
            on_change=self._on_change,
        )

    def close(self) -> None:
        self.spool.close()
        self.db.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def lose_power(self) -> Losses:
        """The machine stops, as things are now, and starts again."""
        self.close()
        self.boot += "1"
        db = open_database(self.directory / "tree.sqlite", boot=self.boot)
        assert db.lost_power
        losses = recover(db, self.directory / "spool")
        db.close()
        self.open()
        return losses

    def spool_files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "spool").iterdir())

    # --- local ------------------------------------------------------------------------------------

    def make(self, name: str, kind: Kind = "file", parent: int = ROOT) -> Node:
        target = "t" if kind == "symlink" else None
        return self.edits.create(parent, name, kind, 0o644, 1000, 1000, target=target)

    async def save(self, name: str, data: bytes = b"x", parent: int = ROOT) -> Node:
        node = self.make(name, parent=parent)
        await self.contents.write(node.ino, 0, data)
        return self.tree.node(node.ino)

    def tick(self) -> None:
        """Return when a change is seen by the times of a file from now on."""
        begun = clock.moment().stamp
        while clock.moment().stamp == begun:
            os.sched_yield()

    def unlink(self, name: str, parent: int = ROOT) -> None:
        node = self.tree.child(parent, name)
        assert node is not None
        self.edits.unlink(parent, name, directory=node.is_directory)

    def send(self, *ops: Op) -> None:
        """The operations leave: they may have reached the server."""
        with self.db.transaction():
            for op in ops or list(self.journal):
                self.journal.rewrite(op, sent=True)

    def ops(self) -> list[str]:
        """The journal as text: kind, and the names it speaks of."""
        return [
            " ".join(filter(None, (o.kind, o.body.name, o.body.new_name))) for o in self.journal
        ]

    def listing(self, parent: int = ROOT) -> dict[str, int]:
        return {entry.name: entry.node.ino for entry in self.tree.entries(parent, 0, 1000)}

    # --- remote -----------------------------------------------------------------------------------

    def record(self, **fields: object) -> FileRecord:
        known: dict[str, object] = {"id": new_file(), "kind": "file", "mode": 0o644}
        known |= {"mtime_ns": 1, "ctime_ns": 1, "rev": 1}
        if fields.get("kind", "file") == "file":
            known["version"] = new_file()
        return FileRecord(**(known | fields))  # type: ignore[arg-type]  # keys are its fields

    def entry(self, name: str, file: str | None, rev: int, parent: str = ROOT_FILE) -> EntryRecord:
        return EntryRecord(parent=parent, name=name, file=file, rev=rev)

    def change(self, seq: int, files: list[FileRecord], entries: list[EntryRecord]) -> Change:
        return Change(
            drive="e" * 32, seq=seq, at_ns=seq, device="other", files=files, entries=entries
        )

    def remote(self, seq: int, files: list[FileRecord], entries: list[EntryRecord]) -> None:
        """One change arrives by the feed."""
        self.merge.apply([self.change(seq, files, entries)], str(seq), seq, None)

    def born(
        self, name: str, seq: int = 1, parent: str = ROOT_FILE, **fields: object
    ) -> FileRecord:
        """Another device made a file."""
        record = self.record(rev=seq, **fields)
        self.remote(seq, [record], [self.entry(name, record.id, seq, parent)])
        return record

    def list_directory(self, ino: int, children: list[tuple[str, FileRecord]], as_of: int) -> None:
        directory = self.record(id=self.tree.node(ino).file, kind="directory", rev=as_of)
        parent = directory.id
        told = [Child(self.entry(name, one.id, one.rev, parent), one) for name, one in children]
        meanwhile = self.listing_merge.begin_listing(ino)
        self.listing_merge.list_some(ino, told, as_of)
        self.listing_merge.end_listing(ino, directory, told, as_of, meanwhile)

    def acknowledge(
        self, op: Op, seq: int, files: list[FileRecord], entries: list[EntryRecord]
    ) -> None:
        with self.db.transaction():
            self.merge.acknowledge(op, self.change(seq, files, entries))
        self.merge.after_commit()
