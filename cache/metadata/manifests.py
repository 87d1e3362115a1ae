"""Manifests of the versions that were read or written here (`cache.blocks.reader.ManifestStore`).

Knows: the `manifest` table. Must not know: who asks. Rebuildable: the server has them all.

Concurrency contract: as `database` has it; `prune` alone looks through the tables in a worker
thread, with a connection of its own, because a large tree has many versions.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from cache.metadata.database import Database
from remote.protocol.content import HOLE, Manifest
from remote.protocol.ids import VersionId

PRUNE_AT_ONCE = 500
MAX_HOLES = 50_000  # versions of which it is remembered how much of them is holes


class Manifests:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._decoder = msgspec.msgpack.Decoder(Manifest)
        # 0 also where the manifest is not here. The oldest go first.
        self._holes: dict[VersionId, int] = {}

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
        for version in manifests:
            self._holes.pop(version, None)

    def hole_bytes(self, version: VersionId) -> int:
        """How many bytes of `version` nobody stores, as far as known: 0 without its manifest."""
        known = self._holes.get(version)
        if known is None:
            pieces = manifest.pieces if (manifest := self.manifest(version)) else ()
            known = sum(piece.length for piece in pieces if piece.id == HOLE)
            while len(self._holes) >= MAX_HOLES:
                del self._holes[next(iter(self._holes))]
            self._holes[version] = known
        return known

    async def prune(self) -> None:
        """Forget the manifests of versions that no node has and no upload is making, a few at a
        time. One that came into use again meanwhile is asked for again."""
        useless = await trio.to_thread.run_sync(_useless, self._db.path)
        for first in range(0, len(useless), PRUNE_AT_ONCE):
            with self._db.transaction():
                for version in useless[first : first + PRUNE_AT_ONCE]:
                    self._db.run("DELETE FROM manifest WHERE version = ?", version)
            await trio.lowlevel.checkpoint()


def _useless(path: Path) -> list[VersionId]:
    sql = (
        "SELECT version FROM manifest WHERE version NOT IN"
        " (SELECT version FROM node WHERE version IS NOT NULL"
        "  UNION SELECT version FROM op WHERE version IS NOT NULL)"
    )
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            return [row[0] for row in db.execute(sql)]
    except sqlite3.DatabaseError:
        return []  # whoever needs what is damaged says so
