"""The migrations lead to the schema that the code speaks of, and a server finds its way there."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import server.metadata.db
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
        with db.read() as conn:
            found = conn.execute(text(f"SELECT file, place, name FROM {table} ORDER BY file")).all()
        assert [tuple(row) for row in found] == [
            ("lost", "in A", "was"),
            ("taken over", None, None),
            ("two", "root a", "a"),
        ]
    db.close()
