"""Manifests of the versions that were read or written here (`cache.reader.ManifestStore`).

Knows: the `manifest` table. Must not know: who asks. Rebuildable: the server has them all.
"""

from __future__ import annotations

import msgspec

from cache.database import Database
from remote.content import Manifest
from remote.ids import VersionId


class Manifests:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._decoder = msgspec.msgpack.Decoder(Manifest)

    def manifest(self, version: VersionId) -> Manifest | None:
        row = self._db.one("SELECT data FROM manifest WHERE version = ?", version)
        return None if row is None else self._decoder.decode(row["data"])

    def keep_manifest(self, version: VersionId, manifest: Manifest) -> None:
        data = msgspec.msgpack.encode(manifest)
        with self._db.transaction():
            self._db.run("INSERT OR REPLACE INTO manifest VALUES (?, ?)", version, data)

    def prune(self) -> None:
        """Forget the manifests of versions that no node has and no upload is making."""
        with self._db.transaction():
            self._db.run(
                "DELETE FROM manifest WHERE version NOT IN"
                " (SELECT version FROM node WHERE version IS NOT NULL"
                "  UNION SELECT version FROM op WHERE version IS NOT NULL)"
            )
