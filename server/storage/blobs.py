"""Where stored objects live.

Knows: putting, reading and deleting whole objects by (drive, chunk). Must not know: what is in
them, who may have them, the database.

Contract of `BlobStore` (tests/contract runs one suite over every implementation):
- An object appears whole or not at all, and is never changed once it is there; of two writers of
  one object the first to commit wins and the other is told.
- Once `commit` has returned, the object survives power loss.
- Objects of different drives never meet, even with equal content.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from server import datadir
from server.durable import sync_directory

_DRIVE = re.compile(r"[0-9a-f]{32}")
_CHUNK = re.compile(r"[0-9a-f]{64}")
INCOMING = "incoming"


class BlobKey(NamedTuple):
    """The stored object of chunk `chunk` (32 bytes) in drive `drive`; of a bundle: its id."""

    drive: str
    chunk: bytes


@dataclass(frozen=True)
class Head:
    """A store's knowledge of an object: its length and the SHA-256 of its bytes."""

    length: int
    sha256: bytes


@dataclass(frozen=True)
class Stored:
    """An object as a store tells of it without reading it: its length, and when it came."""

    length: int
    at_ns: int


class BlobMissing(LookupError):
    """There is no such object."""


class BlobWriter(Protocol):
    """An object on its way in. Leaving its context without `commit` leaves nothing behind."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def commit(self) -> bool:
        """Make the object appear, durably. False: somebody else's was there first."""

    def __enter__(self) -> BlobWriter: ...

    def __exit__(self, *exc: object) -> None: ...


class BlobReader(Protocol):
    """An object being read from its beginning. It stays readable although it is deleted."""

    def read(self, length: int) -> bytes:
        """The next bytes: at least one and up to `length`; none at the end."""

    def __enter__(self) -> BlobReader: ...

    def __exit__(self, *exc: object) -> None: ...


class BlobStore(Protocol):
    """Blocking; call it off the event loop. Safe to use from several threads."""

    def create(self, key: BlobKey) -> BlobWriter: ...

    def has(self, key: BlobKey) -> bool: ...

    def head(self, key: BlobKey) -> Head | None:
        """May be as expensive as reading the object."""

    def stat(self, key: BlobKey) -> Stored | None:
        """Always cheap."""

    def read(self, key: BlobKey, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer at the end. Raises `BlobMissing`."""

    def open(self, key: BlobKey) -> BlobReader:
        """For reading all of it back. Raises `BlobMissing`."""

    def delete(self, key: BlobKey) -> bool:
        """True if there was one."""

    def set_aside(self, key: BlobKey) -> bool:
        """Take a damaged object away from its key and keep it for people to look at. Whether there
        was one."""

    def keys(self) -> Iterator[BlobKey]: ...


class LocalBlobStore:
    """Objects as files: ROOT/DRIVE/AA/CHUNK, AA being the chunk's first two hex digits.

    Objects in the making are in ROOT/incoming and get their name by link(2), which refuses to
    replace; what a crash leaves there is removed by `sweep` at the next start. Damaged ones that
    were set aside are in ROOT/quarantine, as DRIVE-CHUNK.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._name = str(root)  # names are put together by the thousand
        self._incoming = root / INCOMING
        datadir.make(self._incoming)

    def create(self, key: BlobKey) -> BlobWriter:
        return _LocalWriter(self._incoming / secrets.token_hex(16), self.path(key), self._root)

    def has(self, key: BlobKey) -> bool:
        return os.path.exists(self._path(key))

    def head(self, key: BlobKey) -> Head | None:
        try:
            with self.path(key).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
                return Head(file.tell(), digest)
        except FileNotFoundError:
            return None

    def stat(self, key: BlobKey) -> Stored | None:
        try:
            found = os.stat(self._path(key))
        except FileNotFoundError:
            return None
        return Stored(found.st_size, found.st_mtime_ns)

    def read(self, key: BlobKey, offset: int, length: int) -> bytes:
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BlobMissing(key.chunk.hex()) from None
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def open(self, key: BlobKey) -> BlobReader:
        try:
            return _LocalReader(self.path(key))
        except FileNotFoundError:
            raise BlobMissing(key.chunk.hex()) from None

    def delete(self, key: BlobKey) -> bool:
        try:
            self.path(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def set_aside(self, key: BlobKey) -> bool:
        kept = self._root / "quarantine"
        kept.mkdir(exist_ok=True, mode=0o700)
        try:
            self.path(key).rename(kept / f"{key.drive}-{key.chunk.hex()}")
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[BlobKey]:
        for path in self._root.glob("*/??/*"):
            drive = path.parent.parent.name
            if _DRIVE.fullmatch(drive) and _CHUNK.fullmatch(path.name):
                yield BlobKey(drive, bytes.fromhex(path.name))

    def path(self, key: BlobKey) -> Path:
        """The file of an object, for the embedded edge."""
        return Path(self._path(key))

    def _path(self, key: BlobKey) -> str:
        name = key.chunk.hex()
        return f"{self._name}/{key.drive}/{name[:2]}/{name}"

    def sweep(self) -> None:
        """Remove what never became an object. Only while nobody writes: at start."""
        for path in self._incoming.iterdir():
            path.unlink()


class _LocalReader:
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def read(self, length: int) -> bytes:
        return self._file.read(length)

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


class _LocalWriter:
    def __init__(self, temporary: Path, final: Path, root: Path) -> None:
        self._temporary, self._final, self._root = temporary, final, root
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = io.FileIO(fd, "wb")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def commit(self) -> bool:
        os.fsync(self._file.fileno())
        self._make_directory()
        try:
            os.link(self._temporary, self._final)
            made = True
        except FileExistsError:
            made = False
        # Also for the other's object, which may not be durable yet: it is spoken of as if it were.
        sync_directory(self._final.parent)
        return made

    def _make_directory(self) -> None:
        if self._final.parent.is_dir():
            return
        datadir.make(self._final.parent)
        sync_directory(self._final.parent.parent)
        sync_directory(self._root)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()
