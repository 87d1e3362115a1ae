"""Functions that `os` lacks: durable files and names, private directories, private copies.

Knows: system calls. Must not know: what is stored. Here alone stands how a file is written so that
it is there whole or not at all, also after power loss.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def sync_file(file: Path) -> None:
    """Return when the bytes of `file` survive power loss."""
    _sync(file, os.O_RDONLY)


def sync_directory(directory: Path) -> None:
    """Return when the names in it survive power loss."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(
    file: Path, data: bytes, *, mode: int = 0o600, owner: tuple[int, int] | None = None
) -> None:
    """Make `file` hold `data` with permission bits `mode`, of the user and group `owner`: on return
    all of it is there and survives power loss; before that, and if this raises, what was there."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    fresh = Path(name)
    try:
        with open(descriptor, "wb") as stream:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)  # whatever the umask is
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        fresh.replace(file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def make_private(directory: Path) -> None:
    """Make `directory`, and what is missing above it, for this user alone whatever the umask is
    (`Path.mkdir` with `parents` gives only the last one the mode). One that is there stays."""
    for path in reversed((directory, *directory.parents)):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def copy_private(file: Path, target: Path) -> None:
    """Copy the bytes of `file`; only the owner of `target` can read it, also while it grows. A
    `target` that is there is written over."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    target.chmod(0o600)  # if it was there
    shutil.copyfile(file, target)
