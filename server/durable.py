"""Writes files of the server so that they are there whole or not at all, also after power loss.

Knows: system calls. Must not know: what is stored. (The client has its own in `cache.metadata`:
server and client share nothing but the protocol.)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def sync_file(path: Path) -> None:
    """Return when the bytes of the file survive power loss."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Return when the names in it survive power loss."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_private(path: Path, data: bytes) -> bytes:
    """Write `data` to `path`, mode 0600, so that it is there whole or not at all. Root writes it
    for the directory's owner: an administrator's command must not lock the server out."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
        file.write(data)
        file.flush()
        os.fsync(fd)
    temporary.rename(path)
    return data
