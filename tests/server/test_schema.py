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


def test_names_and_symlinks_from_before_are_there_and_nobody_is_said_to_have_made_them(
    tmp_path: Path,
) -> None:
    db = Database(tmp_path / "a.sqlite")
    with db.write() as conn:
        config = Config()
        folder = Path(server.metadata.db.__file__).parent / "migrations"
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = conn
        command.upgrade(config, "0002")
        for statement in (
            "INSERT INTO accounts (id, name, name_key, password, created_ns)"
            " VALUES ('a', 'anna', 'anna', '', 1)",
            "INSERT INTO drives (id, owner, root, head_seq, epoch, used_bytes)"
            " VALUES ('d', 'a', 'r', 1, 'e', 0)",
            *(
                "INSERT INTO files (id, drive, kind, mode, uid, gid, mtime_ns, ctime_ns, size,"
                f" links, rdev, rev, target) VALUES ('{file}', 'd', '{kind}', 0, 0, 0, 1, 1, 0, 1,"
                " 0, 1, NULL)"
                for file, kind in (("r", "directory"), ("s", "symlink"))
            ),
            "INSERT INTO entries VALUES ('r', 'link', 's', 1)",
        ):
            conn.execute(text(statement))
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
