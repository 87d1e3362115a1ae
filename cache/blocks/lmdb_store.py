"""The LMDB side of the block cache: what is in the map, and its transactions. Synchronous.

Knows: LMDB and the layout below. Must not know: trio, who calls from which thread (`blocks` says),
whether the file can be trusted after a reboot (`blocks` again), limits (numbers in arguments).

The environment holds four databases:

    blocks  chunk id (32 bytes) + block number (u16 BE)  ->  the block's plain bytes
    index   the same key                    ->  generation of last use (u64 BE), charge (u32 BE)
    pins    owner, "/", chunk id            ->  nothing
    meta    "usage"                         ->  bytes charged, blocks, generation (3 x u64 BE)

`index` exists so that eviction never touches a value, and `meta` so that opening scans nothing.

Invariants: a key is in `blocks` exactly when it is in `index`; usage equals the sum of the index's
charges. Both because each transaction changes them together, and LMDB commits all or nothing.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb

from cache.blocks import eviction
from cache.blocks.eviction import Resident

Buffer = bytes | bytearray | memoryview
Block = tuple[bytes, int, Buffer]

PAGE = 4096
# Blocks deleted by one transaction, so that writers never wait long.
EVICT_BATCH = 256

_KEY = struct.Struct(">32sH")
_INDEX = struct.Struct(">QI")
_USAGE = struct.Struct(">QQQ")
_USAGE_KEY = b"usage"


@dataclass(frozen=True)
class Usage:
    """Contents of the map: bytes charged, number of blocks, and the generation of the last
    write."""

    bytes: int = 0
    blocks: int = 0
    generation: int = 1


def key_of(chunk: bytes, block: int) -> bytes:
    return _KEY.pack(chunk, block)


def charge(length: int) -> int:
    """The bytes of map file that a value of `length` bytes takes, its two index nodes included.
    LMDB gives values over about half a page their own pages, with a 16-byte header."""
    if length < PAGE // 2:
        return length + 128
    return -(-(length + 16) // PAGE) * PAGE + 128


def map_size(limit: int) -> int:
    """The address space for a cache of `limit` bytes: fragmentation, the free list and the pages
    of a transaction in progress come on top of what is charged."""
    return limit + limit // 8 + 64 * 1024 * 1024


class BlockMap:
    """One open LMDB environment. `usage` and `pinned` are as of the last committed write."""

    def __init__(self, path: Path, size: int) -> None:
        """Open or create the environment in directory `path`. Raises `lmdb.Error`."""
        self._env = lmdb.open(
            str(path),
            map_size=size,
            mode=0o600,
            max_dbs=4,
            max_spare_txns=2,
            sync=False,
            metasync=False,
            writemap=False,
            meminit=False,  # values are overwritten whole; nothing secret is left in the gaps
        )
        self._check_length(path)
        self._env.reader_check()  # slots of readers that were killed
        self._blocks, self._index, self._pins, self._meta = (
            self._env.open_db(name) for name in (b"blocks", b"index", b"pins", b"meta")
        )
        self._view: lmdb.Transaction[memoryview] | None = None
        with self._env.begin(db=self._meta) as txn:
            raw = txn.get(_USAGE_KEY)
        self.usage = Usage() if raw is None else Usage(*_USAGE.unpack(raw))
        self.pinned = frozenset(chunk for _, chunk in self.pins())

    def _check_length(self, path: Path) -> None:
        """A file shorter than its own page count would end this process with SIGBUS when read."""
        used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if (path / "data.mdb").stat().st_size < used:
            self._env.close()
            raise lmdb.CorruptedError("the file is shorter than its pages")

    def close(self, *, sync: bool) -> None:
        self.end_view()
        if sync:
            self._env.sync(True)
        self._env.close()

    # --- reading, on the reader's thread ---------------------------------------------------------

    def view(self, key: bytes) -> memoryview | None:
        """The value under `key`, in place; valid until the next `view` or `end_view`."""
        self.end_view()
        self._view = self._env.begin(db=self._blocks, buffers=True)
        return self._view.get(key)

    def end_view(self) -> None:
        """Close the reader's snapshot, so that the pages it holds can be reused."""
        if self._view is not None:
            self._view.abort()
            self._view = None

    def has(self, key: bytes) -> bool:
        with self._env.begin(db=self._index) as txn:
            return txn.get(key) is not None

    def pins(self) -> Iterator[tuple[str, bytes]]:
        """(owner, chunk id) of every pin."""
        with self._env.begin(db=self._pins) as txn, txn.cursor() as cursor:
            for key in cursor.iternext(values=False):
                yield key[:-33].decode(), key[-32:]

    def pinned_blocks(self) -> Iterator[Block]:
        """Every block of a pinned chunk, with bytes of its own."""
        with self._env.begin(db=self._blocks) as txn, txn.cursor() as cursor:
            for chunk in sorted(self.pinned):
                found = cursor.set_range(chunk)
                while found and cursor.key().startswith(chunk):
                    yield chunk, _KEY.unpack(cursor.key())[1], cursor.value()
                    found = cursor.next()

    # --- writing, one call at a time, on any thread ----------------------------------------------

    def store(self, blocks: Iterable[Block]) -> None:
        """Add blocks in one transaction; those already here stay as they are. Raises `lmdb.Error`
        (`MapFullError`, or `DiskError` for a full disk), having stored none of them."""
        usage = replace(self.usage, generation=self.usage.generation + 1)
        with self._env.begin(write=True) as txn:
            for chunk, block, plain in blocks:
                key = _KEY.pack(chunk, block)
                if txn.put(key, plain, overwrite=False, db=self._blocks):
                    cost = charge(len(plain))
                    txn.put(key, _INDEX.pack(usage.generation, cost), db=self._index)
                    usage = replace(usage, bytes=usage.bytes + cost, blocks=usage.blocks + 1)
            self._record(txn, usage)
        self.usage = usage

    def touch(self, keys: Iterable[bytes]) -> None:
        """Record that `keys` were used in the current generation. Raises `lmdb.Error`."""
        with self._env.begin(write=True, db=self._index) as txn:
            for key in keys:
                raw = txn.get(key)
                if raw is not None:
                    _, cost = _INDEX.unpack(raw)
                    txn.put(key, _INDEX.pack(self.usage.generation, cost))

    def evict(self, needed: int) -> int:
        """Delete the least recently used unpinned blocks worth `needed` bytes; the number of
        blocks deleted. Raises `lmdb.Error`, having deleted some of them."""
        chosen = eviction.choose(self._residents(), needed, self.pinned)
        for start in range(0, len(chosen), EVICT_BATCH):
            self._delete(chosen[start : start + EVICT_BATCH])
        if chosen:
            # LMDB reuses the pages a transaction freed only in the second one after it.
            with self._env.begin(write=True) as txn:
                self._record(txn, self.usage)
        return len(chosen)

    def _residents(self) -> Iterator[Resident]:
        with self._env.begin(db=self._index) as txn, txn.cursor() as cursor:
            for key, raw in cursor:
                generation, cost = _INDEX.unpack(raw)
                yield Resident(generation, key, cost)

    def _delete(self, residents: Sequence[Resident]) -> None:
        usage = self.usage
        with self._env.begin(write=True) as txn:
            for resident in residents:
                txn.delete(resident.key, db=self._blocks)
                txn.delete(resident.key, db=self._index)
                usage = replace(usage, bytes=usage.bytes - resident.charge, blocks=usage.blocks - 1)
            self._record(txn, usage)
        self.usage = usage

    def _record(self, txn: lmdb.Transaction[bytes], usage: Usage) -> None:
        raw = _USAGE.pack(usage.bytes, usage.blocks, usage.generation)
        txn.put(_USAGE_KEY, raw, db=self._meta)

    def set_pins(self, owner: str, chunks: Iterable[bytes]) -> None:
        """Replace everything `owner` pins. Raises `lmdb.Error`, leaving the old pins."""
        prefix = owner.encode() + b"/"
        with self._env.begin(write=True, db=self._pins) as txn:
            with txn.cursor() as cursor:
                found = cursor.set_range(prefix)
                while found and cursor.key().startswith(prefix):
                    found = cursor.delete() and bool(cursor.key())
            for chunk in chunks:
                txn.put(prefix + chunk, b"")
        self.pinned = frozenset(chunk for _, chunk in self.pins())


def is_disk_full(error: lmdb.Error) -> bool:
    return isinstance(error, lmdb.DiskError) or error.code in (errno.ENOSPC, errno.EDQUOT)
