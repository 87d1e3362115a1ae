"""A person who works through a real mount: the steps of `tests.model.people`, as system calls.

Knows: which call a step is, how to look at everything. Must not know: what must hold.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.model.people import alike, backup, cut, patched, temporary
from tests.model.reference import View

XATTR = "user.x"
RENAME_EXCHANGE, AT_FDCWD = 2, -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python does not have."""
    names = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


class MountedPerson:
    """Works below `at`. Paths are relative to it. Steps are `async` because those of the model are:
    nothing here waits but in system calls."""

    def __init__(self, at: Path) -> None:
        self.at = at

    async def save(self, path: str, data: bytes) -> None:
        (self.at / path).write_bytes(data)

    async def patch(self, path: str, at: int, mark: bytes) -> None:
        self._edit(path, patched(at, mark))

    async def truncate(self, path: str, size: int) -> None:
        self._edit(path, cut(size))

    def _edit(self, path: str, change: Callable[[bytes], bytes]) -> None:
        with (self.at / path).open("r+b", buffering=0) as file:
            old = file.read()
            new = change(old)
            same = alike(old, new)
            file.seek(same)
            file.write(new[same:])
            file.truncate(len(new))

    async def save_by_rename(self, path: str, data: bytes) -> None:
        with (self.at / temporary(path)).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        await self.rename(temporary(path), path)

    async def save_with_backup(self, path: str, data: bytes, way: str) -> None:
        if way == "create":
            await self.rename(path, backup(path))
            await self.save(path, data)
            return
        await self.save(temporary(path), data)
        if way == "exchange":
            await self.exchange(temporary(path), path)
            await self.remove(temporary(path))
            return
        if way == "rename":
            await self.rename(path, backup(path))
        else:
            await self.link(path, backup(path))
        await self.rename(temporary(path), path)

    async def rename(self, old: str, new: str) -> None:
        (self.at / old).rename(self.at / new)

    async def exchange(self, one: str, other: str) -> None:
        exchange(self.at / one, self.at / other)

    async def remove(self, path: str) -> None:
        found = self.at / path
        (found.rmdir if stat.S_ISDIR(found.lstat().st_mode) else found.unlink)()

    async def make(self, path: str, kind: str) -> None:
        if kind == "symlink":
            (self.at / path).symlink_to("elsewhere")
        else:
            (self.at / path).mkdir(mode=0o755)

    async def link(self, old: str, new: str) -> None:
        os.link(self.at / old, self.at / new, follow_symlinks=False)

    async def set_attributes(self, path: str, changes: dict[str, int]) -> None:
        found = self.at / path
        if stat.S_ISLNK(found.lstat().st_mode):
            return
        if "mode" in changes:
            found.chmod(changes["mode"])
        if "uid" in changes:
            os.chown(found, changes["uid"], -1)
        if "mtime_ns" in changes:
            os.utime(found, ns=(changes["mtime_ns"], changes["mtime_ns"]))

    async def set_xattr(self, path: str, value: bytes | None) -> None:
        if value is None:
            os.removexattr(self.at / path, XATTR, follow_symlinks=False)
        else:
            os.setxattr(self.at / path, XATTR, value, follow_symlinks=False)

    def view(self) -> View:
        """Every path with what can be seen of it; as `Device.everything`, but for the identity: all
        that is known is which files have several names."""
        found: dict[str, tuple[object, ...]] = {}
        self._walk(self.at, "", found)
        return found

    def _walk(self, directory: Path, above: str, found: dict[str, tuple[object, ...]]) -> None:
        for entry in sorted(os.scandir(directory), key=lambda one: one.name):
            path, seen = f"{above}/{entry.name}", entry.stat(follow_symlinks=False)
            regular, linked = stat.S_ISREG(seen.st_mode), entry.is_symlink()
            found[path] = (
                stat.S_IFMT(seen.st_mode),
                stat.S_IMODE(seen.st_mode),
                "several names" if regular and seen.st_nlink > 1 else path,
                seen.st_mtime_ns if regular else None,
                Path(entry.path).read_bytes() if regular else None,
                seen.st_nlink if regular else None,
                _xattr(entry.path),
                seen.st_uid,
                seen.st_gid,
                os.readlink(entry.path) if linked else None,
            )
            if stat.S_ISDIR(seen.st_mode):
                self._walk(Path(entry.path), path, found)


def _xattr(path: str) -> bytes | None:
    try:
        return os.getxattr(path, XATTR, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EPERM, errno.ENOTSUP):
            return None
        raise
