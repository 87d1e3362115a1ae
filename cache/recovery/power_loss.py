"""After power loss: what of the state can be believed, and what files go back to.

Knows: the rows that refer to spool files, how to tell whether the bytes are there. Must not know:
the objects that are made from these rows later (`contents`, `journal`), the network, FUSE.

What power loss leaves: the database as it was at some moment (SQLite's log keeps the order), spool
files with everything that was synced, and of the rest anything or nothing. So for each layer with
unsynced parts the digests decide (`unsynced.survivors`). A file that was written anew goes back to
what it was before when the new bytes are gone. A new file of which nothing is left stays, empty,
with its operation held: an empty file must not travel as if it had been saved.

The server may be ahead of the database: it may have answered what the journal does not know it
asked. So every operation counts as sent (it is not changed, and keeps its key), and what its answer
says about content is compared with ours (`Replayer._applied`): the server got it from this machine,
at the moment that the database came back to or later, so it has what is here or something newer.

Invariant: one transaction; a crash in the middle begins again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Row

import msgspec
import structlog

from cache.files.unsynced import digest, survivors
from cache.metadata.database import Database
from cache.metadata.intervals import IntervalSet, Range
from cache.metadata.operations import Body, new_id

log = structlog.get_logger(__name__)

HELD = (
    "power_loss: the machine stopped before its bytes were on the disk; write it again, or delete"
    " it, or retry to send it as it is"
)


@dataclass
class Losses:
    """Inodes by what became of them, and the snapshots that lost bytes."""

    shortened: set[int] = field(default_factory=set)  # what was written last is gone
    gone_back: set[int] = field(default_factory=set)  # as before they were written anew
    held: set[int] = field(default_factory=set)  # new, and nothing is left


def recover(db: Database, spool: Path) -> Losses:
    """Bring the state to what the disk can prove. Once, before anything else reads it."""
    losses = Losses()
    with db.transaction():
        layers = [row["layer"] for row in db.all("SELECT DISTINCT layer FROM unsettled")]
        lost = {layer: gone for layer in layers if (gone := _lost_of(db, spool, layer))}
        # First whatever comes back is where it was, the newest before what it had replaced.
        for layer in sorted(lost, reverse=True):
            _go_back_from(db, layer, losses)
        for layer in sorted(lost):  # a frozen one before the open one above it
            _cut_lost(db, layer, lost[layer], losses)
        db.run("DELETE FROM unsettled")
        db.run("UPDATE op SET sent = 1 WHERE refused IS NULL")
        for ino in losses.shortened | losses.gone_back:
            _go_on(db, ino, losses)
        for row in db.all("SELECT seq, body FROM op WHERE kind IN ('create', 'write')"):
            _mark(db, row)
        db.trust()
    db.sync_now()
    for name, inodes in vars(losses).items():
        if inodes:
            log.warning("the_machine_stopped", files=len(inodes), became=name)
    return losses


def _lost_of(db: Database, spool: Path, layer: int) -> list[Range]:
    parts = db.all("SELECT start, stop, digest FROM unsettled WHERE layer = ?", layer)
    return _lost(spool / f"{layer}.layer", [tuple(part) for part in parts])


def _in_use(db: Database, layer: int) -> Row | None:
    """Not one whose place another layer has taken for good, or that is gone already."""
    return db.one("SELECT * FROM layer WHERE id = ? AND ino != 0", layer)


def _go_back_from(db: Database, layer: int, losses: Losses) -> None:
    row = _in_use(db, layer)
    if row is not None and row["instead"] is not None:
        _go_back(db, row["ino"], layer, row["instead"])
        losses.gone_back.add(row["ino"])


def _cut_lost(db: Database, layer: int, lost: list[Range], losses: Losses) -> None:
    row = _in_use(db, layer)
    if row is not None:
        kept, size = survivors(_extents(db, layer), row["size"], row["safe"], lost)
        _shorten(db, row, kept, size)
        losses.shortened.add(row["ino"])


def _extents(db: Database, layer: int) -> IntervalSet:
    rows = db.all("SELECT start, stop FROM extent WHERE layer = ?", layer)
    return IntervalSet((row["start"], row["stop"]) for row in rows)


def _lost(file: Path, parts: list[tuple[int, int, bytes]]) -> list[Range]:
    """The parts whose bytes are not what was written."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return [(start, stop) for start, stop, _ in parts]
    try:
        return [
            (start, stop)
            for start, stop, told in parts
            if digest(os.pread(descriptor, stop - start, start)) != told
        ]
    finally:
        os.close(descriptor)


def _go_back(db: Database, ino: int, layer: int, instead: int) -> None:
    """The layer never was, nor what was written over what it showed; what it took the place of
    comes back."""
    over = db.all("SELECT id FROM layer WHERE ino = ? AND id > ? AND below > 0", ino, layer)
    for gone in (layer, *(row["id"] for row in over)):
        for table, key in (("extent", "layer"), ("unsettled", "layer"), ("layer", "id")):
            db.run(f"DELETE FROM {table} WHERE {key} = ?", gone)
    if instead:
        db.run("UPDATE layer SET ino = ? WHERE id = ?", ino, instead)


def _shorten(db: Database, row: Row, kept: IntervalSet, size: int) -> None:
    """Cut the layer; one above it that shows bytes which are gone now ends where they began."""
    _rewrite(db, row["id"], kept, min(row["below"], size), size)
    above = "SELECT * FROM layer WHERE ino = ? AND id > ? AND below > ?"
    for upper in db.all(above, row["ino"], row["id"], size):
        extents = _extents(db, upper["id"])
        extents.cut(size)
        _rewrite(db, upper["id"], extents, size, min(upper["size"], size))


def _rewrite(db: Database, layer: int, extents: IntervalSet, below: int, size: int) -> None:
    db.run("DELETE FROM extent WHERE layer = ?", layer)
    for start, stop in extents:
        db.run("INSERT INTO extent VALUES (?, ?, ?)", layer, start, stop)
    columns = "below = ?, size = ?, safe = min(safe, ?)"
    db.run(f"UPDATE layer SET {columns} WHERE id = ?", below, size, size, layer)


def _go_on(db: Database, ino: int, losses: Losses) -> None:
    """The size, and the operations that carry what is left."""
    size = _size(db, ino)
    db.run("UPDATE node SET size = ? WHERE ino = ?", size, ino)
    if size == 0:
        held = db.run(
            "UPDATE op SET refused = ?, sent = 0"
            " WHERE ino = ? AND kind = 'create' AND refused IS NULL",
            HELD,
            ino,
        )
        if held.rowcount:
            losses.held.add(ino)
    for row in db.all("SELECT seq, version FROM op WHERE ino = ? AND version IS NOT NULL", ino):
        _renew(db, row)


def _size(db: Database, ino: int) -> int:
    row = db.one("SELECT size FROM layer WHERE ino = ? ORDER BY id DESC LIMIT 1", ino)
    row = row or db.one("SELECT base_size AS size FROM node WHERE ino = ?", ino)
    return 0 if row is None else int(row["size"])


def _renew(db: Database, op: Row) -> None:
    """Its content is not what its upload began with, which the server may have whole: so it is
    another version, of the snapshot if that is still there, else of what came back."""
    fresh: str | None = new_id()
    moved = db.run("UPDATE layer SET version = ? WHERE version = ?", fresh, op["version"])
    fresh = fresh if moved.rowcount else None
    db.run("UPDATE op SET version = ? WHERE seq = ?", fresh, op["seq"])


def _mark(db: Database, op: Row) -> None:
    """Whatever the server has of it was sent by this machine at that moment or later."""
    body = msgspec.msgpack.decode(op["body"], type=Body)
    packed = msgspec.msgpack.encode(msgspec.structs.replace(body, before_loss=True))
    db.run("UPDATE op SET body = ? WHERE seq = ?", packed, op["seq"])
