"""What is missing in `os`: durable names, private directories, private copies.

Knows: system calls. Must not know: what is stored.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Return when the names in it survive power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
