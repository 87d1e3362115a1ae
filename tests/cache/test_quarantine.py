"""Damaged state is put aside whole: the database and the dirty bytes that only it explains."""

from __future__ import annotations

from pathlib import Path

from cache.database import Database


def test_a_damaged_database_is_put_aside_with_its_spool(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "7.layer").write_bytes(b"somebody's thesis")
    (tmp_path / "tree.sqlite").write_bytes(b"not a database at all" * 1000)

    db = Database(tmp_path / "tree.sqlite", companions=[spool])
    db.close()

    assert not spool.exists()
    kept = list(tmp_path.glob("spool.quarantine-*/7.layer"))
    assert [one.read_bytes() for one in kept] == [b"somebody's thesis"]
    assert [one.stat().st_size for one in tmp_path.glob("tree.sqlite.quarantine-*")] == [21000]


def test_a_database_of_another_schema_is_put_aside_with_its_spool(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    db = Database(tmp_path / "tree.sqlite", companions=[spool])
    db.run("PRAGMA user_version = 999")
    db.close()
    spool.mkdir()
    (spool / "1.layer").write_bytes(b"bytes")

    Database(tmp_path / "tree.sqlite", companions=[spool]).close()

    assert len(list(tmp_path.glob("spool.quarantine-*/1.layer"))) == 1
    assert len(list(tmp_path.glob("tree.sqlite.quarantine-*"))) >= 1
