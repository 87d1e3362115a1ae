"""Restoring a backup: a new data directory, every drive with a new epoch, all of it checked.

Knows: the order in which a data directory comes back. Must not know: how a backup is made
(`backup`, whose header says what it consists of).

A restored drive is older than what its clients have seen. With its new epoch every cursor from
before is answered `reset`, and clients resync by themselves.

The database gets its name last, and until then no server can start there: one would make a new,
empty one. What was interrupted is begun again in another directory.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from pathlib import Path

import msgspec
from sqlalchemy import select, update

from server import datadir
from server.durable import sync_directory, write_private
from server.maintenance import fsck, lock
from server.maintenance.backup import DATABASE, FORMAT, MANIFEST, BadBackup, Manifest, Progress
from server.maintenance.backup_objects import Copier, objects_of, sha256_of
from server.metadata.db import Database
from server.metadata.schema import chunks, drives
from server.permissions import audit
from server.storage.blobs import LocalBlobStore


class NotEmpty(RuntimeError):
    """A backup is restored into a new or empty directory only."""


class Restored(msgspec.Struct):
    """The result of a restore: the moment of the backup, and what fsck says of what was brought
    back."""

    at_ns: int
    objects: int
    bytes: int
    checked: fsck.Report


def restore(
    source: Path, data_dir: Path, progress: Progress = lambda _objects, _bytes: None
) -> Restored:
    """Make `data_dir`, which is new or empty, what the backup in `source` says, and check it all.

    Raises `BadBackup`, `NotEmpty`, `datadir.NotPrivate`, `lock.Served`, `db.DataTooNew`.
    """
    manifest = _read_manifest(source)
    _check_state(source / manifest.state, manifest)
    if data_dir.exists() and any(path.name != "lost+found" for path in data_dir.iterdir()):
        raise NotEmpty(f"{data_dir} is not empty; restore into a new directory")
    with datadir.private():
        datadir.secure(data_dir)
        with lock.unserved(data_dir):
            report = _bring_back(source, data_dir, manifest, progress)
    return Restored(manifest.at_ns, manifest.objects, manifest.bytes, report)


def _bring_back(
    source: Path, data_dir: Path, manifest: Manifest, progress: Progress
) -> fsck.Report:
    state = source / manifest.state
    (data_dir / "keys").mkdir(mode=0o700)
    for name in manifest.files:
        if name != DATABASE:
            write_private(data_dir / name, (state / name).read_bytes())
    copy = data_dir / f"{DATABASE}.restoring"
    datadir.make_file(copy)
    shutil.copyfile(state / DATABASE, copy)
    with contextlib.closing(Database(copy)) as db:
        db.migrate()  # the backup may be of an older Nearline
        blobs = _bring_objects(source, data_dir, db)
        report = _renew(db, blobs, manifest, progress)
    copy.rename(data_dir / DATABASE)
    sync_directory(data_dir)
    return report


def _read_manifest(source: Path) -> Manifest:
    path = source / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BadBackup(
            f"{source} has no {MANIFEST}: it is no backup, or the backup was interrupted;"
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
        if not path.is_file() or sha256_of(path) != expected:
            raise BadBackup(f"{path} is missing or damaged; use another backup")


def _bring_objects(source: Path, data_dir: Path, db: Database) -> LocalBlobStore:
    """Everything that the backup has of what its database speaks of; fsck says what it has not."""
    blobs = LocalBlobStore(data_dir / "blobs")
    copier = Copier(LocalBlobStore(source / "blobs"), blobs)
    for item in objects_of(db):
        copier.copy(item)
    copier.finish()
    return blobs


def _renew(
    db: Database, blobs: LocalBlobStore, manifest: Manifest, progress: Progress
) -> fsck.Report:
    """Give every drive a new epoch, and look at everything. Copies out of bundles are in no backup:
    they are made again."""
    with db.write() as conn:
        for drive in conn.execute(select(drives.c.id)).scalars().all():
            fresh = {"epoch": secrets.token_hex(8)}
            conn.execute(update(drives).where(drives.c.id == drive).values(**fresh))
        conn.execute(update(chunks).where(chunks.c.copied != 0).values(copied=0))
        detail = {"backup_at_ns": manifest.at_ns, "lost": len(manifest.lost)}
        audit.note(conn, None, "restore", None, time.time_ns(), **detail)
    return fsck.run(db, blobs, read_data=True, progress=progress)
