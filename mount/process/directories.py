"""The two directories of a mount: making them privately, holding them, taking them back.

Knows: who may use a state directory (flock(2) on its file `lock`, which the kernel lets go of
however the process ends), whose the directories must be, which ones a start has made, and the room
that a state directory has for the next start. Must not know: what is in them.

Invariant: a directory that was there before is never removed, nor one whose mount was ever usable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from cache.metadata.durable import make_private
from cache.metadata.reserve import RESERVE_BYTES, START_BYTES, Standing
from mount.config import MountConfig
from mount.failures import Failure
from mount.process import detached_mounts, registry


class Directories:
    """Makes the state and cache directories (0700) and holds the lock of the former while inside.

    One that was there must be this user's, and writable by nobody else; `made_private` are those
    that others could read until now.

    Raises `Failure` on entering when another mount has the lock, or a directory cannot be made or
    used; then nothing is left of what entering made."""

    def __init__(self, config: MountConfig) -> None:
        self._state, self._cache = config.state_dir, config.cache_dir
        self._descriptor = -1
        self._standing, self._has_standing = Standing(config.state_dir), False
        self._made: list[Path] = []
        self.made_private: list[Path] = []

    def __enter__(self) -> Directories:
        try:
            self._make(self._state, "--state")
            self._lock()
            self._has_standing = self._standing.release()
            self._make(self._cache, "--cache")
        except BaseException:
            self.take_back()
            self._unlock()
            raise
        return self

    def _make(self, directory: Path, flag: str) -> None:
        # Innermost first: the order in which they can be removed again.
        self._made[:0] = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            make_private(directory)
        except OSError as error:
            raise Failure(
                f"cannot make {directory}: {error.strerror}; make room, or give another {flag}"
            ) from error
        self._close_to_others(directory, flag)

    def _close_to_others(self, directory: Path, flag: str) -> None:
        found = directory.stat()
        if found.st_uid != os.geteuid():
            raise Failure(f"{directory} belongs to another user; give another {flag}")
        if found.st_mode & 0o022:
            raise Failure(
                f"others may write in {directory}; look at what is in it and run "
                f"`chmod 700 {directory}`, or give another {flag}"
            )
        if found.st_mode & 0o077:
            directory.chmod(0o700)
            self.made_private.append(directory)

    def _lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._state / "lock", flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure(_in_use(self._state)) from error
        except OSError as error:
            raise Failure(
                f"cannot write in {self._state}: {error.strerror}; give another --state"
            ) from error

    def take_back(self) -> None:
        """Remove the directories that entering made, with what a start that was never usable put
        there. A directory that something else was put beside stays."""
        for path in self._made:
            if path in (self._state, self._cache):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # not empty, or never made
                    path.rmdir()

    def started(self) -> None:
        """The next start is to have room too, should this one be killed."""
        self._has_standing = True
        self._standing.keep(START_BYTES)

    def _unlock(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_standing and self._state.exists():  # not taken back
            self._standing.keep(RESERVE_BYTES + START_BYTES)
        self._unlock()


def _in_use(state: Path) -> str:
    record = registry.using(state)
    if record is None:
        return f"another mount is using {state}; unmount it, or give another --state"
    if said := detached_mounts.described(record):
        return f"the state in {state} is in use: {said}; or give another --state"
    return (
        f"the mount at {record.mountpoint} (process {record.pid}) is using {state}; run "
        f"`nearline umount {record.mountpoint}`, or give another --state"
    )


def existing(path: Path) -> Path:
    """The nearest directory above (or at) `path` that is there: where it would be made."""
    while not path.exists():
        path = path.parent
    return path
