"""Manifests of the versions that were read or written here (`cache.blocks.reader.ManifestStore`).

Knows: the `manifest` table. Must not know: who asks. Rebuildable: the server has them all.

Concurrency: as `database` has it; `prune` alone looks through the tables in a worker
thread, with a connection of its own, because a large tree has many versions. One task prunes.

Every version that is read or written leaves a row, so they are pruned while the mount runs: there
are never more than those in use and about half as many again, or a mebibyte.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
import trio

from cache.metadata.damage import DamagedState
from cache.metadata.database import Database
from remote.protocol.content import HOLE, Manifest
from remote.protocol.ids import VersionId

log = structlog.get_logger(__name__)

PRUNE_AT_ONCE = 500
# So much has come since the last time before it is worth looking which are useless; half of what
# is in use, where that is more. Every version that is read or written adds one.
PRUNE_EVERY_BYTES = 1 << 20
# What a row takes beside its manifest.
ROW_BYTES = 64
# Versions of which it is remembered how much of them is holes.
MAX_HOLES = 50_000


class Manifests:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._decoder = msgspec.msgpack.Decoder(Manifest)
        # 0 also where the manifest is not here. The oldest go first.
        self._holes: dict[VersionId, int] = {}
        self._added, self._room = 0, PRUNE_EVERY_BYTES  # bytes since the last time; until the next
        self._many = trio.Event()
        self.pruned = trio.Event()  # set, and replaced, after useless ones were forgotten

    def manifest(self, version: VersionId) -> Manifest | None:
        row = self._db.one("SELECT data FROM manifest WHERE version = ?", version)
        return None if row is None else self._decoder.decode(row["data"])

    def keep_manifest(self, version: VersionId, manifest: Manifest) -> None:
        self.keep_manifests({version: manifest})

    def keep_manifests(self, manifests: Mapping[VersionId, Manifest]) -> None:
        """Several in one transaction."""
        with self._db.transaction():
            for version, manifest in manifests.items():
                data = msgspec.msgpack.encode(manifest)
                self._db.run("INSERT OR REPLACE INTO manifest VALUES (?, ?)", version, data)
                self._added += len(data) + ROW_BYTES
        for version in manifests:
            self._holes.pop(version, None)
        if self._added >= self._room:
            self._many.set()

    def hole_bytes(self, version: VersionId) -> int:
        """Bytes of `version` that nobody stores, as far as known: 0 without its manifest."""
        known = self._holes.get(version)
        if known is None:
            pieces = manifest.pieces if (manifest := self.manifest(version)) else ()
            known = sum(piece.length for piece in pieces if piece.id == HOLE)
            while len(self._holes) >= MAX_HOLES:
                del self._holes[next(iter(self._holes))]
            self._holes[version] = known
        return known

    async def tend(self) -> None:
        """Prune whenever many have come, until cancelled."""
        while True:
            await self._many.wait()
            try:
                await self.prune()
            except DamagedState:
                raise
            except OSError as error:  # a full disk: it is tried again when more have come
                log.warning("manifests_not_pruned", why=str(error))

    async def prune(self) -> None:
        """Forget the manifests of versions that no node has and no upload is making, a few at a
        time. One that came into use again meanwhile is asked for again."""
        self._many, self._added = trio.Event(), 0
        useless, used = await trio.to_thread.run_sync(_useless, self._db.path)
        self._room = max(PRUNE_EVERY_BYTES, used // 2)
        for first in range(0, len(useless), PRUNE_AT_ONCE):
            some = useless[first : first + PRUNE_AT_ONCE]
            with self._db.transaction():
                for version in some:
                    self._db.run("DELETE FROM manifest WHERE version = ?", version)
            for version in some:
                self._holes.pop(version, None)
            await trio.lowlevel.checkpoint()
        self.pruned.set()
        self.pruned = trio.Event()


def _useless(path: Path) -> tuple[list[VersionId], int]:
    """The versions that nobody has, and the bytes that the manifests of the others take."""
    sql = (
        "SELECT version, length(data) FROM manifest WHERE version NOT IN"
        " (SELECT version FROM node WHERE version IS NOT NULL"
        "  UNION SELECT version FROM op WHERE version IS NOT NULL)"
    )
    everything = "SELECT COUNT(*), COALESCE(SUM(length(data)), 0) FROM manifest"
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN")  # both of the same moment
            rows = db.execute(sql).fetchall()
            count, size = db.execute(everything).fetchone()
    except sqlite3.DatabaseError:
        return [], 0  # whoever needs what is damaged says so
    used = size - sum(row[1] for row in rows) + ROW_BYTES * (count - len(rows))
    return [row[0] for row in rows], used
