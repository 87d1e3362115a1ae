"""mount/fuse/xattrs.py: which attributes there are, and how many."""

from __future__ import annotations

import errno

import pytest

from mount.fuse.xattrs import MAX_VALUES_BYTES, STATUS, check_room, decode, decode_settable


def code_of(call: object, *arguments: object) -> int | None:
    with pytest.raises(OSError, match="Errno") as caught:
        call(*arguments)  # type: ignore[operator]  # each of these is a function
    return caught.value.errno


def test_names() -> None:
    assert decode("user.ünïcode".encode()) == "user.ünïcode"
    assert decode(STATUS.encode()) == STATUS
    for name in (b"trusted.a", b"security.capability", b"system.posix_acl_access", b"user", b"a"):
        assert code_of(decode, name) == errno.ENOTSUP
    assert code_of(decode, b"user.") == errno.EINVAL
    assert code_of(decode, b"user.\xed\xa0\x80") == errno.EILSEQ
    assert code_of(decode_settable, STATUS.encode()) == errno.EPERM


def test_room_for_values_is_that_of_the_server() -> None:
    sizes = {"user.a": MAX_VALUES_BYTES - 5, "user.b": 5}
    check_room(sizes, "user.b", 5)
    check_room(sizes, "user.c", 0)
    assert code_of(check_room, sizes, "user.c", 1) == errno.ENOSPC
    assert code_of(check_room, sizes, "user.b", 6) == errno.ENOSPC


def test_no_more_names_than_can_be_listed() -> None:
    sizes = {f"user.{number:04}{'n' * 246}": 0 for number in range(256)}  # 256 bytes with the NUL
    check_room(sizes, f"user.0000{'n' * 246}", 9)
    assert code_of(check_room, sizes, "user.a", 0) == errno.ENOSPC
