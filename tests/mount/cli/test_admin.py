"""`admin` and `account`: from the words to the data and back, and the exit codes."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mount.cli import main

Run = Callable[..., str]


@pytest.fixture
def data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A data directory with the account anna, made without a password's costs."""
    from server.accounts import accounts
    from server.metadata.db import Database

    path = tmp_path / "data"
    db = Database(path / "nearline.sqlite")
    db.migrate()
    with db.write() as conn:
        accounts.insert_account(conn, "anna", "no password", 1)
    db.close()
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns what it printed."""

    def words(*said: str | Path, exits: int = 0) -> str:
        assert main([str(word) for word in said]) == exits
        return capsys.readouterr().out

    return words


def sql(data: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(data / "nearline.sqlite")) as conn:
        rows = conn.execute(statement).fetchall()
        conn.commit()
        return rows


# --- gc and fsck --------------------------------------------------------------------------------


def orphan(data: Path) -> Path:
    """A stored object that no chunk is of."""
    import os

    path = data / "blobs" / ("0" * 32) / "00" / ("0" * 64)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"12345")
    os.utime(path, (1, 1))
    return path


def test_gc_says_what_it_would_do_and_does_it(data: Path, run: Run) -> None:
    assert run("admin", "gc", "--data", data) == "There was nothing to do.\n"
    lost = orphan(data)
    would = run("admin", "gc", "--dry-run", "--data", data)
    assert would == "would be deleted: 1 stored objects that no chunk is of, 5 bytes\n"
    assert lost.exists()
    assert run("admin", "gc", "--data", data).startswith("were deleted: 1 stored objects")
    assert not lost.exists()


def test_gc_in_json(data: Path, run: Run) -> None:
    orphan(data)
    found = json.loads(run("admin", "gc", "--dry-run", "--json", "--data", data))
    assert (found["orphans"], found["orphans_bytes"], found["deleted"]) == (1, 5, 0)


def test_gc_keeps_what_the_configuration_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from server.maintenance import gc, janitor
    from server.maintenance.gc_chunks import Collected, Options
    from server.settings import Tunables

    kept: list[tuple[int, int]] = []

    def note(_db: object, _blobs: object, options: Options) -> Collected:
        kept.append((options.keep_days, options.keep_versions))
        return Collected()

    monkeypatch.setattr(gc, "run", note)
    config = tmp_path / "nearline.toml"
    config.write_text("keep_days = 5\nkeep_versions = 2\n")
    run("admin", "gc", "--data", data)
    janitor.remember(data, Tunables(keep_days=365))
    run("admin", "gc", "--data", data)
    run("admin", "gc", "--config", config, "--data", data)
    assert kept == [(30, 10), (365, 10), (5, 2)]


def test_fsck_says_what_is_wrong_and_repairs_it(data: Path, run: Run) -> None:
    clean = run("admin", "fsck", "--read-data", "--data", data)
    assert clean == "Checked 1 accounts, 1 files, 0 versions, 0 chunks: nothing is wrong.\n"
    sql(data, "UPDATE drives SET used_bytes = 7")
    told = run("admin", "fsck", "--data", data, exits=1)
    assert told.startswith("anna: a sum of the drive is wrong: used_bytes is 7")
    assert "; run fsck with --repair\n" in told
    assert told.endswith(": 1 wrong\n")
    assert "; repaired\n" in run("admin", "fsck", "--repair", "--data", data)
    run("admin", "fsck", "--data", data)


def test_fsck_in_json(data: Path, run: Run) -> None:
    sql(data, "UPDATE files SET links = 2")
    report = json.loads(run("admin", "fsck", "--json", "--data", data, exits=1))
    assert not report["ok"]
    assert report["checked"] == {
        "accounts": 1, "files": 1, "versions": 0, "chunks": 0, "bytes": 0
    }  # fmt: skip
    [finding] = report["findings"]
    assert (finding["kind"], finding["account"], finding["path"]) == ("links", "anna", "/")
    assert finding["repaired"] is False


def test_a_name_cannot_draw_on_the_terminal(data: Path, run: Run) -> None:
    root, drive = sql(data, "SELECT root, id FROM drives")[0]
    sql(
        data,
        "INSERT INTO files (id, drive, kind, mode, uid, gid, mtime_ns, ctime_ns, size, links, rdev,"
        f" rev) VALUES ('f', '{drive}', 'directory', 0, 0, 0, 0, 0, 0, 9, 0, 0)",
    )
    sql(data, f"INSERT INTO entries VALUES ('{root}', 'a' || char(27) || '[2J', 'f', 0, NULL)")
    told = run("admin", "fsck", "--data", data, exits=1)
    assert "\x1b" not in told
    assert "anna:/a\\x1b[2J: has 1 names, but says 9" in told


# --- backup and restore -------------------------------------------------------------------------


def test_backup_and_restore(data: Path, tmp_path: Path, run: Run) -> None:
    dest, new = tmp_path / "backup", tmp_path / "new"
    assert "0 objects, 0 bytes; 0 are new" in run("admin", "backup", dest, "--data", data)
    made = json.loads(run("admin", "backup", dest, "--json", "--data", data))
    assert made == {"objects": 0, "bytes": 0, "copied": 0, "removed": 0, "lost": []}
    told = run("admin", "restore", dest, "--data", new)
    assert "nothing is wrong" in told
    assert f"nearline admin keys rotate --now --data {new}" in told
    assert sql(new, "SELECT name FROM accounts") == [("anna",)]
    again = json.loads(run("admin", "restore", dest, "--json", "--data", tmp_path / "newer"))
    assert again["checked"]["ok"]


def test_what_could_not_be_backed_up_makes_the_exit_code_1(
    data: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    drive = sql(data, "SELECT id FROM drives")[0][0]
    sql(
        data,
        "INSERT INTO chunks (drive, id, state, length, stored_length, sha256, descriptor,"
        f" created_ns) VALUES ('{drive}', zeroblob(32), 'uploaded', 1, 1, zeroblob(32), x'', 0)",
    )
    assert main(["admin", "backup", str(tmp_path / "b"), "--data", str(data)]) == 1
    said = capsys.readouterr().err
    assert f"not backed up: {drive}/{'0' * 64}" in said
    assert "fsck --read-data" in said


# --- accounts, tokens, audit --------------------------------------------------------------------


def test_accounts_are_listed_and_changed(data: Path, run: Run) -> None:
    run("account", "set", "anna", "--quota", "10GiB", "--keep-days", "5", "--data", data)
    [line] = run("account", "list", "--data", data).splitlines()[1:]
    assert line.split()[:6] == ["anna", "0", "bytes", "10.7", "GB", "5"]
    run("account", "set", "anna", "--quota", "none", "--keep-days", "default", "--data", data)
    [account] = json.loads(run("account", "list", "--json", "--data", data))["accounts"]
    assert (account["quota_bytes"], account["keep_days"]) == (None, None)


def test_an_account_is_locked_and_unlocked(data: Path, run: Run) -> None:
    run("account", "lock", "anna", "--data", data)
    assert run("account", "list", "--data", data).splitlines()[1].endswith("locked")
    [account] = json.loads(run("account", "list", "--json", "--data", data))["accounts"]
    assert account["locked_ns"] > 0
    run("account", "unlock", "anna", "--data", data)
    assert "locked" not in run("account", "list", "--data", data)


@pytest.mark.slow
def test_an_account_is_given_another_password(data: Path, tmp_path: Path, run: Run) -> None:
    run("admin", "token", "add", "anna", "phone", "--data", data)
    file = tmp_path / "password"
    file.write_text("another one\n")
    words = ["account", "passwd", "anna", "--data", data, "--password-file", file]
    assert run(*words) == "anna has a new password; its devices go on.\n"
    assert run(*words, "--revoke-devices") == "anna has a new password; devices refused: 1.\n"
    file.write_text("short\n")
    run(*words, exits=1)


def test_a_removal_says_what_it_ends_and_asks(
    data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("admin", "token", "add", "anna", "phone", "--data", data)
    words = ["account", "remove", "anna", "--data", data]
    assert main([str(word) for word in words]) == 2  # no terminal to ask on
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: "n")
    assert run(*words).endswith("Nothing was removed.\n")
    assert "anna" in run("account", "list", "--data", data)
    told = run(*words, "--yes")
    assert "anna has 0 files" in told
    assert "on: 1." in told
    assert "There are no accounts" in run("account", "list", "--data", data)
    told = run(*words, "--yes")  # again is no error: it goes on with what is left
    assert "on: 0." in told


def test_keys_are_rotated(data: Path, run: Run) -> None:
    first = run("admin", "keys", "rotate", "--data", data)
    assert "is good until" in first
    made = json.loads(run("admin", "keys", "rotate", "--now", "--json", "--data", data))
    assert made["edge"] not in first
    assert sorted(path.name for path in (data / "keys").glob("edge*")) == ["edge.pem"]


def test_tokens_are_made_listed_and_revoked(data: Path, run: Run) -> None:
    from server.accounts import tokens
    from server.metadata.db import Database

    made = ["--read-only", "--expires", "3d", "--data", str(data)]
    token = run("admin", "token", "add", "anna", "scanner", *made).strip()
    db = Database(data / "nearline.sqlite")
    with db.read() as conn:
        assert tokens.authenticate(conn, token, 1).scope == "read"
    db.close()
    assert "scanner" in run("admin", "token", "list", "anna", "--data", data)
    [listed] = json.loads(run("admin", "token", "list", "--json", "--data", data))["tokens"]
    assert (listed["name"], listed["scope"]) == ("scanner", "read")
    said = run("admin", "token", "revoke", listed["id"], "--data", data)
    assert said == "scanner is refused from now on.\n"
    assert run("admin", "token", "list", "--data", data) == "There are no tokens.\n"


def test_the_audit_log_is_read(data: Path, run: Run) -> None:
    run("account", "set", "anna", "--quota", "1GiB", "--data", data)
    run("admin", "token", "add", "anna", "a b", "--data", data)
    lines = run("admin", "audit", "--data", data).splitlines()
    assert [line.split()[3] for line in lines] == ["account_set", "token_make"]
    assert "quota_bytes=1073741824" in lines[0]
    assert 'name="a b"' in lines[1]
    rows = run("admin", "audit", "--since", "1h", "--json", "--data", data).splitlines()
    assert [json.loads(row)["action"] for row in rows] == ["account_set", "token_make"]
    assert run("admin", "audit", "--since", "2100-01-01 00:00:00", "--data", data) == ""
    own = run("admin", "audit", "--account", "anna", "--data", data).splitlines()
    assert [line.split()[3] for line in own] == ["account_set"]


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["admin", "gc"],
        ["admin", "backup", "--data", "/d"],
        ["admin", "restore", "--data", "/d"],
        ["admin", "token", "add", "anna", "--data", "/d"],
        ["admin", "audit", "--since", "yesterday", "--data", "/d"],
        ["account", "set", "anna", "--data", "/d"],
        ["account", "set", "anna", "--quota", "lots", "--data", "/d"],
        ["account", "set", "anna", "--keep-days", "-1", "--data", "/d"],
    ],
)
def test_wrong_usage_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("nearline: ")
    assert ";" in error


@pytest.mark.parametrize(
    "words",
    [
        ["admin", "gc"],
        ["admin", "fsck"],
        ["admin", "backup", "/nowhere/backup"],
        ["admin", "audit"],
        ["admin", "token", "list"],
        ["account", "list"],
        ["account", "set", "anna", "--quota", "1GiB"],
        ["account", "lock", "anna"],
        ["account", "unlock", "anna"],
        ["account", "remove", "anna", "--yes"],
        ["admin", "keys", "rotate"],
    ],
)
def test_a_place_without_data_stays_without(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    assert main([*words, "--data", str(empty)]) == 1
    assert "there is no Nearline data" in capsys.readouterr().err
    assert not empty.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["account", "set", "ben", "--quota", "1GiB"], "no account 'ben'"),
        (["account", "lock", "ben"], "no account 'ben'"),
        (["account", "unlock", "ben"], "no account 'ben'"),
        (["account", "remove", "ben", "--yes"], "no account 'ben'"),
        (["account", "set", "anna", "--keep-days", "9" * 30], "is between"),
        (["admin", "token", "add", "ben", "x"], "no account 'ben'"),
        (["admin", "token", "add", "anna", "x", "--folder", "/no"], "no directory"),
        (["admin", "token", "list", "ben"], "no account 'ben'"),
        (["admin", "token", "revoke", "x"], "no device"),
        (["admin", "audit", "--account", "ben"], "no account 'ben'"),
        (["admin", "gc", "--config", "/nowhere.toml"], "cannot read /nowhere.toml"),
        (["admin", "restore", "/nowhere"], "is no backup"),
    ],
)
def test_what_cannot_be_done_is_1(
    words: list[str], said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--data", str(data)]) == 1
    assert said in capsys.readouterr().err


def test_without_the_server_it_says_what_to_install(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "server.maintenance.admin", raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy.exc", None)
    assert main(["admin", "gc", "--data", str(data)]) == 1
    assert "pip install 'nearline[server]'" in capsys.readouterr().err
