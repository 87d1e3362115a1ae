"""The machine is started again: a state directory that survived is opened as a mount would.

Knows: the order in which a mount opens its state, what a device shows. Must not know: what it has
to show (`ledger`).

In process, without FUSE: `tests.model.device` on the directory, after `recovery`, under the id of
another boot. What was uploaded before is read from a copy of the server's data.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio
import trio.testing
from sqlalchemy import event, select

from cache.metadata.tree import ROOT, Node
from cache.recovery.opening import open_database
from cache.recovery.power_loss import recover
from remote.protocol.content import Manifest
from server.changes import feed
from server.metadata.db import Database
from server.metadata.schema import versions
from server.storage.blobs import LocalBlobStore
from tests.contract.memory import MemoryBlobStore
from tests.model import server as model_server
from tests.model.device import Device
from tests.power.disk import Tree
from tests.power.ledger import Seen

AFTER = "another boot"


class DataServer(model_server.Server):
    """The data of a real server, without its process."""

    def __init__(self, data: Path) -> None:
        self.db = Database(data / "nearline.sqlite")
        event.listen(self.db._engine, "connect", model_server._do_not_sync)
        self.cursors = feed.Cursors((data / "keys" / "cursor.secret").read_bytes())
        self.blobs = MemoryBlobStore()
        stored = LocalBlobStore(data / "blobs")
        for key in stored.keys():  # noqa: SIM118  # not a dict
            self.blobs.add(key, stored.read(key, 0, 1 << 30))
        self._bodies: dict[str, tuple[Manifest, bytes]] = {}

    def version(self, file: str, version: str) -> tuple[Manifest, bytes]:
        """The content of an uploaded version of a file, whatever became of it."""
        if version not in self._bodies:
            query = select(versions).where(versions.c.file == file, versions.c.id == version)
            with self.db.read() as conn:
                row = conn.execute(query).one()
            manifest = msgspec.msgpack.decode(row.manifest, type=Manifest)
            self._bodies[version] = manifest, self.content(manifest, row.drive)
        return self._bodies[version]


def write_tree(tree: Tree, at: Path) -> None:
    at.mkdir()
    for path, body in tree.items():
        if body is None:
            (at / path).mkdir()
        else:
            (at / path).write_bytes(body)


def reboot(at: Path, server: model_server.Server, token: str, *, was_usable: bool = True) -> Device:
    """Open the state directory after a power loss. Raises AssertionError when something in it had
    to be put aside although a mount `was_usable` with it."""
    spool = at / "spool"
    db = open_database(at / "tree.sqlite", spool=spool, boot=AFTER)
    if db.lost_power:
        recover(db, spool)
    db.close()
    aside = [path.name for path in at.glob("*quarantine*")]
    assert not (aside and was_usable), f"put aside: {aside}"
    return Device(server, at, "a", token)


def look(device: Device, server: DataServer) -> dict[str, Seen]:
    """Everything that a device without a network shows; nothing before its first contact."""
    found: dict[str, Seen] = {}
    if device.tree.find(ROOT) is not None:
        trio.run(_walk, device, server, ROOT, "", found)
    return found


async def _walk(
    device: Device, server: DataServer, ino: int, path: str, found: dict[str, Seen]
) -> None:
    for entry in device.tree.entries(ino, 0, 1 << 30):
        node, below = entry.node, f"{path}/{entry.name}".lstrip("/")
        attributes = tuple(sorted(device.tree.xattrs(node.ino).items()))
        body = await _read(device, server, node) if node.is_regular else None
        found[below] = Seen(node.mode, attributes, body)
        if node.is_directory:
            await _walk(device, server, node.ino, below, found)


async def _read(device: Device, server: DataServer, node: Node) -> bytes:
    if node.version is not None:
        manifest, body = server.version(node.base_file or node.file, node.version)
        device.manifests.keep_manifest(node.version, manifest)
        device.read_before[node.version] = body
    return await device.read_all(node.ino)
