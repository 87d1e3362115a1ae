"""A directory as a zip archive, made while it is sent.

Knows: the archive's layout, which files go in and under which names. Must not know: who may see a
file (`Tree` says what there is), HTTP.

- Regular files and directories go in, with their times and permissions. Symlinks, devices, pipes
  and sockets do not: unpacked elsewhere they would point at something else.
- Stored, not deflated; ZIP64 where a size asks for it; names in UTF-8, made safe by
  `documents_names`, all below one directory. What has too long a path is beside what it was in.
- The tree is looked at as the archive comes to it. What is gone by then is left out; what changes
  is taken as it is when its turn comes. Damage ends the stream before its index, so that nobody
  takes a part for the whole.

Concurrency and memory are as in `documents`, but for the archive's index, which comes last: about
a kilobyte for each file (measured). That is why `MAX_MEMBERS` is checked before one begins.

The standard library's writer is used: it streams to whatever has `write`, and unlike the packages
made for that it keeps times and permissions.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from remote.codec import Buffer
from server.public.documents import PIECE, Document
from server.public.documents_names import packed

MAX_MEMBERS = 50_000
_LONGEST_PATH = 4096
"""Bytes: no system makes longer ones. The format has room for 65,535."""
_PATHS = 16 << 20
"""Bytes of paths in one archive, all of which its index holds; beyond, paths are at most
`_SHORT_PATH`."""
_SHORT_PATH = 512
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
_TIME_FIELD = struct.Struct("<HHBi")
_MS_DOS_DIRECTORY = 0x10


class Member(NamedTuple):
    """An entry of a directory."""

    file: str
    name: str
    kind: str
    mode: int
    mtime_ns: int


class Content(NamedTuple):
    """A regular file at the moment when its turn comes."""

    document: Document
    mode: int
    mtime_ns: int


class Tree(Protocol):
    """What there is to pack, at the moment of each call."""

    def members(self, directory: str, after: str | None) -> list[Member]:
        """Some of the entries of a directory, by name, after the one called `after`; empty: there
        are no more, or the directory is gone."""

    def content(self, file: str) -> Content | None:
        """None: it is gone."""


def archive(tree: Tree, top: Member) -> Iterator[bytes]:
    """The archive of directory `top`, about `documents.PIECE` at a time.

    Raises `documents.Damaged`, and whatever the tree raises.
    """
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_STORED) as zipped:
        for member, path in _walk(tree, top):
            for _ in _add(zipped, tree, member, path):
                if sink.length >= PIECE:
                    yield sink.take()
    yield sink.take()


def _walk(tree: Tree, top: Member) -> Iterator[tuple[Member, str]]:
    """Every directory and regular file below `top`, with its path; directories come first."""
    first = f"{packed(top.name, top.file)}/"
    yield top, first
    room = _PATHS
    waiting: list[tuple[str, str]] = [(top.file, first)]
    while waiting:
        directory, prefix = waiting.pop()
        after = None
        while found := tree.members(directory, after):
            after = found[-1].name
            for member in found:
                path = prefix + packed(member.name, member.file)
                longest = _LONGEST_PATH if room > 0 else _SHORT_PATH
                if len(path.encode()) > longest:
                    path = f"{first}too deep ({member.file})"
                room -= len(path.encode())
                if member.kind == "directory":
                    yield member, path + "/"
                    waiting.append((member.file, path + "/"))
                elif member.kind == "file":
                    yield member, path


def _add(zipped: ZipFile, tree: Tree, member: Member, path: str) -> Iterator[None]:
    """Write one member, pausing after every piece."""
    if member.kind == "directory":
        info = _info(path, member.mtime_ns, stat.S_IFDIR | 0o755)
        info.external_attr |= _MS_DOS_DIRECTORY
        zipped.mkdir(info)
        yield
        return
    content = tree.content(member.file)
    if content is None:
        return
    document = content.document
    info = _info(path, content.mtime_ns, stat.S_IFREG | content.mode & 0o777 | 0o600)
    info.file_size = document.size
    with zipped.open(info, "w") as out:
        for piece in document.read(0, document.size):
            out.write(piece)
            yield
    yield


def _info(path: str, mtime_ns: int, mode: int) -> ZipInfo:
    """A zip's own time is local, has no zone, and ends in 2107; the extra field of Info-ZIP tells
    the exact second where it can."""
    seconds = mtime_ns // 10**9
    when = (_EPOCH + timedelta(seconds=seconds)).timetuple()[:6]
    info = ZipInfo(path, min(max(when, _FIRST), _LAST))
    if -(1 << 31) <= seconds < 1 << 31:
        info.extra = _TIME_FIELD.pack(0x5455, 5, 1, seconds)
    info.external_attr = mode << 16
    info.create_system = 3
    info.CRC = 0
    return info


class _Sink:
    """Where the archive's writer writes; it cannot seek."""

    def __init__(self) -> None:
        self._pieces: list[Buffer] = []
        self.length = 0

    def write(self, data: Buffer) -> int:
        self._pieces.append(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing between the writer and the pieces."""

    def close(self) -> None:
        """The writer does not own this; what is left is taken."""

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.length = 0
        return taken
