"""Damaged state is put aside whole, whatever stops the work on it; what is not ours stays."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from cache.metadata import damage
from cache.metadata.damage import DamagedState
from cache.recovery import opening, quarantine, spool_scan
from cache.recovery.opening import NewerState, open_database


def spoiled(state: Path) -> Path:
    """A state directory whose database is rubbish; its spool."""
    spool = state / "spool"
    spool.mkdir()
    (spool / "7.layer").write_bytes(b"somebody's thesis")
    (spool / "notes.txt").write_bytes(b"put here by somebody")
    (state / "tree.sqlite").write_bytes(b"not a database at all" * 1000)
    return spool


def open_and_close(state: Path) -> None:
    open_database(state / "tree.sqlite", state / "spool").close()


def test_a_damaged_database_is_put_aside_with_its_spool(tmp_path: Path) -> None:
    spool = spoiled(tmp_path)
    open_and_close(tmp_path)

    [(directory, report)] = quarantine.reports(tmp_path)
    assert (directory / "tree.sqlite").read_bytes() == b"not a database at all" * 1000
    assert (directory / "spool" / "7.layer").read_bytes() == b"somebody's thesis"
    assert report.kept == ["7.layer"]
    assert [path.name for path in spool.iterdir()] == ["notes.txt"], "foreign files stay"
    assert damage.marked(tmp_path) is None


def test_what_is_whole_is_not_put_aside(tmp_path: Path) -> None:
    for _ in range(2):
        open_and_close(tmp_path)
    assert list(quarantine.reports(tmp_path)) == []


def test_a_state_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    with sqlite3.connect(tmp_path / "tree.sqlite") as newer:
        newer.execute("ALTER TABLE node ADD COLUMN colour TEXT")
        newer.execute("PRAGMA user_version = 999")
    newer.close()
    before = (tmp_path / "tree.sqlite").read_bytes()
    with pytest.raises(NewerState, match=r"newer version of Nearline .*update Nearline"):
        open_and_close(tmp_path)
    assert (tmp_path / "tree.sqlite").read_bytes() == before
    assert list(quarantine.reports(tmp_path)) == []


def test_a_wrong_version_number_is_damage(tmp_path: Path) -> None:
    """The tables are those of today, so no other program wrote it."""
    open_and_close(tmp_path)
    with sqlite3.connect(tmp_path / "tree.sqlite") as other:
        other.execute("PRAGMA user_version = 999")
    other.close()
    open_and_close(tmp_path)
    [(_, report)] = quarantine.reports(tmp_path)
    assert "version" in report.why


@pytest.mark.parametrize("content", [None, b""])
def test_a_spool_without_its_database_is_put_aside(tmp_path: Path, content: bytes | None) -> None:
    spool = spoiled(tmp_path)
    (tmp_path / "tree.sqlite").unlink()
    if content is not None:
        (tmp_path / "tree.sqlite").write_bytes(content)
    open_and_close(tmp_path)
    [(directory, _)] = quarantine.reports(tmp_path)
    assert (directory / "spool" / "7.layer").read_bytes() == b"somebody's thesis"
    assert not (spool / "7.layer").exists()


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (damage, "mark"),
        (opening, "_replace"),
        (quarantine, "leave_only"),
        (quarantine, "write_report"),
        (damage, "unmark"),
    ],
)
def test_a_crash_while_damage_is_put_aside_loses_nothing(
    tmp_path: Path, module: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(tmp_path)

    class Killed(BaseException):
        pass

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as until_here:
        until_here.setattr(module, step, die)
        with pytest.raises(Killed):
            open_and_close(tmp_path)
    open_and_close(tmp_path)
    assert damage.marked(tmp_path) is None
    for directory in tmp_path.glob("quarantine-*"):
        assert (directory / "tree.sqlite").read_bytes() == b"not a database at all" * 1000
        assert (directory / "spool" / "7.layer").read_bytes() == b"somebody's thesis"
    assert list(quarantine.reports(tmp_path))


def test_a_marked_state_is_salvaged_though_it_looks_whole(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    damage.note_damage(tmp_path / "tree.sqlite", "a page that was met in use")
    damage.note_damage(tmp_path / "tree.sqlite", "another")
    open_and_close(tmp_path)
    assert [report.why for _, report in quarantine.reports(tmp_path)] == [
        "a page that was met in use"
    ]


def test_a_mark_that_cannot_be_read_counts(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    (tmp_path / damage.MARK).write_bytes(b"\xff{")
    open_and_close(tmp_path)
    assert len(list(quarantine.reports(tmp_path))) == 1
    assert damage.marked(tmp_path) is None


def test_a_look_in_the_background_marks_damage_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "CHECKED_AT_ONCE", 0)
    path = tmp_path / "tree.sqlite"
    open_and_close(tmp_path)
    damage.examine(path)
    assert damage.marked(tmp_path) is None
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 6] = b"\xee" * 4096 * 3
    path.write_bytes(data)
    damage.examine(path)
    assert damage.marked(tmp_path) is not None


def test_damage_that_is_met_in_use_is_an_error_and_is_salvaged_next_time(tmp_path: Path) -> None:
    path = tmp_path / "tree.sqlite"
    db = open_database(path, tmp_path / "spool")
    with db.transaction():
        db.set_meta("drive", "d" * 32)
        db.set_meta("root", "e" * 32)
        for number in range(200):
            db.run("INSERT INTO pin VALUES (?)", f"{number:032x}")
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = db.all("SELECT rootpage FROM sqlite_schema WHERE name = 'pin'")
    db.run("PRAGMA shrink_memory")  # or it would be answered from what was read before
    with path.open("r+b") as file:
        file.seek((root[0] - 1) * 4096)
        file.write(b"\xee" * 4096)

    with pytest.raises(DamagedState) as met:
        db.all("SELECT * FROM pin ORDER BY file")
    assert met.value.errno == errno.EIO
    assert db.damage
    with db.transaction():  # everything else goes on
        db.set_meta("scope", "write")
    db.close()

    again = open_database(path, tmp_path / "spool")
    assert again.meta("scope") == "write"
    assert 0 < len(again.all("SELECT * FROM pin")) < 200
    assert again.damage is None
    again.close()
    [(_, report)] = quarantine.reports(tmp_path)
    assert report.torn == ["pin"]


def test_what_is_put_aside_and_salvaged_is_its_owners_alone(tmp_path: Path, no_umask: None) -> None:
    spool = spoiled(tmp_path)
    for path in (spool, *spool.iterdir(), tmp_path / "tree.sqlite"):
        path.chmod(path.stat().st_mode & 0o700)
    open_and_close(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.lstat().st_mode & 0o077] == []


def test_a_copy_is_its_owners_alone(tmp_path: Path, no_umask: None) -> None:
    (tmp_path / "3.layer").write_bytes(b"dirty bytes")
    (tmp_path / "4.layer").touch(mode=0o666)
    for number in (4, 5):
        spool_scan.find(tmp_path)[3].copy(number)
        copy = tmp_path / f"{number}.layer"
        assert (copy.read_bytes(), copy.stat().st_mode & 0o777) == (b"dirty bytes", 0o600)
