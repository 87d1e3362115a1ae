"""Backups: a consistent copy of a data directory beside its running server, and back.

Knows: what a backup consists of and when it is whole. Must not know: what the tables mean, but for
epochs and which objects they need.

    DEST/backup.json          which state is the backup; written last, so without it there is none
    DEST/state-MOMENT/        the database and the keys of one moment
    DEST/blobs/               stored objects, as in the data directory

The order makes it consistent: the database first, in one piece; then the objects that it speaks
of, which nobody collects meanwhile (`datalock.keeping`). A further backup into the same DEST copies
only new objects. Until its `backup.json` takes the place of the last one, that one is whole; then
what only the last one needed is removed.

Objects are never changed once they are there, so on one file system they are hard links; elsewhere
they are copied, compared with their SHA-256 on the way, and synced. An object that is missing or
damaged in the server is told, and does not keep the rest from being backed up; if an earlier backup
in DEST has it, it stays there, and a restore brings it back.

A restored drive is older than what its clients have seen. Each gets a new epoch, so that every
cursor from before is answered `reset` and clients resync by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, select, tuple_, update

from server import audit, collect, datalock, fsck
from server.blobs import BlobKey, LocalBlobStore
from server.db import HEAD, Database
from server.keys import write_private
from server.records import pages
from server.schema import chunks, drives

FORMAT = 1
DATABASE = "nearline.sqlite"
_MANIFEST = "backup.json"
_PIECE = 1 << 20
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
"""Another file system, one without hard links, somebody else's file, too many of them."""
_PAGE = (
    select(chunks.c.drive, chunks.c.id, chunks.c.state, chunks.c.stored_length, chunks.c.sha256)
    .where(tuple_(chunks.c.drive, chunks.c.id) > tuple_(bindparam("drive"), bindparam("id")))
    .order_by(chunks.c.drive, chunks.c.id)
    .limit(1000)
)

Progress = Callable[[int, int], None]


class BadBackup(RuntimeError):
    """There is no whole backup there, or it is not what it says."""


class NotEmpty(RuntimeError):
    """A backup is restored into a new or empty directory only."""


class Manifest(msgspec.Struct):
    """What `backup.json` says. Hashes are SHA-256 in hex; `lost` are objects (DRIVE/CHUNK) that
    were missing or damaged in the server."""

    format: int
    schema: str
    at_ns: int
    state: str
    files: dict[str, str]
    objects: int
    bytes: int
    lost: list[str]


class Made(msgspec.Struct):
    """What a backup did: `objects` and `bytes` are in it, of which `copied` are new."""

    objects: int = 0
    bytes: int = 0
    copied: int = 0
    removed: int = 0
    lost: list[str] = []


class Restored(msgspec.Struct):
    """What a restore did: the moment of the backup, and what fsck says of what was brought back."""

    at_ns: int
    objects: int
    bytes: int
    checked: fsck.Report


class _Object(NamedTuple):
    """A stored object by the rows of a database; `needed`: it should be there."""

    key: BlobKey
    length: int
    sha256: bytes
    needed: bool


# --- backing up ---------------------------------------------------------------------------------


def make(data_dir: Path, dest: Path, progress: Progress = lambda _objects, _bytes: None) -> Made:
    """Back `data_dir` up into `dest`, which is made, or holds an earlier backup of it.

    Raises `BadBackup` if `dest` holds something else.
    """
    _check_destination(data_dir, dest)
    dest.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(data_dir / DATABASE)
    try:
        with datalock.keeping(data_dir):
            now_ns = time.time_ns()
            state = _take_state(db, data_dir, dest, now_ns)
            made = _take_objects(data_dir, dest, state, progress)
        manifest = _manifest(dest, state, made, now_ns)
        write_private(dest / _MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        _sync(dest)
        made.removed = _remove_others(dest, state)
        with db.write() as conn:
            detail = {"objects": made.objects, "bytes": made.bytes, "lost": len(made.lost)}
            audit.note(conn, None, "backup", None, time.time_ns(), **detail)
    finally:
        db.close()
    return made


def _check_destination(data_dir: Path, dest: Path) -> None:
    if dest.resolve().is_relative_to(data_dir.resolve()):
        raise BadBackup(f"{dest} is in the data directory itself; choose another place")
    ours = {_MANIFEST, "blobs"}
    for path in dest.iterdir() if dest.exists() else ():
        if path.name not in ours and not path.name.startswith("state-"):
            raise BadBackup(
                f"{dest} has a {path.name}, so it is no backup; choose another directory"
            )


def _take_state(db: Database, data_dir: Path, dest: Path, now_ns: int) -> Path:
    """The database and the keys as they are now; returns where they are."""
    moment = datetime.fromtimestamp(now_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%S")
    state = dest / f"state-{moment}-{secrets.token_hex(3)}"
    state.mkdir(mode=0o700)
    (state / "keys").mkdir(mode=0o700)
    db.copy_to(state / DATABASE)
    for key in sorted((data_dir / "keys").glob("*")):
        write_private(state / "keys" / key.name, key.read_bytes())
    with contextlib.suppress(FileNotFoundError):
        write_private(state / "kept.json", (data_dir / "kept.json").read_bytes())
    _sync(state / "keys")
    _sync(state)
    return state


def _take_objects(data_dir: Path, dest: Path, state: Path, progress: Progress) -> Made:
    """Every object that the database in `state` speaks of."""
    source, target = LocalBlobStore(data_dir / "blobs"), LocalBlobStore(dest / "blobs")
    target.sweep()
    made, copier = Made(), _Copier(source, target)
    for wanted in _objects(state / DATABASE):
        if not wanted.needed:
            continue
        stored = target.stat(wanted.key)
        if stored is None or stored.length != wanted.length:
            if not copier.copy(wanted):
                made.lost.append(f"{wanted.key.drive}/{wanted.key.chunk.hex()}")
                continue
            made.copied += 1
        made.objects, made.bytes = made.objects + 1, made.bytes + wanted.length
        progress(made.objects, made.bytes)
    copier.finish()
    return made


def _objects(database: Path) -> Iterator[_Object]:
    """What the database of a backup speaks of."""
    db = Database(database, frozen=True)
    try:
        drive, id = "", b""
        while True:
            with db.read() as conn:
                page = conn.execute(_PAGE, {"drive": drive, "id": id}).all()
            if not page:
                return
            for row in page:
                key, needed = BlobKey(row.drive, row.id), row.state in ("uploaded", "doomed")
                yield _Object(key, row.stored_length, row.sha256, needed)
            drive, id = page[-1].drive, page[-1].id
    finally:
        db.close()


def _manifest(dest: Path, state: Path, made: Made, now_ns: int) -> Manifest:
    files = {
        path.relative_to(state).as_posix(): _sha256(path)
        for path in sorted(state.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        format=FORMAT,
        schema=HEAD,
        at_ns=now_ns,
        state=state.name,
        files=files,
        objects=made.objects,
        bytes=made.bytes,
        lost=made.lost,
    )


def _remove_others(dest: Path, state: Path) -> int:
    """What only earlier or interrupted backups needed; returns how many objects."""
    for other in dest.glob("state-*"):
        if other != state:
            shutil.rmtree(other)
    store, removed = LocalBlobStore(dest / "blobs"), 0
    db = Database(state / DATABASE, frozen=True)
    try:
        for page in pages(store.keys()):
            with db.read() as conn:
                removed += sum(store.delete(key) for key in collect.unknown(conn, page))
    finally:
        db.close()
    return removed


# --- restoring ----------------------------------------------------------------------------------


def restore(
    source: Path, data_dir: Path, progress: Progress = lambda _objects, _bytes: None
) -> Restored:
    """Make `data_dir`, which is new or empty, what the backup in `source` says, and check it all.

    Raises `BadBackup`, `NotEmpty`, `DataTooNew`. What is interrupted is begun again in another
    directory: the database gets its name last, so a server never finds half of one.
    """
    manifest = _read_manifest(source)
    state = source / manifest.state
    _check_state(state, manifest)
    if data_dir.exists() and any(path.name != "lost+found" for path in data_dir.iterdir()):
        raise NotEmpty(f"{data_dir} is not empty; restore into a new directory")
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data_dir / "keys").mkdir(mode=0o700)
    for name in manifest.files:
        if name != DATABASE:
            write_private(data_dir / name, (state / name).read_bytes())
    blobs = _bring_objects(source, data_dir, state / DATABASE)
    copy = data_dir / f"{DATABASE}.restoring"
    write_private(copy, (state / DATABASE).read_bytes())
    report = _renew(copy, blobs, manifest, progress)
    copy.rename(data_dir / DATABASE)
    _sync(data_dir)
    return Restored(manifest.at_ns, manifest.objects, manifest.bytes, report)


def _read_manifest(source: Path) -> Manifest:
    path = source / _MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadBackup(
            f"{source} has no {_MANIFEST}: it is no backup, or the backup was interrupted;"
            " make it again, or use another one"
        ) from None
    except msgspec.MsgspecError as error:
        raise BadBackup(f"{path} cannot be read: {error}; use another backup") from error
    if manifest.format != FORMAT:
        message = f"{path} is of format {manifest.format}, this Nearline knows {FORMAT}; update it"
        raise BadBackup(message)
    return manifest


def _check_state(state: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = state / name
        if not path.is_file() or _sha256(path) != expected:
            raise BadBackup(f"{path} is missing or damaged; use another backup")


def _bring_objects(source: Path, data_dir: Path, database: Path) -> LocalBlobStore:
    """Everything that the backup has of what its database speaks of; fsck says what it has not."""
    blobs = LocalBlobStore(data_dir / "blobs")
    copier = _Copier(LocalBlobStore(source / "blobs"), blobs)
    for each in _objects(database):
        copier.copy(each)
    copier.finish()
    return blobs


def _renew(
    database: Path, blobs: LocalBlobStore, manifest: Manifest, progress: Progress
) -> fsck.Report:
    """Give every drive a new epoch, and look at everything."""
    db = Database(database)
    try:
        db.migrate()
        with db.write() as conn:
            for drive in conn.execute(select(drives.c.id)).scalars().all():
                fresh = {"epoch": secrets.token_hex(8)}
                conn.execute(update(drives).where(drives.c.id == drive).values(**fresh))
            detail = {"backup_at_ns": manifest.at_ns, "lost": len(manifest.lost)}
            audit.note(conn, None, "restore", None, time.time_ns(), **detail)
        return fsck.run(db, blobs, read_data=True, progress=progress)
    finally:
        db.close()


# --- objects from store to store ----------------------------------------------------------------


@dataclass
class _Copier:
    """Brings objects from one local store into another, by the cheapest way there is."""

    source: LocalBlobStore
    target: LocalBlobStore
    _directories: set[Path] = field(default_factory=set)

    def copy(self, wanted: _Object) -> bool:
        """False: the source has it not, or not as it should be."""
        stored = self.source.stat(wanted.key)
        if stored is None or stored.length != wanted.length:
            return False
        final = self.target.path(wanted.key)
        if final.parent not in self._directories:
            final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directories |= {final.parent, final.parent.parent, final.parent.parent.parent}
        final.unlink(missing_ok=True)
        return self._link(wanted.key, final) or self._read(wanted)

    def finish(self) -> None:
        """Make the names durable."""
        for directory in self._directories:
            _sync(directory)

    def _link(self, key: BlobKey, final: Path) -> bool:
        try:
            os.link(self.source.path(key), final)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return False
        return True

    def _read(self, wanted: _Object) -> bool:
        digest = hashlib.sha256()
        with self.source.open(wanted.key) as reader, self.target.create(wanted.key) as writer:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                writer.write(piece)
            return digest.digest() == wanted.sha256 and writer.commit()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
