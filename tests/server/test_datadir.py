"""The owner of a data directory, what is shut to others, and what root does not follow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server import datadir
from server.datadir import NotPrivate
from server.maintenance import admin, lock
from server.maintenance.admin import CannotAdminister

SOMEBODY = 12345


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as an earlier version left it where it was there as 0755."""
    data = tmp_path / "data"
    for name in ("keys", "blobs", "blobs/0123", "blobs/0123/ab", "others"):
        (data / name).mkdir(parents=True)
    for name in (
        "nearline.sqlite",
        "nearline.sqlite-wal",
        "server.log",
        "keys/put.secret",
        "notes",
    ):
        (data / name).touch()
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return data


def modes(data: Path) -> dict[str, int]:
    found = data.rglob("*")
    return {path.relative_to(data).as_posix(): path.stat().st_mode & 0o777 for path in found}


def test_what_is_ours_is_shut_to_others_and_one_line_says_so(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datadir.secure(data)
    assert data.stat().st_mode & 0o777 == 0o700
    found = modes(data)
    kept = {"others": 0o755, "notes": 0o644, "blobs/0123/ab": 0o755}
    assert {name: found.pop(name) for name in kept} == kept, "not ours, or out of reach"
    assert set(found.values()) == {0o600, 0o700}
    [line] = caplog.messages
    assert "nearline.sqlite-wal" in line
    assert "keys/put.secret" in line
    datadir.secure(data)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_write_in_is_refused_as_it_is(data: Path, mode: int) -> None:
    data.chmod(mode)
    before = modes(data)
    with pytest.raises(NotPrivate, match=f"others may write in .*chmod -R go= {data}"):
        datadir.secure(data)
    with pytest.raises(CannotAdminister, match="others may write"):
        admin.list_accounts(data)
    assert modes(data) == before


def test_a_directory_of_another_user_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = data.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(NotPrivate, match=f"belongs to user {owner}, and this is user {SOMEBODY};"):
        datadir.secure(data)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_root_looks_after_the_data_of_another_user_and_does_not_serve_it(data: Path) -> None:
    os.chown(data, SOMEBODY, SOMEBODY)
    before = modes(data)
    datadir.secure(data)
    assert modes(data) == before, "their modes are theirs"
    with pytest.raises(NotPrivate, match="run this as that user"):
        datadir.check(data, serving=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_root_follows_no_link_in_the_data_of_another_user(data: Path, tmp_path: Path) -> None:
    os.chown(data, SOMEBODY, SOMEBODY)
    (tmp_path / "roots").touch(mode=0o600)
    (data / "gc.lock").symlink_to(tmp_path / "roots")
    with pytest.raises(OSError, match="symbolic links"), lock.keeping(data):
        pass
    (data / "gc.lock").unlink()
    (data / "gc.lock").hardlink_to(tmp_path / "roots")
    with lock.keeping(data):
        pass
    assert (tmp_path / "roots").stat().st_uid == 0
    (data / "gc.lock").unlink()
    with lock.keeping(data):
        assert (data / "gc.lock").stat().st_uid == SOMEBODY


def test_what_is_missing_above_is_private_too(tmp_path: Path, no_umask: None) -> None:
    datadir.secure(tmp_path / "a" / "data")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_mode_that_cannot_be_changed_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that have none."""

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(NotPrivate, match="mount its file system so that only you"):
        datadir.secure(data)
