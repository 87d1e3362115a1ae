"""Room that is taken before it is needed. On whatever file system the temporary directory is; both
tmpfs and ext4 can do it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.metadata import reserve
from cache.metadata.reserve import Standing, hold

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def blocks(path: int | Path) -> int:
    return os.stat(path).st_blocks * 512


def test_room_is_taken_behind_the_end_and_the_size_stays(file: int) -> None:
    os.write(file, b"hello")
    assert hold(file, 5, 2 * MIB) == 2 * MIB
    assert blocks(file) >= 2 * MIB
    assert os.fstat(file).st_size == 5
    assert os.pread(file, 10, 0) == b"hello"


def refusing(code: int, above: int) -> type:
    """A libc whose `fallocate` does not give more than `above` bytes in all."""
    left = above

    class Libc:
        @staticmethod
        def fallocate(_fd: int, _mode: int, _start: object, length: object) -> int:
            nonlocal left
            if length.value <= left:  # type: ignore[attr-defined]  # a c_int64
                left -= length.value  # type: ignore[attr-defined]
                return 0
            reserve.ctypes.set_errno(code)
            return -1

    return Libc


def test_on_a_disk_with_little_room_as_much_is_taken_as_there_is(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "_libc", refusing(errno.ENOSPC, 8 * MIB - 1))
    assert hold(file, 0, 8 * MIB) == 8 * MIB - MIB // 4
    monkeypatch.setattr(reserve, "_libc", refusing(errno.EDQUOT, 0))
    assert hold(file, 0, 8 * MIB) == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_it_cannot_be_done_nothing_is_taken(
    file: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(reserve, "_libc", refusing(code, 0))
    assert hold(file, 0, 8 * MIB) == 0
    monkeypatch.setattr(reserve, "_libc", object())  # a system without the call
    assert hold(file, 0, 8 * MIB) == 0


def test_what_is_no_full_disk_is_told(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "_libc", refusing(errno.EIO, 0))
    with pytest.raises(OSError, match="Input/output"):
        hold(file, 0, MIB)


def test_a_standing_file_is_room_until_it_is_released(tmp_path: Path) -> None:
    standing, path = Standing(tmp_path), tmp_path / "reserve"
    assert not standing.release()  # there is none
    standing.keep(MIB)
    standing.keep(2 * MIB)
    assert blocks(path) >= 2 * MIB
    assert path.stat().st_size == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert standing.release()
    assert not path.exists()
