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
