"""Backups beside a running server, again into the same place, and back."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from server.datadir import NotPrivate
from server.maintenance import admin, backup, gc, lock
from server.maintenance.backup import DATABASE, MANIFEST, BadBackup, Manifest
from server.maintenance.backup_objects import sha256_of
from server.maintenance.backup_restore import NotEmpty, restore
from server.maintenance.gc_chunks import Options
from server.maintenance.janitor import remembered
from server.metadata import schema
from server.metadata.db import Database
from server.storage.blobs import BlobKey, LocalBlobStore
from tests.server.conftest import Start
from tests.server.deleting import forget
from tests.server.harness import Client, Running, make_chunk, noise, run

TEXT, LATER = make_chunk(noise(3000, "text")), make_chunk(noise(2000, "later"))


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "backup"


@pytest.fixture
def served(start: Start) -> Running:
    return start(collect_seconds=0, keep_days=77)


def objects(place: Path) -> set[BlobKey]:
    return set(LocalBlobStore(place / "blobs").keys())


def content(client: Client, name: str) -> bytes:
    """The bytes of a small file, by a signed URL."""
    file = client.children()[name]
    [chunk] = client.locate(file=file.id, version=file.version, chunks=[TEXT.id]).chunks
    return client.http.get(chunk.url).content


def test_everything_comes_back(served: Running, dest: Path, tmp_path: Path) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    anna.mkdir("folder")
    made = backup.make(served.data, dest)
    assert (made.objects, made.bytes, made.copied, made.lost) == (1, 3000, 1, [])
    served.stop()
    restored = restore(dest, tmp_path / "new")
    assert restored.checked.ok
    assert restored.checked.checked.bytes == 3000
    running = run(tmp_path / "new", keep_days=77)
    try:
        again = running.client()
        again.token = anna.token
        assert again.refresh().account == anna.me.account, "tokens work"
        assert set(again.children()) == {"text", "folder"}
        assert content(again, "text") == TEXT.data
        assert remembered(running.data).keep_days == 77
    finally:
        running.stop()


def age(backup_of: Path) -> None:
    """Make a backup what a Nearline before bundles would have made it."""
    path = backup_of / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    database = backup_of / manifest.state / DATABASE
    with contextlib.closing(sqlite3.connect(database)) as conn, conn:
        conn.execute("DROP INDEX ix_chunks_bundle")
        for column in ("bundle", "bundle_offset", "copied"):
            conn.execute(f"ALTER TABLE chunks DROP COLUMN {column}")
        conn.execute("DROP TABLE bundles")
        conn.execute("UPDATE alembic_version SET version_num = '0009'")
    files = manifest.files | {DATABASE: sha256_of(database)}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))


def test_a_backup_of_an_older_nearline_comes_back(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    served.account("anna").store("text", TEXT)
    backup.make(served.data, dest)
    age(dest)
    restored = restore(dest, tmp_path / "new")
    assert restored.checked.ok, restored.checked.findings
    assert objects(tmp_path / "new") == objects(dest)


def test_a_backup_goes_where_an_older_nearline_made_one(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    backup.make(served.data, dest)
    age(dest)
    anna.store("later", LATER)
    made = backup.make(served.data, dest)
    assert (made.objects, made.copied) == (2, 1)
    assert restore(dest, tmp_path / "new").checked.ok


def test_clients_from_after_the_backup_are_told_to_begin_anew(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    before = anna.refresh().cursor
    backup.make(served.data, dest)
    anna.mkdir("lost")
    after = anna.changes(before).cursor
    assert not anna.changes(after).reset
    served.stop()
    restore(dest, tmp_path / "new")
    running = run(tmp_path / "new")
    try:
        again = running.client()
        again.token = anna.token
        again.refresh()
        for cursor in (before, after):
            page = again.changes(cursor)
            assert page.reset
            assert not again.changes(page.cursor).reset
        again.mkdir("other")
        again.mkdir("more")
        assert again.changes(after).reset, "also when there are as many changes again"
    finally:
        running.stop()


def test_every_drive_has_a_new_epoch_and_the_log_says_why(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    served.account("anna")
    served.account("ben")
    backup.make(served.data, dest)
    restore(dest, tmp_path / "new")
    old, new = epochs(served.data), epochs(tmp_path / "new")
    assert old.keys() == new.keys()
    assert len({*old.values(), *new.values()}) == 4
    actions = [row["action"] for row in admin.read_audit(tmp_path / "new", None, None)]
    assert actions[-1] == "restore"


def epochs(data: Path) -> dict[str, str]:
    db = Database(data / "nearline.sqlite")
    with db.read() as conn:
        rows = conn.execute(select(schema.drives.c.id, schema.drives.c.epoch)).all()
    db.close()
    return {row.id: row.epoch for row in rows}


# --- again and again ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_backup_takes_what_is_new_and_drops_what_is_old(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    anna.store("gone", make_chunk(b"gone"))
    backup.make(served.data, dest)
    forget(anna, "gone")
    service = served.app.service
    gc.run(service.db, service.blobs, Options())
    doomed = gc.run(service.db, service.blobs, Options(), clock=lambda: 1 << 62)
    assert doomed.deleted == 1
    anna.store("later", LATER)
    again = backup.make(served.data, dest)
    assert (again.objects, again.copied, again.removed) == (2, 1, 1)
    assert objects(dest) == objects(served.data)
    assert len(list(dest.glob("state-*"))) == 1
    assert restore(dest, tmp_path / "new").checked.ok


def test_an_interrupted_backup_is_recognised(
    served: Running, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.account("anna").store("text", TEXT)
    break_off(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        backup.make(served.data, dest)
    with pytest.raises(BadBackup, match="interrupted"):
        restore(dest, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    backup.make(served.data, dest)
    assert restore(dest, tmp_path / "new").checked.ok


def test_an_interrupted_second_backup_leaves_the_first(
    served: Running, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    backup.make(served.data, dest)
    anna.store("later", LATER)
    break_off(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        backup.make(served.data, dest)
    restored = restore(dest, tmp_path / "new")
    assert restored.checked.ok
    assert restored.objects == 1


def break_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next backup ends just before it would be one."""

    def stop(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "_manifest", stop)


def test_objects_are_copied_where_they_cannot_be_linked(
    served: Running, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.account("anna").store("text", TEXT)
    [key] = objects(served.data)
    here = LocalBlobStore(served.data / "blobs").path(key)
    real = os.link

    def link(source: Any, target: Any, **more: Any) -> None:
        if Path(source).parent.name != "incoming":
            raise OSError(errno.EXDEV, "another file system")
        real(source, target, **more)

    monkeypatch.setattr(os, "link", link)
    backup.make(served.data, dest)
    there = LocalBlobStore(dest / "blobs").path(key)
    assert there.read_bytes() == TEXT.data
    assert there.stat().st_ino != here.stat().st_ino
    assert restore(dest, tmp_path / "new").checked.ok


def test_nothing_is_collected_while_a_backup_is_made(served: Running, dest: Path) -> None:
    """A backup waits for a collection, and collectors leave it alone (test_janitor)."""
    served.account("anna").store("text", TEXT)
    done = threading.Event()

    def back_up() -> None:
        backup.make(served.data, dest)
        done.set()

    with lock.collecting(served.data):
        thread = threading.Thread(target=back_up)
        thread.start()
        assert not (dest / "backup.json").exists()
    thread.join(60)
    assert done.is_set()


def test_two_backups_into_one_place_do_not_meet(served: Running, dest: Path) -> None:
    dest.mkdir()
    with backup._alone(dest), pytest.raises(BadBackup, match="another backup"):
        backup.make(served.data, dest)


# --- damage -------------------------------------------------------------------------------------


def test_a_missing_object_is_told_and_the_rest_is_backed_up(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    anna.store("later", LATER)
    missing = BlobKey(anna.me.drive, LATER.id)
    LocalBlobStore(served.data / "blobs").delete(missing)
    made = backup.make(served.data, dest)
    assert made.lost == [f"{missing.drive}/{missing.chunk.hex()}"]
    restored = restore(dest, tmp_path / "new")
    assert [item.path for item in restored.checked.findings] == ["/later"]


def test_what_the_server_lost_later_is_still_in_the_backup(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    backup.make(served.data, dest)
    LocalBlobStore(served.data / "blobs").delete(BlobKey(anna.me.drive, TEXT.id))
    backup.make(served.data, dest)
    assert restore(dest, tmp_path / "new").checked.ok


def test_a_backup_that_rotted_is_noticed(served: Running, dest: Path, tmp_path: Path) -> None:
    anna = served.account("anna")
    anna.store("text", TEXT)
    backup.make(served.data, dest)
    path = LocalBlobStore(dest / "blobs").path(BlobKey(anna.me.drive, TEXT.id))
    path.unlink()
    path.write_bytes(noise(3000, "rotten"))
    restored = restore(dest, tmp_path / "new")
    assert [item.path for item in restored.checked.findings] == ["/text"]
    [database] = dest.glob("state-*/nearline.sqlite")
    with database.open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(BadBackup, match="damaged"):
        restore(dest, tmp_path / "other")


# --- where --------------------------------------------------------------------------------------


def test_only_into_an_empty_place(served: Running, dest: Path, tmp_path: Path) -> None:
    backup.make(served.data, dest)
    with pytest.raises(NotEmpty):
        restore(dest, served.data)
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    assert restore(dest, tmp_path / "disk").checked.ok, "a new file system is empty enough"


def test_a_backup_is_not_made_into_something_else(served: Running, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("all there is")
    for place in (tmp_path / "home", served.data / "backup", served.data):
        with pytest.raises(BadBackup, match="choose another"):
            backup.make(served.data, place)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_backup_of_a_later_nearline_is_refused(
    served: Running, dest: Path, tmp_path: Path
) -> None:
    backup.make(served.data, dest)
    manifest = msgspec.json.decode((dest / "backup.json").read_bytes())
    (dest / "backup.json").write_bytes(msgspec.json.encode(manifest | {"format": 2}))
    with pytest.raises(BadBackup, match="update it"):
        restore(dest, tmp_path / "new")


def test_secrets_in_a_backup_are_its_owners(served: Running, dest: Path) -> None:
    backup.make(served.data, dest)
    assert dest.stat().st_mode & 0o777 == 0o700
    keys = list(dest.glob("state-*/keys/*"))
    assert {key.name for key in keys} >= {"edge.pem", "put.secret", "cursor.secret"}
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_data_backup_and_what_is_restored_are_their_owners_alone(
    start: Start, dest: Path, tmp_path: Path, no_umask: None
) -> None:
    served = start(collect_seconds=0)
    served.account("anna").store("text", TEXT)
    for there in (dest, tmp_path / "new"):
        there.mkdir()
        there.chmod(0o755)
    backup.make(served.data, dest)
    restore(dest, tmp_path / "new")
    made = [
        path for top in (served.data, dest, tmp_path / "new") for path in (top, *top.rglob("*"))
    ]
    assert len(made) > 30
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_no_backup_is_made_where_others_write(served: Running, dest: Path, tmp_path: Path) -> None:
    dest.mkdir()
    dest.chmod(0o777)
    with pytest.raises(NotPrivate, match="others may write"):
        backup.make(served.data, dest)
    assert list(dest.iterdir()) == []
    dest.chmod(0o755)
    backup.make(served.data, dest)
    (tmp_path / "new").mkdir()
    (tmp_path / "new").chmod(0o777)
    with pytest.raises(NotPrivate, match="others may write"):
        restore(dest, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
