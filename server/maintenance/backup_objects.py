"""Stored objects on their way into a backup and out of one.

Knows: which objects a database speaks of, and the cheapest way from one local store to another.
Must not know: what else a backup consists of (`backup`).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Select, Table, bindparam, select, tuple_

from server import datadir
from server.durable import sync_directory
from server.metadata.db import Database
from server.metadata.schema import bundles, chunks
from server.storage.blobs import BlobKey, LocalBlobStore

_PIECE = 1 << 20
# Another file system, one without hard links, somebody else's file, too many of them.
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})


def _paged(table: Table, length: Column[int], needed: ColumnElement[bool]) -> Select[Any]:
    """A page of the objects that `table` speaks of."""
    key = tuple_(table.c.drive, table.c.id)
    return (
        select(
            table.c.drive,
            table.c.id,
            length.label("length"),
            table.c.sha256,
            needed.label("needed"),
        )
        .where(key > tuple_(bindparam("drive"), bindparam("id")))
        .order_by(table.c.drive, table.c.id)
        .limit(1000)
    )


# A chunk in a bundle needs no object of its own: a copy of it is made again when it is asked for.
_PAGES = (
    _paged(
        chunks,
        chunks.c.stored_length,
        chunks.c.state.in_(("uploaded", "doomed")) & chunks.c.bundle.is_(None),
    ),
    _paged(bundles, bundles.c.length, bundles.c.deleting == 0),
)


class Object(NamedTuple):
    """A stored object by the rows of a database; `needed`: it should be there."""

    key: BlobKey
    length: int
    sha256: bytes
    needed: bool


def objects_of(db: Database) -> Iterator[Object]:
    """The objects of which the database of a backup speaks, whose schema is that of this
    Nearline."""
    for query in _PAGES:
        yield from _told(db, query)


def _told(db: Database, query: Select[Any]) -> Iterator[Object]:
    drive, id = "", b""
    while True:
        with db.read() as conn:
            page = conn.execute(query, {"drive": drive, "id": id}).all()
        if not page:
            return
        for row in page:
            yield Object(BlobKey(row.drive, row.id), row.length, row.sha256, row.needed)
        drive, id = page[-1].drive, page[-1].id


@dataclass
class Copier:
    """Brings objects from one local store into another, by the cheapest way there is."""

    source: LocalBlobStore
    target: LocalBlobStore
    _directories: set[Path] = field(default_factory=set)

    def copy(self, wanted: Object) -> bool:
        """False: the source has it not, or not as it should be."""
        stored = self.source.stat(wanted.key)
        if stored is None or stored.length != wanted.length:
            return False
        final = self.target.path(wanted.key)
        if final.parent not in self._directories:
            datadir.make(final.parent)
            self._directories |= {final.parent, final.parent.parent, final.parent.parent.parent}
        final.unlink(missing_ok=True)
        return self._link(wanted.key, final) or self._read(wanted)

    def finish(self) -> None:
        """Make the names durable."""
        for directory in self._directories:
            sync_directory(directory)

    def _link(self, key: BlobKey, final: Path) -> bool:
        try:
            os.link(self.source.path(key), final)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        return True

    def _read(self, wanted: Object) -> bool:
        try:
            return self._copy_bytes(wanted)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False  # the disk has lost it

    def _copy_bytes(self, wanted: Object) -> bool:
        digest = hashlib.sha256()
        with self.source.open(wanted.key) as reader, self.target.create(wanted.key) as writer:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                writer.write(piece)
            return digest.digest() == wanted.sha256 and writer.commit()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
