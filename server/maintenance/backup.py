"""Backups: a consistent copy of a data directory beside its running server.

Knows: what a backup consists of and when it is whole. Must not know: what the tables mean, and how
a backup comes back (`backup_restore`).

    DEST/backup.json          which state is the backup; written last, so without it there is none
    DEST/state-MOMENT/        the database and the keys of one moment
    DEST/blobs/               stored objects, as in the data directory

The order makes it consistent: the database first, in one piece; then the objects that it speaks
of, which nobody collects meanwhile (`lock.keeping`). A further backup into the same DEST copies
only new objects. Until its `backup.json` takes the place of the last one, that one is whole; then
what only the last one needed is removed.

Objects are never changed once they are there, so on one file system they are hard links; elsewhere
they are copied, compared with their SHA-256 on the way, and synced. An object that is missing or
damaged in the server is told, and does not keep the rest from being backed up; if an earlier backup
in DEST has it, it stays there, and a restore brings it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from server import datadir
from server.durable import sync_directory, write_private
from server.maintenance import gc, lock
from server.maintenance.backup_objects import Copier, objects_of, sha256_of
from server.metadata.db import HEAD, Database
from server.metadata.records import slices
from server.permissions import audit
from server.storage.blobs import LocalBlobStore

FORMAT = 1
DATABASE = "nearline.sqlite"
MANIFEST = "backup.json"
Progress = Callable[[int, int], None]


class BadBackup(RuntimeError):
    """There is no whole backup there, or it is not what it says."""


class Manifest(msgspec.Struct):
    """The content of `backup.json`. Hashes are SHA-256 in hex; `lost` are objects (DRIVE/CHUNK)
    that were missing or damaged in the server."""

    format: int
    schema: str
    at_ns: int
    state: str
    files: dict[str, str]
    objects: int
    bytes: int
    lost: list[str]


class Made(msgspec.Struct):
    """The result of a backup: `objects` and `bytes` are in it, of which `copied` are new."""

    objects: int = 0
    bytes: int = 0
    copied: int = 0
    removed: int = 0
    lost: list[str] = []


def make(data_dir: Path, dest: Path, progress: Progress = lambda _objects, _bytes: None) -> Made:
    """Back `data_dir` up into `dest`, which is made, or holds an earlier backup of it.

    Raises `BadBackup` if `dest` holds something else, `datadir.NotPrivate`.
    """
    _check_destination(data_dir, dest)
    with datadir.private():
        datadir.secure(dest)
        db = Database(data_dir / DATABASE)
        try:
            with _alone(dest):
                made = _make(db, data_dir, dest, progress)
            with db.write() as conn:
                detail = {"objects": made.objects, "bytes": made.bytes, "lost": len(made.lost)}
                audit.note(conn, None, "backup", None, time.time_ns(), **detail)
        finally:
            db.close()
    return made


def _make(db: Database, data_dir: Path, dest: Path, progress: Progress) -> Made:
    with lock.keeping(data_dir):
        now_ns = time.time_ns()
        state = _take_state(db, data_dir, dest, now_ns)
        made = _take_objects(data_dir, dest, state, progress)
    manifest = _manifest(state, made, now_ns)
    write_private(dest / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    sync_directory(dest)
    made.removed = _remove_others(dest, state)
    return made


@contextlib.contextmanager
def _alone(dest: Path) -> Iterator[None]:
    """Nobody else makes a backup there."""
    fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadBackup(f"another backup is being made into {dest}; wait for it") from None
        yield
    finally:
        os.close(fd)


def _check_destination(data_dir: Path, dest: Path) -> None:
    if dest.resolve().is_relative_to(data_dir.resolve()):
        raise BadBackup(f"{dest} is in the data directory itself; choose another place")
    ours = {MANIFEST, "blobs", "lost+found"}
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
    sync_directory(state / "keys")
    sync_directory(state)
    return state


def _take_objects(data_dir: Path, dest: Path, state: Path, progress: Progress) -> Made:
    """Every object that the database in `state` speaks of."""
    source, target = LocalBlobStore(data_dir / "blobs"), LocalBlobStore(dest / "blobs")
    target.sweep()
    made, copier = Made(), Copier(source, target)
    with contextlib.closing(Database(state / DATABASE, frozen=True)) as db:
        for wanted in objects_of(db):
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


def _manifest(state: Path, made: Made, now_ns: int) -> Manifest:
    files = {
        path.relative_to(state).as_posix(): sha256_of(path)
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
    """Remove objects that only earlier or interrupted backups needed; returns how many."""
    for other in dest.glob("state-*"):
        if other != state:
            shutil.rmtree(other)
    store, removed = LocalBlobStore(dest / "blobs"), 0
    db = Database(state / DATABASE, frozen=True)
    try:
        for some in slices(store.keys()):
            with db.read() as conn:
                removed += sum(store.delete(key) for key in gc.unknown(conn, some))
    finally:
        db.close()
    return removed
