"""fsck: healthy data has nothing to say; damage is found, named, and repaired if it can be."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remote.protocol.messages import Content, Replace, Revert, Write
from server.maintenance import admin, fsck
from server.maintenance.fsck import Report
from server.metadata.db import Database
from server.storage.blobs import BlobKey, LocalBlobStore
from tests.server.deleting import forget, unlink
from tests.server.harness import Chunk, make_chunk, manifest_of, new_id, noise, run

TEXT = make_chunk(noise(3000, "text"))
NEWER = make_chunk(noise(2000, "newer"))
TRASHED = make_chunk(noise(1000, "trashed"))


@dataclass
class Data:
    """A data directory, its server stopped, and what is in it."""

    path: Path
    account: str
    drive: str
    root: str
    folder: str
    file: str
    versions: list[str]
    trashed: str

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """Change or ask the database behind everybody's back."""
        with closing(sqlite3.connect(self.path / "nearline.sqlite")) as conn:
            named = {"file": self.file, "folder": self.folder, "root": self.root}
            named |= {"drive": self.drive, "trashed": self.trashed, "new": self.versions[-1]}
            named |= {"old": self.versions[0], "text": TEXT.id, "newer": NEWER.id}
            rows = conn.execute(statement, named).fetchall()
            conn.commit()
            return rows

    def object(self, chunk: Chunk) -> Path:
        return LocalBlobStore(self.path / "blobs").path(BlobKey(self.drive, chunk.id))

    @contextmanager
    def opened(self) -> Iterator[tuple[Database, LocalBlobStore]]:
        db = Database(self.path / "nearline.sqlite")
        try:
            yield db, LocalBlobStore(self.path / "blobs")
        finally:
            db.close()

    def check(self, **options: bool) -> Report:
        with self.opened() as (db, blobs):
            return fsck.run(db, blobs, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Data that has seen everything that makes rows."""
    running = run(tmp_path_factory.mktemp("fsck") / "data")
    try:
        anna = running.account("anna")
        folder = anna.mkdir("docs")
        file, first = anna.store("a.txt", TEXT, parent=folder)
        second = new_id()
        anna.upload(second, file, NEWER)
        newer = Content(version=second, base=first, manifest=manifest_of(NEWER))
        anna.do(Write(file=file, content=newer, mtime_ns=2))
        anna.make("sym", kind="symlink", target="docs/a.txt", mode=0o777)
        trashed, _ = anna.store("gone", TRASHED)
        unlink(anna, "gone")
        saved, _ = anna.store("temporary", TEXT)
        target = anna.make("saved")
        root = anna.me.root
        places = {"parent": root, "name": "temporary", "new_parent": root, "new_name": "saved"}
        anna.do(Replace(file=saved, target=target, **places))
        third = new_id()
        anna.do(Revert(file=file, version=first, as_version=third, mtime_ns=3))
        anna.start(new_id(), new_id(), make_chunk(b"promised"))
        versions = [first, second, third]
        return Data(
            running.data, anna.me.account, anna.me.drive, root, folder, file, versions, trashed
        )
    finally:
        running.stop()


@pytest.fixture
def data(original: Data, tmp_path: Path) -> Data:
    shutil.copytree(original.path, tmp_path / "data")
    return Data(**(vars(original) | {"path": tmp_path / "data"}))


def test_healthy_data_has_nothing_to_say(original: Data) -> None:
    report = original.check(read_data=True)
    assert report.findings == []
    assert report.ok
    assert (report.checked.accounts, report.checked.chunks) == (1, 4)
    assert report.checked.bytes == 3000 + 2000 + 1000 + len(b"promised")


REPAIRABLE = {
    "how deep a tree is": ("depth", "UPDATE files SET below_levels = 0, below_bytes = 0"),
    "a wrong count of links": ("links", "UPDATE files SET links = 3 WHERE id = :file"),
    "links of what has no name": ("links", "UPDATE files SET links = 1 WHERE id = :trashed"),
    "an entry that vanished": ("links", "DELETE FROM entries WHERE file = :file"),
    "in the trash and not": ("trash", "UPDATE files SET trashed_ns = 5 WHERE id = :file"),
    "deleted from a directory, under no name": (
        "trash",
        "UPDATE files SET trashed_name = NULL WHERE id = :trashed",
    ),
    "used bytes": ("sums", "UPDATE drives SET used_bytes = 7"),
    "reserved bytes": ("sums", "UPDATE drives SET reserved_bytes = 0"),
    "bytes that are only asked for": ("sums", "UPDATE drives SET unshown_bytes = 7"),
    "promised chunks": ("sums", "UPDATE drives SET promised_chunks = 7"),
    "what an uploader holds": ("sums", "UPDATE uploaders SET asked_bytes = 7, sessions = 7"),
    "an uploader that was forgotten": ("sums", "DELETE FROM uploaders"),
    "an uploader that has nothing": (
        "sums",
        "INSERT INTO uploaders (drive, holder, sessions, asked_chunks, asked_bytes)"
        " VALUES (:drive, 'nobody', 0, 1, 1)",
    ),
    "only asked for although it is there": (
        "state",
        "UPDATE chunks SET unshown = 1 WHERE id = :text",
    ),
    "a reference that vanished": (
        "references",
        "DELETE FROM version_chunks WHERE version = :new",
    ),
    "a reference to another chunk": (
        "references",
        "UPDATE version_chunks SET chunk = :newer WHERE version = :new",
    ),
    "references of no version": (
        "references",
        "INSERT INTO version_chunks (version, drive, chunk) VALUES ('none', :drive, :text)",
    ),
    "doomed although referred to": (
        "state",
        "UPDATE chunks SET state = 'doomed', doomed_ns = 1 WHERE id = :text",
    ),
    "a current version that was superseded": (
        "superseded",
        "UPDATE versions SET superseded_ns = 5 WHERE id = :new",
    ),
    "an old version that was not": (
        "superseded",
        "UPDATE versions SET superseded_ns = NULL WHERE id = :old",
    ),
    "a session without a version": ("upload", "DELETE FROM versions WHERE status = 'uploading'"),
    "a version without a session": (
        "upload",
        "INSERT INTO versions (file, id, drive, status, size, mtime_ns, created_ns, device)"
        " SELECT file, 'none', drive, 'uploading', 0, 0, 0, device FROM versions WHERE id = :old",
    ),
}


@pytest.mark.parametrize("damage", REPAIRABLE)
def test_what_follows_from_the_rest_is_repaired(data: Data, damage: str) -> None:
    kind, statement = REPAIRABLE[damage]
    data.sql(statement)
    before = data.sql("SELECT * FROM files ORDER BY id")
    found = data.check()
    assert kind in {item.kind for item in found.findings}
    assert not found.ok
    assert not any(item.repaired for item in found.findings)
    assert data.sql("SELECT * FROM files ORDER BY id") == before, "only looking changes nothing"
    assert data.check(repair=True).ok
    assert data.check().findings == []


HOPELESS = {
    "a manifest": ("manifest", "UPDATE versions SET manifest = x'00' WHERE id = :old"),
    "a fingerprint": (
        "manifest",
        "UPDATE versions SET fingerprint = zeroblob(32) WHERE id = :old",
    ),
    "a descriptor": ("descriptor", "UPDATE chunks SET descriptor = x'c0' WHERE id = :text"),
    "a descriptor of another": (
        "descriptor",
        "UPDATE chunks SET stored_length = 9 WHERE id = :text",
    ),
    "a size": ("file", "UPDATE files SET size = 5 WHERE id = :file"),
    "a version": ("file", "UPDATE files SET version = 'none' WHERE id = :file"),
    "no root": ("root", "UPDATE drives SET root = 'none'"),
    "a root that is no directory": ("root", "UPDATE drives SET root = :file"),
    "the head": ("feed", "UPDATE drives SET head_seq = head_seq + 1"),
    "a gap in the feed": ("feed", "DELETE FROM changes WHERE seq = 2"),
    "a loop": ("unreachable", "UPDATE entries SET parent = :folder WHERE file = :folder"),
    "a directory with two names": (
        "entry",
        "INSERT INTO entries (parent, name, file, rev) VALUES (:root, 'two', :folder, 1)",
    ),
    "a name below a file": (
        "entry",
        "INSERT INTO entries (parent, name, file, rev) VALUES (:trashed, 'x', :file, 1)",
    ),
    "a name with a slash": ("name", "UPDATE entries SET name = 'a/b' WHERE file = :file"),
    "no such file": (
        "database",
        "INSERT INTO entries (parent, name, file, rev) VALUES (:root, 'x', 'none', 1)",
    ),
    "no drive": (
        "account",
        "INSERT INTO accounts (id, name, name_key, password, created_ns)"
        " VALUES ('x', 'X', 'x', '', 0)",
    ),
}


@pytest.mark.parametrize("damage", HOPELESS)
def test_what_only_a_person_can_repair_is_said(data: Data, damage: str) -> None:
    kind, statement = HOPELESS[damage]
    data.sql(statement)
    for repair in (False, True):
        report = data.check(repair=repair)
        told = [item for item in report.findings if item.kind == kind and not item.repaired]
        assert told
        assert all(item.what and item.todo for item in told)
        assert not report.ok


def test_a_file_without_a_name_can_be_had_back_from_the_trash(data: Data) -> None:
    data.sql("DELETE FROM entries WHERE file = :file")
    data.check(repair=True)
    query = "SELECT links, trashed_parent, trashed_name FROM files WHERE id = :file"
    [(links, parent, name)] = data.sql(query)
    assert (links, parent) == (0, data.root)
    assert name == f"found-by-fsck-{data.file}"


# --- objects ------------------------------------------------------------------------------------


def state_of(data: Data, chunk: Chunk) -> str:
    [(state,)] = data.sql(f"SELECT state FROM chunks WHERE id = x'{chunk.id.hex()}'")
    return str(state)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[100] ^= 1
    path.unlink()
    path.write_bytes(body)


def test_a_missing_object_is_named_by_path_and_version(data: Data) -> None:
    data.object(NEWER).unlink()
    [finding] = data.check().findings
    assert (finding.kind, finding.account) == ("object", data.account)
    assert (finding.path, finding.version) == ("/docs/a.txt", data.versions[1])
    assert finding.chunk == NEWER.id.hex()
    assert "missing" in finding.what
    assert "nearline restore" in finding.todo


@pytest.mark.parametrize("how", ["missing", "short", "other bytes"])
def test_a_damaged_object_is_asked_for_again(data: Data, how: str) -> None:
    path = data.object(NEWER)
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(NEWER.data[:-1])
    else:
        flip(path)
    assert data.check().ok == (how == "other bytes"), "bytes are only read when asked"
    report = data.check(read_data=True, repair=True)
    assert [item.kind for item in report.findings if item.kind != "object"] == []
    assert state_of(data, NEWER) == "pending"
    assert not path.exists()
    kept = data.path / "blobs" / "quarantine" / f"{data.drive}-{NEWER.id.hex()}"
    assert kept.exists() == (how != "missing"), "nothing is thrown away"
    after = data.check()
    assert {(item.kind, item.version) for item in after.findings} == {
        ("missing", data.versions[1])
    }, "the version stays damaged until somebody uploads the chunk"


def test_the_next_upload_makes_a_repaired_chunk_whole(data: Data) -> None:
    data.object(NEWER).unlink()
    data.check(repair=True)
    running = run(data.path)
    try:
        anna = running.device(data.account)
        assert anna.upload(new_id(), new_id(), NEWER) == 1
    finally:
        running.stop()
    assert data.check(read_data=True).findings == []


def test_an_object_that_was_put_back_is_taken_up(data: Data) -> None:
    path = data.object(NEWER)
    path.unlink()
    data.check(repair=True)
    path.write_bytes(NEWER.data)
    found = data.check()
    assert {item.kind for item in found.findings} == {"missing", "arrived"}
    data.check(repair=True)
    assert data.check(read_data=True).findings == []


def test_another_object_that_was_put_back_is_not(data: Data) -> None:
    path = data.object(NEWER)
    path.unlink()
    data.check(repair=True)
    path.write_bytes(noise(2000, "something else"))
    assert not data.check(repair=True).ok
    assert state_of(data, NEWER) == "pending"
    assert path.exists()


def test_what_is_in_the_trash_is_named_as_that(data: Data) -> None:
    data.object(TRASHED).unlink()
    [finding] = data.check().findings
    assert finding.path == "/gone (in the trash)"


def test_an_object_beside_a_server_may_come_and_go(data: Data) -> None:
    """An object that is deleted between the snapshot and the look is not called missing."""
    running = run(data.path)
    try:
        anna = running.device(data.account)
        stored = make_chunk(noise(700, "short-lived"))
        anna.store("short", stored)
        with data.opened() as (db, blobs):
            real = blobs.stat

            def stat(key: BlobKey) -> Any:
                if key.chunk == stored.id:
                    forget(anna, "short") if "short" in anna.children() else None
                    with db.write() as conn:
                        conn.exec_driver_sql(
                            "UPDATE chunks SET state = 'deleting' WHERE id = ?", (stored.id,)
                        )
                    return None
                return real(key)

            blobs.stat = stat  # type: ignore[method-assign]
            assert [f.kind for f in fsck.run(db, blobs).findings if f.kind == "object"] == []
    finally:
        running.stop()


# --- for the administrator ----------------------------------------------------------------------


def test_a_repair_is_in_the_audit_log(data: Data) -> None:
    data.sql("UPDATE drives SET used_bytes = 7")
    data.check(repair=True)
    [row] = [row for row in admin.read_audit(data.path, None, None) if row["action"] == "fsck"]
    assert row["detail"] == {"repaired": {"sums": 1}}


def test_data_of_an_older_nearline_is_not_looked_at(data: Data) -> None:
    data.sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(admin.CannotAdminister, match="bring it up to date"):
        admin.check(data.path, read_data=False, repair=False, progress=lambda *_: None)


def test_a_file_that_is_no_database_is_said_to_be_none(data: Data) -> None:
    (data.path / "nearline.sqlite").write_bytes(b"x" * 10_000)
    with pytest.raises(admin.CannotAdminister, match="restore a backup"):
        admin.check(data.path, read_data=False, repair=False, progress=lambda *_: None)
