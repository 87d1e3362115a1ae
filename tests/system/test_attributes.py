"""Attributes on real mounts: extended ones, times, inode numbers, link counts, sizes of it all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import Pair
from tests.system.harness import run, wait_until

STATUS = "user.nearline.status"
SECOND = 10**9
LAST_NS = (1 << 63) - 1
MOMENTS = {
    "before the epoch": -5 * SECOND - 3,
    "the epoch": 0,
    "1901": -(2**31) * SECOND - 1,
    "after 2038": 2**31 * SECOND + 7,
    "after 2106": 2**32 * SECOND + 123_456_789,
    "the last there is": LAST_NS,
}
_libc = ctypes.CDLL(None, use_errno=True)


def error_of(call: Callable[..., object], *args: object, **kwargs: object) -> int:
    """The errno that the call fails with."""
    with pytest.raises(OSError, match="Errno") as caught:
        call(*args, **kwargs)
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.fixture
def place(pair: Pair, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own on device a."""
    name: str = request.node.name
    (pair.a.at / name).mkdir()
    return pair.a.at / name


def made(path: Path, content: str = "x") -> Path:
    path.write_text(content)
    return path


def modified(path: Path, when_ns: int) -> Callable[[], bool]:
    return lambda: path.stat().st_mtime_ns == when_ns


# --- extended attributes --------------------------------------------------------------------------


def test_create_and_replace_say_what_must_be_there(place: Path) -> None:
    file = made(place / "file")
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    assert error_of(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
    assert error_of(os.setxattr, file, "user.b", b"4", os.XATTR_REPLACE) == errno.ENODATA
    assert error_of(os.getxattr, file, "user.b") == errno.ENODATA
    assert error_of(os.removexattr, file, "user.b") == errno.ENODATA
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == {"user.a": b"3"}


def test_the_limits_of_names_and_values(place: Path) -> None:
    file, longest = made(place / "file"), "user." + "n" * 250
    os.setxattr(file, longest, b"")
    assert os.getxattr(file, longest) == b""
    assert error_of(os.setxattr, file, longest + "n", b"") == errno.ERANGE
    assert error_of(os.setxattr, file, "user.", b"") == errno.EINVAL
    assert error_of(os.setxattr, file, b"user.\xff", b"") == errno.EILSEQ
    os.setxattr(file, "user.big", bytes(1 << 16))
    assert error_of(os.setxattr, file, "user.big", bytes((1 << 16) + 1)) == errno.E2BIG
    assert len(os.getxattr(file, "user.big")) == 1 << 16
    small, raw = ctypes.create_string_buffer(2), os.fsencode(file)
    assert _libc.getxattr(raw, b"user.big", small, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert _libc.listxattr(raw, small, 2) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert _libc.getxattr(raw, b"user.big", None, 0) == 1 << 16
    assert _libc.listxattr(raw, None, 0) == len(longest) + 1 + len(b"user.big\0")


def test_a_file_takes_a_mebibyte_of_attributes_and_says_when_it_is_full(
    pair: Pair, place: Path
) -> None:
    file = made(place / "file")
    for number in range(16):
        os.setxattr(file, f"user.{number}", bytes(1 << 16))
    assert error_of(os.setxattr, file, "user.more", b"1") == errno.ENOSPC
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "user.0", b"in place of another")
    os.setxattr(file, "user.more", b"1")
    many = made(place / "many")
    names = [f"user.{number:04}{'n' * 240}" for number in range(300)]
    error = errno.ENOSPC, len(names)
    for taken, name in enumerate(names):
        try:
            os.setxattr(many, name, b"")
        except OSError as full:
            error = full.errno or 0, taken
            break
    assert error == (errno.ENOSPC, (1 << 16) // (len(names[0]) + 1))
    assert len(os.listxattr(many)) == error[1], "what was taken can be listed"
    pair.a.flush()
    there = pair.b.sees(f"{place.name}/many")
    assert sorted(os.listxattr(there)) == names[: error[1]]


def test_attributes_are_for_files_and_directories(place: Path) -> None:
    (place / "link").symlink_to("nowhere")
    os.mkfifo(place / "fifo")
    for name in ("link", "fifo"):
        where = {"path": place / name, "follow_symlinks": False}
        assert error_of(os.setxattr, attribute="user.a", value=b"", **where) == errno.EPERM
        assert error_of(os.getxattr, attribute="user.a", **where) == errno.ENODATA
        assert os.listxattr(**where) == []
    (place / "dir").mkdir()
    os.setxattr(place / "dir", "user.a", b"on a directory")
    assert os.getxattr(place / "dir", "user.a") == b"on a directory"


@pytest.mark.parametrize(
    "name", ["trusted.a", "security.a", "security.selinux", "system.a", "foo", "foo.bar", "USER.a"]
)
def test_other_namespaces_are_not_kept_and_say_so(pair: Pair, name: str) -> None:
    file = made(pair.a.at / "namespaces")
    assert error_of(os.setxattr, file, name, b"") == errno.ENOTSUP
    assert error_of(os.getxattr, file, name) == errno.ENOTSUP
    assert error_of(os.removexattr, file, name) == errno.ENOTSUP
    assert os.listxattr(file) == []


def test_there_are_no_acls_and_the_tools_are_told(place: Path) -> None:
    file = made(place / "file")
    for word in ("u:12345:r", "d:u:12345:r"):
        target = place if word.startswith("d") else file
        done = run("setfacl", "-m", word, target, check=False)
        assert (done.returncode, "not supported" in done.stderr) == (1, True), done
    run("setfacl", "-b", file)
    assert "user::rw-" in run("getfacl", "-cp", file).stdout
    run("ls", "-l", place)


def test_the_status_is_neither_listed_nor_set_nor_copied(pair: Pair, place: Path) -> None:
    (place / "from").mkdir()
    file = made(place / "from" / "file")
    os.setxattr(file, "user.kept", b"yes")
    assert os.getxattr(file, STATUS) in (b"pending", b"uploading", b"synced")
    assert error_of(os.setxattr, file, STATUS, b"synced") == errno.EPERM
    assert error_of(os.setxattr, file, STATUS, b"", os.XATTR_CREATE) == errno.EEXIST
    assert error_of(os.removexattr, file, STATUS) == errno.EPERM
    run("cp", "-a", place / "from", place / "copied")
    assert os.listxattr(place / "copied" / "file") == ["user.kept"]


def test_rsync_and_cp_keep_everything_both_ways(pair: Pair, tmp_path: Path) -> None:
    """Real owners, hard links, attributes and ACLs that are no more than the mode."""
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    file = made(source / "dir" / "file", "content")
    file.chmod(0o4751)
    os.link(file, source / "twin")
    (source / "link").symlink_to("dir/file")
    os.mkfifo(source / "fifo")
    os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    if os.getuid() == 0:
        os.chown(source / "dir", 1234, 4321)
    try:
        os.setxattr(file, "user.colour", b"blue\0green")
    except OSError:
        pytest.skip("the temporary directory has no extended attributes")
    (pair.a.at / "rsynced").mkdir()
    run("rsync", "-aHAX", f"{source}/", pair.a.at / "rsynced")
    run("cp", "-a", source, pair.a.at / "copied")
    back = tmp_path / "back"
    run("rsync", "-aHAX", f"{pair.a.at / 'rsynced'}/", back)
    for copy in (pair.a.at / "rsynced", pair.a.at / "copied", back):
        again = run("rsync", "-aHAXin", "--delete", f"{source}/", copy)
        assert again.stdout == "", f"{copy} differs"
        assert os.getxattr(copy / "twin", "user.colour") == b"blue\0green"


# --- times ----------------------------------------------------------------------------------------


def test_times_are_kept_to_the_nanosecond_far_into_both_directions(pair: Pair, place: Path) -> None:
    for name, moment in MOMENTS.items():
        os.utime(made(place / name), ns=(moment - 1, moment))
        (place / f"{name} dir").mkdir()
        os.utime(place / f"{name} dir", ns=(moment - 1, moment))
    (place / "link").symlink_to("nowhere")
    os.utime(place / "link", ns=(1, 2), follow_symlinks=False)
    pair.a.flush()
    there = pair.b.sees(place.name)
    pair.b.sees(f"{place.name}/link")
    for name, moment in MOMENTS.items():
        for path in (place / name, place / f"{name} dir"):
            seen = path.stat()
            assert (seen.st_atime_ns, seen.st_mtime_ns) == (moment - 1, moment), path
            assert (there / path.name).stat().st_mtime_ns == moment, path
    assert (place / "link").lstat().st_mtime_ns == (there / "link").lstat().st_mtime_ns == 2


def test_a_time_that_there_is_not_becomes_the_nearest_one(pair: Pair, place: Path) -> None:
    """As on any file system; ext4 ends in 2446, nanoseconds of 64 bits in 2262."""
    for name, moment in (("late", 2**34 * SECOND), ("early", -(2**34) * SECOND)):
        (place / name).mkdir()
        os.utime(place / name, ns=(moment, moment))
        nearest = LAST_NS if moment > 0 else -LAST_NS - 1
        seen = (place / name).stat()
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (nearest, nearest)
        os.utime(made(place / f"{name} file"), ns=(moment, moment))
        pair.a.flush()
        there = pair.b.sees(f"{place.name}/{name} file")
        pair.b.shows(modified(there, nearest), "its time on b")


def test_one_time_is_set_and_the_other_left(place: Path) -> None:
    file = made(place / "file")
    os.utime(file, ns=(7, 8))
    run("touch", "-a", file)
    assert file.stat().st_mtime_ns == 8
    assert file.stat().st_atime_ns > 8
    os.utime(file, ns=(7, 8))
    run("touch", "-m", file)
    assert file.stat().st_atime_ns == 7
    assert file.stat().st_mtime_ns > 8
    run("touch", file)
    assert file.stat().st_atime_ns > 7


def test_reading_leaves_the_access_time(place: Path) -> None:
    file = made(place / "file")
    os.utime(file, ns=(7, 8))
    assert file.read_text() == "x"
    os.listdir(place)
    assert file.stat().st_atime_ns == 7


# --- inode numbers, links -------------------------------------------------------------------------


def test_inode_numbers_and_attributes_stay_over_flush_remount_and_kill(
    pair: Pair, place: Path
) -> None:
    (place / "dir" / "below").mkdir(parents=True)
    os.utime(made(place / "file"), ns=(5, 6))
    os.setxattr(place / "file", "user.a", b"1")
    os.link(place / "file", place / "dir" / "twin")
    (place / "link").symlink_to("file")
    os.mkfifo(place / "fifo")

    def look() -> dict[str, tuple[int, ...]]:
        paths = [place, *sorted(place.rglob("*"))]
        seen = {str(path): path.lstat() for path in paths}
        return {
            path: (s.st_ino, s.st_nlink, s.st_mode, s.st_mtime_ns, s.st_atime_ns)
            for path, s in seen.items()
        }

    before = look()
    assert before[str(place / "file")][1] == before[str(place / "dir" / "twin")][1] == 2
    assert before[str(place)][1] == 3
    assert before[str(place / "file")][0] == before[str(place / "dir" / "twin")][0]
    assert len({ino for ino, *_ in before.values()}) == len(before) - 1
    pair.a.flush()
    assert look() == before
    pair.a.umount()
    pair.a.mount()
    assert look() == before
    pair.a.kill()
    pair.a.umount()
    pair.a.mount()
    assert look() == before
    assert os.getxattr(place / "file", "user.a") == b"1"


def test_link_counts_are_right_on_both_devices(pair: Pair, place: Path) -> None:
    for name in ("one", "two", "two/deep"):
        (place / name).mkdir()
    os.link(made(place / "file"), place / "one" / "twin")
    pair.a.flush()
    there = pair.b.sees(place.name)
    # 1: nobody has looked yet. The same as soon as somebody has.
    assert there.stat().st_nlink in (1, 4)
    assert sorted(os.listdir(there)) == ["file", "one", "two"]
    wait_until(lambda: there.stat().st_nlink == 4, "the link count of a listed directory")
    assert (there / "file").stat().st_nlink == 2
    os.listdir(there / "two")
    wait_until(lambda: (there / "two").stat().st_nlink == 3, "that of one further below")
    (place / "two" / "deep").rmdir()
    (place / "three").mkdir()
    (place / "one" / "twin").unlink()
    assert place.stat().st_nlink == 5
    assert (place / "two").stat().st_nlink == 2
    wait_until(lambda: there.stat().st_nlink == 5, "a directory that came")
    wait_until(lambda: (there / "two").stat().st_nlink == 2, "a directory that went")
    wait_until(lambda: (there / "file").stat().st_nlink == 1, "a link that went")
    found = run("find", there, "-type", "d").stdout.splitlines()
    assert len(found) == 4


# --- how much there is ----------------------------------------------------------------------------


GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602


def test_there_are_no_flags_of_chattr(place: Path) -> None:
    """Told as by every file system without them: `chattr +i` must not seem to have helped."""
    for path in (made(place / "file"), place):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flags = bytearray(8)
            assert error_of(fcntl.ioctl, descriptor, GET_FLAGS, flags) == errno.ENOTTY
            assert error_of(fcntl.ioctl, descriptor, SET_FLAGS, bytes(8)) == errno.ENOTTY
        finally:
            os.close(descriptor)
    (place / "file").unlink()


def test_df_shows_the_quota_and_the_use(pair: Pair, place: Path) -> None:
    data = pair.site.server.data
    pair.site.cli("account", "set", "anna", "--quota", "1GiB", "--data", data)
    pair.a.umount()
    pair.a.mount()
    wait_until(lambda: os.statvfs(place).f_blocks == 1 << 18, "the quota")
    before = os.statvfs(place)
    with (place / "file").open("wb") as file:
        file.write(os.urandom(8 << 20))
        file.flush()
        os.fsync(file.fileno())
        after = os.statvfs(place)  # of what is not sent yet, as the file is open
    assert (before.f_bavail - after.f_bavail) * after.f_frsize >= 8 << 20, "at once"
    assert (after.f_namemax, after.f_bsize) == (255, 4096)
    shown = run("df", "-h", "--output=size,source,fstype", place).stdout.splitlines()[1].split()
    assert shown == ["1.0G", pair.site.server.url, "fuse.nearline"]
    run("df", "-i", place)
    pair.a.flush()
    pair.site.server.stop()
    try:
        pair.a.umount("--now")
        pair.a.mount()
        assert os.statvfs(place).f_blocks == 1 << 18, "as it was last told, without the network"
    finally:
        pair.site.server.start()
    pair.site.cli("account", "set", "anna", "--quota", "none", "--data", data)
    assert subprocess.run(["stat", "-f", place], check=True, capture_output=True).stdout
