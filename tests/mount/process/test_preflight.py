"""mount/process/preflight.py: each thing that can be wrong is one line that says what to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mount import mountinfo
from mount.config import MountConfig, make_config
from mount.failures import Failure, UsageFailure
from mount.mountinfo import Mounted
from mount.options import Options, parse_options
from mount.process import preflight, registry
from mount.process.directories import Directories


@pytest.fixture
def config(home: Path, tmp_path: Path) -> MountConfig:
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    return make_config("http://localhost:1", mountpoint, "ann", Options())


def test_an_empty_directory_is_fine_and_nothing_is_made(
    config: MountConfig, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path)
    preflight.check_local(config)
    assert not list(home.iterdir())


def test_a_missing_mountpoint(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="mkdir -p"):
        preflight.check_mountpoint(tmp_path / "none")


def test_a_file_as_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="not a directory"):
        preflight.check_mountpoint(tmp_path / "file")


def test_a_mountpoint_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="not empty"):
        preflight.check_mountpoint(tmp_path)


def _mounted(monkeypatch: pytest.MonkeyPatch, at: Path, fstype: str) -> None:
    monkeypatch.setattr(mountinfo, "mounts", lambda: [Mounted(7, at, fstype, "x")])


def test_already_mounted(config: MountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _mounted(monkeypatch, config.mountpoint, mountinfo.FSTYPE)
    registry.put(
        registry.Record(
            mountpoint=str(config.mountpoint),
            state_dir="",
            cache_dir="",
            url="",
            account="",
            pid=os.getpid(),
            started=registry.started_at(os.getpid()),
            control="",
        )
    )
    with pytest.raises(Failure, match=f"already mounted; run `nearline umount {config.mountpoint}"):
        preflight.check_mountpoint(config.mountpoint)


def test_a_mount_whose_process_is_gone(
    config: MountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mounted(monkeypatch, config.mountpoint, mountinfo.FSTYPE)
    with pytest.raises(Failure, match="process is gone; run `nearline umount"):
        preflight.check_mountpoint(config.mountpoint)


def test_somebody_elses_mount(config: MountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _mounted(monkeypatch, config.mountpoint, "tmpfs")
    with pytest.raises(Failure, match="tmpfs is already mounted"):
        preflight.check_mountpoint(config.mountpoint)


def test_no_fuse_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path / "none")
    with pytest.raises(Failure, match="modprobe fuse"):
        preflight.check_fuse()


def test_a_fuse_device_for_root_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Failure, match="chmod 666"):
        preflight.check_fuse()


def test_no_fusermount_matters_only_to_people_not_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    preflight.check_fuse()
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(Failure, match="apt install fuse3"):
        preflight.check_fuse()


@pytest.mark.parametrize(
    ("line", "allowed"), [("user_allow_other", True), ("#user_allow_other", False)]
)
def test_allow_other_needs_the_administrators_word(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, allowed: bool
) -> None:
    (tmp_path / "fuse.conf").write_text(f"# comment\n{line}\n")
    monkeypatch.setattr(preflight, "FUSE_CONF", tmp_path / "fuse.conf")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    shared = make_config("http://localhost:1", tmp_path, "ann", parse_options(["allow_other"]))
    assert preflight.user_allow_other() is allowed
    if allowed:
        preflight.check_allow_other(shared)
    else:
        with pytest.raises(Failure, match="user_allow_other"):
            preflight.check_allow_other(shared)


def test_plain_http_to_another_machine_needs_insecure(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFailure, match="--insecure"):
        preflight.check_url(make_config("http://example.org", tmp_path, "ann", Options()))
    preflight.check_url(make_config("http://example.org", tmp_path, "ann", Options(insecure=True)))
    preflight.check_url(make_config("https://example.org", tmp_path, "ann", Options()))


def test_a_state_directory_belongs_to_one_account(config: MountConfig, tmp_path: Path) -> None:
    with Directories(config):
        assert preflight.identity(config.state_dir) is None
        preflight.remember_identity(config)
    preflight.check_identity(config)
    other = make_config(config.url, config.mountpoint, "bob", Options(state_dir=config.state_dir))
    with pytest.raises(Failure, match="belongs to ann"):
        preflight.check_identity(other)


def test_two_mounts_cannot_share_a_state_directory(config: MountConfig) -> None:
    with (
        Directories(config),
        pytest.raises(Failure, match="another mount is using"),
        Directories(config),
    ):
        pass
    with Directories(config):
        assert config.state_dir.stat().st_mode & 0o777 == 0o700
        assert config.cache_dir.stat().st_mode & 0o777 == 0o700


def placed(config: MountConfig, state: Path, cache: Path) -> MountConfig:
    return replace(config, state_dir=state, cache_dir=cache)


def test_a_start_that_failed_takes_back_only_what_it_made(
    config: MountConfig, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with Directories(placed(config, kept / "a" / "state", kept / "a" / "cache")) as directories:
        (kept / "a" / "state" / "tree").touch()
        directories.take_back()
    assert os.listdir(kept) == []
    with Directories(placed(config, kept, kept / "cache")) as directories:
        (kept / "journal").touch()
        directories.take_back()
    assert sorted(os.listdir(kept)) == ["journal", "lock"]


def test_what_was_put_beside_stays(config: MountConfig, tmp_path: Path) -> None:
    with Directories(placed(config, tmp_path / "a" / "s", tmp_path / "c")) as directories:
        (tmp_path / "a" / "other").touch()
        directories.take_back()
    assert os.listdir(tmp_path / "a") == ["other"]


@pytest.mark.parametrize("flag", ["--state", "--cache"])
def test_a_directory_that_cannot_be_made(config: MountConfig, tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").touch()
    bad, good = tmp_path / "file" / "x", tmp_path / "good"
    wrong = placed(config, bad, good) if flag == "--state" else placed(config, good, bad)
    with pytest.raises(Failure, match=flag), Directories(wrong):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "home", "mountpoint"]


def test_a_first_mount_needs_room_but_a_later_one_may_free_it(
    config: MountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(Failure, match="make room"):
        preflight.check_space(config)
    with Directories(config):
        preflight.remember_identity(config)
    preflight.check_space(config)


def test_what_only_root_may_ask_of_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(options: str) -> MountConfig:
        return make_config("http://localhost:1", tmp_path, "ann", parse_options([options]))

    monkeypatch.setattr(os, "getuid", lambda: 0)
    preflight.check_root_flags(asked("suid,dev"))
    with pytest.raises(UsageFailure, match="exclude"):
        preflight.check_root_flags(asked("allow_other,allow_root"))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    preflight.check_root_flags(asked("nosuid,allow_root"))
    with pytest.raises(Failure, match="only root may mount with suid"):
        preflight.check_root_flags(asked("suid"))


@pytest.mark.parametrize("flag", ["--state", "--cache"])
def test_a_directory_that_others_write_in_is_refused(
    config: MountConfig, tmp_path: Path, flag: str
) -> None:
    shared, good = tmp_path / "shared", tmp_path / "good"
    shared.mkdir()
    shared.chmod(0o775)
    wrong = placed(config, shared, good) if flag == "--state" else placed(config, good, shared)
    with (
        pytest.raises(Failure, match=rf"others may write in .*chmod 700 .* another {flag}"),
        Directories(wrong),
    ):
        pass
    assert os.listdir(shared) == []
    assert not good.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_directory_of_somebody_else_is_refused(config: MountConfig, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    with (
        pytest.raises(Failure, match="belongs to another user; give another --state"),
        Directories(placed(config, theirs, tmp_path / "cache")),
    ):
        pass
    assert os.listdir(theirs) == []


def test_a_directory_that_others_could_read_is_made_private(
    config: MountConfig, tmp_path: Path
) -> None:
    state, cache = tmp_path / "state", tmp_path / "cache"
    state.mkdir(mode=0o755)
    cache.mkdir(mode=0o700)
    with Directories(placed(config, state, cache)) as directories:
        assert directories.made_private == [state]
    assert state.stat().st_mode & 0o777 == 0o700


def test_what_is_missing_above_is_made_private_too(
    config: MountConfig, tmp_path: Path, no_umask: None
) -> None:
    with Directories(placed(config, tmp_path / "a" / "b" / "state", tmp_path / "cache")):
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
