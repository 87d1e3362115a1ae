"""The data directory as a place: whose it is, and that nobody else reads or writes in it.

Knows: owners, modes and the umask, and which names in a data directory or a backup are ours. Must
not know: what the files hold.

Who may write in the directory may put another database, another key, or a symbolic link there, and
the files in it cannot be believed: that is refused. Who may only read is shut out, and what is
there is believed. Root may look after data of the user that a server runs as, and leaves its modes
alone; but a server runs as the owner of its data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS = 0o077
_WRITE = 0o022
# Below a drive's directory in `blobs` nothing is looked at: who cannot enter that gets no further,
# and there may be millions of objects.
_DIRECTORIES = ("keys", "blobs", "blobs/*", "state-*", "state-*/keys")
_FILES = (
    *("nearline.sqlite*", "lock", "gc.lock", "kept.json", "keys/*"),
    *("server.url", "server.certificate", "server.fingerprint"),
    *("server.log*", "up.json", "account-password"),
    *("backup.json", "state-*/*", "state-*/keys/*"),
)
# In the log.
_NAMED = 20

# Not structlog, which writes to standard output where nobody has configured it: in commands.
log = logging.getLogger("nearline.data")


class NotPrivate(RuntimeError):
    """The directory is not safe from other users; the message says what to do."""


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Keeps files that this process makes meanwhile for its user alone, whatever umask it was
    started with."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make(directory: Path) -> None:
    """Make `directory` and what is missing above it, for this user alone."""
    for path in reversed((directory, *directory.parents)):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Make an empty file for this user alone, if it is not there: SQLite gives the files beside a
    database the mode that it has."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def secure(directory: Path) -> None:
    """`check` it, and `shut` it."""
    check(directory)
    shut(directory)


def check(directory: Path, *, serving: bool = False) -> None:
    """Make `directory` if it is not there. `serving`: root may not, for somebody else.

    Raises `NotPrivate` if it is another user's or others may write in it, and OSError if it cannot
    be made.
    """
    make(directory)
    found = directory.stat()
    _check_owner(directory, found, serving=serving)
    if found.st_mode & _WRITE:
        raise NotPrivate(
            f"others may write in {directory}; look at what is in it, then run"
            f" `chmod -R go= {directory}`"
        )


def shut(directory: Path) -> None:
    """Make `directory`, and what is ours in it, private. A line of the log (of a command: on
    standard error) says what others could read until now.

    Raises `NotPrivate` if it cannot be made so.
    """
    if directory.stat().st_uid == os.geteuid():
        _say(directory, [path for path in _ours(directory) if _close(path)])


def _say(directory: Path, closed: list[Path]) -> None:
    if not closed:
        return
    named = ", ".join(path.relative_to(directory).as_posix() for path in closed[:_NAMED])
    more = ", ..." if len(closed) > _NAMED else ""
    log.warning("made private in %s, others could read it: %s%s", directory, named, more)


def _check_owner(directory: Path, found: os.stat_result, *, serving: bool) -> None:
    me = os.geteuid()
    if found.st_uid == me or (me == 0 and not serving):
        return
    raise NotPrivate(
        f"{directory} belongs to user {found.st_uid}, and this is user {me}; run this as that user,"
        f" or give it away with `chown -R {me} {directory}`"
    )


def _ours(directory: Path) -> Iterator[Path]:
    yield directory
    for pattern in _DIRECTORIES:
        yield from (path for path in directory.glob(pattern) if path.is_dir())
    for pattern in _FILES:
        yield from (path for path in directory.glob(pattern) if stat.S_ISREG(path.lstat().st_mode))


def _close(path: Path) -> bool:
    """Take the rights of all others away; whether they had any."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & OTHERS:
        return False
    try:
        path.chmod(mode & ~OTHERS)
    except OSError as error:
        raise NotPrivate(
            f"others may read {path}, and that cannot be changed ({error.strerror}); make it"
            " yours with chown, or mount its file system so that only you can read it"
        ) from error
    return True
