"""Users who could change what a unit, or mount(8), is going to run.

Knows: which files a Python program runs, and how the kernel finds a path. Must not know: units.

A file is trusted when nobody but root (for a user's own unit: and that user) may write it, or
write in a directory on the way to it, symbolic links and their targets included: who may rename in
one of those can put another program there. `python -m mount.units.trust COMMAND` asks it for what
root is to run.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from mount.failures import Failure

ROOT = 0
# Followed on the way to one path, as by the kernel (path_resolution(7)).
_LINKS = 40


def check_program(users: Collection[int], command: Path) -> None:
    """Raise `Failure` if anybody but `users` could change `command` or the Python that runs it:
    the interpreter, and everything in the directories that it loads modules from."""
    for path in (command, Path(sys.executable), *_module_directories()):
        wrong = first_untrusted(path, users)
        if wrong is not None:
            raise Failure(
                f"{wrong}: who may change it would have the rights of whoever runs {command}; "
                "install a copy that only root can change (as root: `scripts/install-system`)"
            )


def _module_directories() -> list[Path]:
    """Also those that are not there: nobody else may be able to make them."""
    return [Path(entry) for entry in dict.fromkeys(sys.path) if entry]


def first_untrusted(path: Path, users: Collection[int]) -> str | None:
    """All that anybody but `users` may change of `path`, of what is in it, or on the way to it, in
    words; None for nothing. Raises OSError if it cannot be looked at."""
    for item in (*_way(Path(os.path.abspath(path))), *_inside(path)):
        wrong = _why_untrusted(item, users)
        if wrong is not None:
            return wrong
    return None


def _way(path: Path) -> Iterator[Path]:
    """Every name that the kernel looks up on the way to `path`."""
    at, rest, links = Path("/"), list(path.parts[1:]), 0
    yield at
    while rest:
        name = rest.pop(0)
        at = at.parent if name == ".." else at / name
        yield at
        if at.is_symlink():
            links += 1
            if links > _LINKS:
                raise OSError(f"too many symbolic links on the way to {path}")
            target = Path(os.readlink(at))
            rest[:0] = target.parts[1:] if target.is_absolute() else target.parts
            at = Path("/") if target.is_absolute() else at.parent


def _inside(path: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(path, onerror=_fail):
        directories[:] = [name for name in directories if not name.startswith(".")]  # no modules
        for path in (Path(directory, name) for name in (*directories, *files)):
            yield path
            if path.is_symlink():
                yield from _way(path)


def _fail(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # a file, or not there
        raise error


def _why_untrusted(path: Path, users: Collection[int]) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if found.st_uid not in users:
        return f"{path} belongs to {_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode):  # its mode means nothing
        return None
    if found.st_mode & stat.S_IWOTH:
        return f"{path} may be written by everybody"
    if found.st_mode & stat.S_IWGRP and not _members(found.st_gid) <= set(users):
        return f"{path} may be written by the group {_group(found.st_gid)}"
    return None


def _members(gid: int) -> set[int]:
    """The users of a group: many have one of their own, of which they are the only one."""
    found = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:  # nobody is in it now, and nobody knows who will be
        return {-1}
    for name in names:
        try:
            found.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            continue  # a name without a user
    return found


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


if __name__ == "__main__":
    try:
        check_program({ROOT}, Path(sys.argv[1]))
    except (Failure, OSError) as error:
        print(f"nearline: {error}", file=sys.stderr)
        sys.exit(1)
