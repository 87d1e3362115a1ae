"""The migrations lead to the schema that the code speaks of, and a server finds its way there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import server.metadata.db
from server.maintenance import fsck_sums
from server.maintenance.fsck_findings import Names
from server.metadata.db import HEAD, Database, DataTooNew
from server.metadata.schema import metadata


def migrated(path: Path) -> Database:
    """A database made step by step instead of at once."""
    db = Database(path)
    with db.write() as conn:
        conn.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
    db.migrate()
    return db


def test_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    db = migrated(tmp_path / "a.sqlite")
    with db.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
    db.close()


@pytest.mark.slow
def test_a_new_database_is_as_if_migrated(tmp_path: Path) -> None:
    stepwise, at_once = migrated(tmp_path / "a.sqlite"), Database(tmp_path / "b.sqlite")
    at_once.migrate()
    with stepwise.read() as one, at_once.read() as other:
        assert _shape(one) == _shape(other)
    stepwise.close()
    at_once.close()


def _shape(conn: Connection) -> dict[str, object]:
    found = inspect(conn)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
            sorted(str(index["column_names"]) for index in found.get_indexes(name)),
            sorted(str(key["constrained_columns"]) for key in found.get_foreign_keys(name)),
        )
        for name in metadata.tables
    }


def of_revision(path: Path, revision: str, rows: Sequence[str]) -> Database:
    """A database as it was at an earlier revision, with what the statements `rows` put there."""
    db = Database(path)
    with db.write() as conn:
        config = Config()
        folder = Path(server.metadata.db.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
        for statement in rows:
            conn.exec_driver_sql(statement)
    return db


SOME_UPLOADS = (
    "INSERT INTO accounts (id, name, name_key, password, created_ns) VALUES"
    " ('anna', 'anna', 'anna', '', 0), ('ben', 'ben', 'ben', '', 0)",
    "INSERT INTO drives (id, owner, root, head_seq, epoch, used_bytes, reserved_bytes) VALUES"
    " ('home', 'anna', 'root', 0, '', 70, 360)",
    "INSERT INTO devices (id, account, name, token_sha256, scope, created_ns, folder) VALUES"
    " ('a', 'anna', '', x'01', 'full', 0, NULL), ('f', 'anna', '', x'02', 'full', 0, 'folder'),"
    " ('b', 'ben', '', x'03', 'full', 0, NULL), ('c', 'ben', '', x'04', 'full', 0, NULL)",
    "INSERT INTO uploads (version, file, drive, device, created_ns, expires_ns) SELECT"
    " id || '1', '', 'home', id, 0, 0 FROM devices",
    "INSERT INTO chunks (drive, id, state, length, stored_length, sha256, descriptor, created_ns)"
    " VALUES ('home', x'01', 'pending', 900, 100, x'', x'', 0),"
    " ('home', x'02', 'pending', 900, 200, x'', x'', 0),"
    " ('home', x'03', 'uploaded', 90, 70, x'', x'', 0),"
    " ('home', x'04', 'pending', 90, 60, x'', x'', 0)",
    "INSERT INTO upload_chunks (version, drive, chunk, proven) VALUES"
    " ('a1', 'home', x'01', 1), ('b1', 'home', x'01', 0), ('c1', 'home', x'02', 0),"
    " ('b1', 'home', x'02', 0), ('b1', 'home', x'03', 0), ('f1', 'home', x'03', 1),"
    " ('f1', 'home', x'02', 0)",
)


def test_sums_that_are_kept_begin_right(tmp_path: Path) -> None:
    db = of_revision(tmp_path / "a.sqlite", "0002", SOME_UPLOADS)
    db.migrate()
    with db.read() as conn:
        assert list(fsck_sums.check_sums(conn, Names(conn))) == []
        held = conn.exec_driver_sql("SELECT * FROM uploaders ORDER BY holder").all()
        unshown = conn.exec_driver_sql("SELECT id FROM chunks WHERE unshown = 1").scalars().all()
    db.close()
    assert held == [
        ("home", "anna", 1, 0, 0),
        ("home", "ben", 2, 4, 900 + 900 + 900 + 90),
        ("home", "f", 1, 1, 900),
    ]
    assert unshown == [b"\x02"]


SOME_NAMES = (
    "INSERT INTO accounts (id, name, name_key, password, created_ns)"
    " VALUES ('a', 'anna', 'anna', '', 1)",
    "INSERT INTO drives (id, owner, root, head_seq, epoch, used_bytes)"
    " VALUES ('d', 'a', 'r', 1, 'e', 0)",
    "INSERT INTO files"
    " (id, drive, kind, mode, uid, gid, mtime_ns, ctime_ns, size, links, rdev, rev) VALUES"
    " ('r', 'd', 'directory', 0, 0, 0, 1, 1, 0, 1, 0, 1),"
    " ('s', 'd', 'symlink', 0, 0, 0, 1, 1, 0, 1, 0, 1)",
    "INSERT INTO entries VALUES ('r', 'link', 's', 1)",
)


def test_names_and_symlinks_from_before_are_there_and_nobody_is_said_to_have_made_them(
    tmp_path: Path,
) -> None:
    db = of_revision(tmp_path / "a.sqlite", "0002", SOME_NAMES)
    db.migrate()
    with db.read() as conn:
        entry = conn.execute(text("SELECT * FROM entries")).one()
        symlink = conn.execute(text("SELECT * FROM files WHERE id = 's'")).one()
    assert (entry.name, entry.file, entry.made_by, symlink.made_under) == ("link", "s", None, None)
    db.close()


def test_head_is_the_newest_migration() -> None:
    config = Config()
    folder = Path(server.metadata.db.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_data_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    db = Database(tmp_path / "a.sqlite")
    db.migrate()
    with db.write() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DataTooNew, match="9999"):
        db.migrate()
    db.close()


def test_commits_survive_power_loss_by_configuration(tmp_path: Path) -> None:
    db = Database(tmp_path / "a.sqlite")
    with db.read() as conn:
        assert conn.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert conn.execute(text("PRAGMA synchronous")).scalar() == 2
        assert conn.execute(text("PRAGMA foreign_keys")).scalar() == 1
    db.close()


def test_directories_that_were_there_learn_how_deep_they_are(tmp_path: Path) -> None:
    db = Database(tmp_path / "a.sqlite")
    with db.write() as conn:
        conn.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        config = Config()
        folder = Path(server.metadata.db.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.upgrade(config, "0002")
        conn.execute(text("PRAGMA defer_foreign_keys = ON"))
        conn.execute(text(_ACCOUNT))
        conn.execute(text(_DRIVE))
        for file, parent, name in (
            ("root", "", ""),
            ("a", "root", "a"),
            ("é", "a", "é"),
            ("b", "root", "a longer name"),
        ):
            conn.execute(text(_DIRECTORY), {"file": file})
            if parent:
                conn.execute(text(_ENTRY), {"parent": parent, "name": name, "file": file})
    db.migrate()
    with db.read() as conn:
        rows = conn.execute(text("SELECT id, below_levels, below_bytes FROM files"))
        # Levels, and the bytes of the longest path from it, a slash before each name.
        assert {row.id: tuple(row)[1:] for row in rows} == {
            "root": (2, 14),
            "a": (1, 3),
            "é": (0, 0),
            "b": (0, 0),
        }
    db.close()


_ACCOUNT = (
    "INSERT INTO accounts (id, name, name_key, password, created_ns) VALUES ('x', 'x', 'x', '', 0)"
)
_DRIVE = (
    "INSERT INTO drives (id, owner, root, head_seq, epoch, used_bytes)"
    " VALUES ('drive', 'x', 'root', 0, 'e', 0)"
)
_DIRECTORY = (
    "INSERT INTO files"
    " (id, drive, kind, mode, uid, gid, mtime_ns, ctime_ns, size, links, rdev, rev)"
    " VALUES (:file, 'drive', 'directory', 0, 0, 0, 0, 0, 0, 1, 0, 0)"
)
_ENTRY = "INSERT INTO entries (parent, name, file, rev) VALUES (:parent, :name, :file, 0)"
# --- what was there before a migration ----------------------------------------------------------


def at_revision(path: Path, revision: str) -> Database:
    """A database as an older version has left it."""
    db = Database(path)
    config = Config()
    folder = Path(server.metadata.db.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    with db.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
    return db


def add(conn: Connection, table: str, **values: object) -> None:
    names = ", ".join(values)
    conn.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(values)})"), values)


def two_drives(conn: Connection) -> None:
    """`a` owns drive `A` and `b` owns `B`; each has a directory `in A`, `in B`."""
    for who in ("a", "b"):
        add(conn, "accounts", id=who, name=who, name_key=who, password="-", created_ns=1)
        drive = {"id": who.upper(), "owner": who, "root": f"root {who}", "epoch": "e"}
        add(conn, "drives", **drive, head_seq=9, used_bytes=0)
        for file in (f"root {who}", f"in {who.upper()}"):
            add_file(conn, file, who.upper(), kind="directory")


def add_file(conn: Connection, id: str, drive: str, **more: object) -> None:
    row = {"kind": "file", "mode": 0, "uid": 0, "gid": 0, "mtime_ns": 1, "ctime_ns": 1, "size": 0}
    add(conn, "files", id=id, drive=drive, **row | {"links": 1, "rdev": 0, "rev": 1} | more)


def column(db: Database, query: str) -> list[object]:
    with db.read() as conn:
        return list(conn.execute(text(query)).scalars())


def test_tokens_and_feeds_of_folders_that_are_gone_end_with_the_migration(tmp_path: Path) -> None:
    """A token for what was deleted for good, and one whose folder's id is another's by now."""
    db = at_revision(tmp_path / "a.sqlite", "0002")
    with db.write() as conn:
        two_drives(conn)
        folders = {"good": "in A", "gone": "purged", "anothers": "in B", "whole": None}
        for number, (name, folder) in enumerate(folders.items()):
            row = {"id": name, "account": "a", "name": name, "token_sha256": bytes([number])}
            add(conn, "devices", **row, scope="full", created_ns=1, folder=folder)
        topics = {"drive/A": "A", "grant/in A": "A", "grant/in B": "A", "grant/of old": "A"}
        for topic, drive in topics.items():
            row = {"topic": topic, "seq": 1, "drive": drive, "at_ns": 1, "device": "good"}
            add(conn, "changes", **row, payload=b"payload")
        lost = {"trashed_ns": 1, "trashed_parent": "its place", "trashed_name": "n", "links": 0}
        add_file(conn, "lost", "A", **lost)
    db.migrate()
    good = column(db, "SELECT id FROM devices WHERE revoked_ns IS NULL ORDER BY id")
    assert good == ["good", "whole"]
    assert column(db, "SELECT topic FROM changes ORDER BY topic") == [
        "drive/A", "grant/A/in A", "grant/A/in B", "grant/A/of old",
    ]  # fmt: skip
    assert column(db, "SELECT payload FROM changes") == [b"payload"] * 4
    retired = column(db, "SELECT id FROM retired ORDER BY id")
    assert retired == ["its place", "of old", "purged"]
    db.close()


def test_what_was_shared_before_keeps_the_name_that_was_told(tmp_path: Path) -> None:
    db = at_revision(tmp_path / "a.sqlite", "0002")
    with db.write() as conn:
        two_drives(conn)
        add_file(conn, "two", "A", links=2)
        lost = {"trashed_ns": 1, "trashed_parent": "in A", "trashed_name": "was", "links": 0}
        add_file(conn, "lost", "A", **lost)
        add_file(conn, "taken over", "A", trashed_ns=1, links=0)
        for parent, name in (("in A", "b"), ("root a", "a")):
            add(conn, "entries", parent=parent, name=name, file="two", rev=1)
        for number, file in enumerate(("two", "lost", "taken over")):
            given = {"file": file, "account": "b", "granted_by": "a", "at_ns": 1}
            add(conn, "grants", **given, role="viewer")
            link = {"id": file, "secret_sha256": bytes([number]), "file": file, "drive": "A"}
            add(conn, "links", **link, created_by="a", created_ns=1, downloads=0)
    db.migrate()
    for table in ("grants", "links"):
        assert column(db, f"SELECT DISTINCT given_place || given_name FROM {table}") == [None]
        with db.read() as conn:
            found = conn.execute(text(f"SELECT file, place, name FROM {table} ORDER BY file")).all()
        assert [tuple(row) for row in found] == [
            ("lost", "in A", "was"),
            ("taken over", None, None),
            ("two", "root a", "a"),
        ]
    db.close()
