"""A directory as a zip archive, made while it is sent.

Knows: the archive's layout, which files go in and under which names. Must not know: who may see a
file (`ArchiveSource` says what there is), HTTP.

- Regular files and directories go in, with their times and permissions. Symlinks, devices, pipes
  and sockets do not: unpacked elsewhere they would point at something else.
- Not made smaller, and readable while it comes (`zip_layout`); names in UTF-8, made safe
  by `filenames`, all below one directory. What has too long a path is beside what it was in.
- The tree is looked at as the archive comes to it. What is gone by then is left out; what changes
  is taken as it is when its turn comes. Damage ends the stream before its index, so that nobody
  takes a part for the whole.

Concurrency and memory are as in `content`, but for the archive's index, which comes last: some
hundred bytes for each file. That is why `MAX_MEMBERS` is checked before one begins.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from remote.protocol.codec import Buffer
from server.links.content import PIECE, Document
from server.links.filenames import packed
from server.links.zip_layout import Entry, Layout

MAX_MEMBERS = 50_000
# Bytes: no system makes longer ones. The format has room for 65,535.
_LONGEST_PATH = 4096
# Bytes of paths in one archive, all of which its index holds; beyond, paths are at most
# `_SHORT_PATH`.
_PATHS = 16 << 20
_SHORT_PATH = 512
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


class ArchiveSource(Protocol):
    """The tree to pack, at the moment of each call."""

    def members(self, directory: str, after: str | None) -> list[Member]:
        """Some of the entries of a directory, by name, after the one called `after`; empty: there
        are no more, or the directory is gone."""

    def content(self, file: str) -> Content | None:
        """None: it is gone."""


def archive(source: ArchiveSource, top: Member) -> Iterator[bytes]:
    """The archive of directory `top`, about `content.PIECE` at a time.

    Raises `content.DamagedContent`, and whatever the source raises.
    """
    layout, pieces, length = Layout(), list[Buffer](), 0
    for piece in _pieces(layout, source, top):
        pieces.append(piece)
        length += len(piece)
        if length >= PIECE:
            yield b"".join(pieces)
            pieces, length = [], 0
    yield b"".join(pieces)


def _pieces(layout: Layout, source: ArchiveSource, top: Member) -> Iterator[Buffer]:
    for member, path in _walk(source, top):
        yield from _added(layout, source, member, path)
    yield from layout.end()


def _walk(source: ArchiveSource, top: Member) -> Iterator[tuple[Member, str]]:
    """Every directory and regular file below `top`, with its path; directories come first."""
    first = f"{packed(top.name, top.file)}/"
    yield top, first
    room = _PATHS
    waiting: list[tuple[str, str]] = [(top.file, first)]
    while waiting:
        directory, prefix = waiting.pop()
        after = None
        while found := source.members(directory, after):
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


def _added(layout: Layout, source: ArchiveSource, member: Member, path: str) -> Iterator[Buffer]:
    """One member; nothing if it is gone."""
    if member.kind == "directory":
        attributes = (stat.S_IFDIR | 0o755) << 16 | _MS_DOS_DIRECTORY
        yield from layout.entry(Entry(path, 0, member.mtime_ns, attributes))
        return
    content = source.content(member.file)
    if content is None:
        return
    document = content.document
    attributes = (stat.S_IFREG | content.mode & 0o777 | 0o600) << 16
    entry = Entry(path, document.size, content.mtime_ns, attributes)
    yield from layout.entry(entry, document.read(0, document.size))
