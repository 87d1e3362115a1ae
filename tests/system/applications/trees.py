"""Directory trees as far as programs can tell, and that two of them are the same.

Knows: the file system's calls. Must not know: Nearline, but for the name of the attribute that it
adds to every file, which is about the device and not about the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from tests.system.conftest import Pair
from tests.system.harness import Trouble, wait_until

LONG_AGO_NS = 1_500_000_000 * 10**9
OURS = "user.nearline.status"


@dataclass(frozen=True)
class Entry:
    """One name. `names` is the first of all names of the same file in the tree, `digest` what it
    contains: a regular file's bytes, a symbolic link's target."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    links: int
    names: str
    attributes: tuple[tuple[str, bytes], ...]
    digest: bytes = b""


def entries(top: Path, *, ignored: tuple[str, ...] = ()) -> dict[str, Entry]:
    """Everything below `top` but its contents, by relative path; without what lies below `ignored`.
    Of a directory neither the size nor the links count, and its mtime only if a program has set it
    (to long ago): the moment of the last change in it is each device's own, and the server's."""
    found: dict[str, Entry] = {}
    first: dict[int, str] = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if name.startswith(ignored):
            continue
        of = path.lstat()
        counted = not stat.S_ISDIR(of.st_mode)
        found[name] = Entry(
            of.st_mode,
            (of.st_uid, of.st_gid),
            of.st_mtime_ns if counted or of.st_mtime_ns < LONG_AGO_NS else 0,
            of.st_size if counted else 0,
            of.st_nlink if counted else 0,
            first.setdefault(of.st_ino, name),
            tuple(sorted(attributes(path).items())),
        )
    return found


def attributes(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name != OURS}


def tree(top: Path, *, ignored: tuple[str, ...] = ()) -> dict[str, Entry]:
    """`entries` with their contents."""
    return {
        name: replace(entry, digest=digest(top / name, entry.mode))
        for name, entry in entries(top, ignored=ignored).items()
    }


def digest(path: Path, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.fsencode(path.readlink())
    if not stat.S_ISREG(mode):
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def same_tree(ours: Path, theirs: Path, *, ignored: tuple[str, ...] = ()) -> None:
    """Names, types, modes, owners, times, hard links, attributes and bytes."""
    same(tree(ours, ignored=ignored), tree(theirs, ignored=ignored), f"{ours} and {theirs}")


def same(here: dict[str, Entry], there: dict[str, Entry], what: str) -> None:
    differing = {
        name: (here.get(name), there.get(name))
        for name in here.keys() | there.keys()
        if here.get(name) != there.get(name)
    }
    assert not differing, f"{what} differ: {differing}"


def arrives(pair: Pair, name: str, *, ignored: tuple[str, ...] = (), contents: bool = True) -> Path:
    """The directory `name`, written on `a`, is the same on `b`; where it is there. Without
    `contents` the bytes are not looked at: of many small files each is fetched by itself."""
    pair.a.flush()
    ours, theirs = pair.a.at / name, pair.b.at / name
    wanted = entries(ours, ignored=ignored)

    def there() -> dict[str, Entry]:
        try:
            return entries(theirs, ignored=ignored)
        except OSError as error:  # a name, or an attribute, that is going
            if error.errno not in (errno.ENOENT, errno.ENODATA):
                raise
            return {}

    try:
        wait_until(lambda: there() == wanted, f"{name} on b")
    except Trouble:
        same(wanted, there(), f"{name} on a and on b")  # says what
        raise
    if contents:
        same_tree(ours, theirs, ignored=ignored)
    return theirs
