"""mount/fuse/write_errors.py: who is told of a write that was refused."""

from __future__ import annotations

import errno

import pyfuse3
import pytest

from mount.fuse.write_errors import WriteErrors

A, B = 7, 8  # inodes


def fail(errors: WriteErrors, ino: int, failure: Exception) -> None:
    with pytest.raises(type(failure)), errors.watched(ino):
        raise failure


def told(errors: WriteErrors, handle: int) -> int | None:
    try:
        errors.check(handle)
    except OSError as error:
        return error.errno
    return 0


@pytest.fixture
def errors() -> WriteErrors:
    return WriteErrors()


def test_every_handle_that_was_open_for_writing_is_told_at_each_close(errors: WriteErrors) -> None:
    for handle in (1, 2):
        errors.opened(A, handle)
    errors.opened(B, 3)
    fail(errors, A, OSError(errno.ENOSPC, "full"))
    assert [told(errors, handle) for handle in (1, 1, 2, 3)] == [errno.ENOSPC] * 3 + [0]


def test_who_opens_later_is_not_told(errors: WriteErrors) -> None:
    errors.opened(A, 1)
    fail(errors, A, OSError(errno.ENOSPC, "full"))
    errors.opened(A, 2)
    assert (told(errors, 1), told(errors, 2)) == (errno.ENOSPC, 0)
    errors.released(A, 1)
    assert told(errors, 2) == 0
    fail(errors, A, OSError(errno.EIO, "broken"))
    assert told(errors, 2) == errno.EIO


def test_a_write_that_succeeds_takes_nothing_back(errors: WriteErrors) -> None:
    errors.opened(A, 1)
    fail(errors, A, OSError(errno.ENOSPC, "full"))
    with errors.watched(A):
        pass
    assert told(errors, 1) == errno.ENOSPC


def test_the_first_reason_is_told(errors: WriteErrors) -> None:
    errors.opened(A, 1)
    fail(errors, A, OSError(errno.EDQUOT, "full"))
    fail(errors, A, OSError(errno.EIO, "broken"))
    assert told(errors, 1) == errno.EDQUOT


@pytest.mark.parametrize(
    ("failure", "number"),
    [(pyfuse3.FUSEError(errno.EACCES), errno.EACCES), (OSError("?"), errno.EIO), (KeyError(), 5)],
)
def test_whatever_was_raised_is_told_as_the_write_was(
    errors: WriteErrors, failure: Exception, number: int
) -> None:
    errors.opened(A, 1)
    fail(errors, A, failure)
    assert told(errors, 1) == number


def test_nothing_is_left_of_handles_that_are_released(errors: WriteErrors) -> None:
    errors.opened(A, 1)
    errors.opened(A, 2)
    fail(errors, A, OSError(errno.ENOSPC, "full"))
    for handle in (1, 2, 3):
        errors.released(A, handle)
    assert vars(errors) == vars(WriteErrors())
    fail(errors, A, OSError(errno.ENOSPC, "full"))
    assert told(errors, 1) == 0
