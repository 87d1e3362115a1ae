"""The server had more of an operation than came back after power loss: whoever is newer stands."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.metadata.tree import ROOT
from cache.recovery.opening import open_database
from cache.recovery.power_loss import recover
from tests.model.device import Device
from tests.model.server import Server


class World:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = Server(directory)
        self.token = self.server.token("one")
        self.device = Device(self.server, directory / "one", "one", self.token)

    async def write(self, data: bytes, at: int = 0) -> None:
        device = self.device
        node = device.tree.child(ROOT, "a")
        if node is None:
            node = device.edits.create(ROOT, "a", "file", 0o644, 0, 0)
        await device.contents.write(node.ino, at, data)

    async def content(self) -> bytes:
        node = await self.device.resolve("a")
        return await self.device.read_all(node.ino)

    def keep(self) -> None:
        """This is what the disk has when power is lost."""
        self.device.close()
        shutil.copytree(self.directory / "one", self.directory / "kept")
        self.device.open()

    async def lose_power(self) -> None:
        self.device.close()
        shutil.rmtree(self.directory / "one")
        (self.directory / "kept").rename(self.directory / "one")
        db = open_database(self.directory / "one" / "tree.sqlite", boot="another")
        recover(db, self.directory / "one" / "spool")
        db.close()
        self.device.open()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    await found.device.start()
    yield found
    found.device.close()
    found.server.close()


def damage(world: World) -> None:
    [file] = (world.directory / "kept" / "spool").iterdir()
    file.write_bytes(b"")


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_the_server_has_is_newer_than_what_came_back(
    world: World, is_lost: bool
) -> None:
    await world.write(b"first")
    world.keep()
    if is_lost:
        damage(world)
    await world.write(b" and second", at=5)
    await world.device.flush()
    await world.lose_power()
    await world.device.sync()
    if is_lost:  # held: nothing was sent, the feed brings what the server has
        assert world.device.journal.has_refused
        with world.device.db.transaction():
            world.device.journal.try_again(list(world.device.journal))
        await world.device.sync()
    assert await world.content() == b"first and second"
    assert not len(world.device.journal)
    assert world.device.contents.dirty_bytes == 0
    assert world.server.history() == {b"first and second"}


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_was_written_since_is_newer_than_what_the_server_has(
    world: World, is_lost: bool
) -> None:
    await world.write(b"first")
    world.keep()
    if is_lost:
        damage(world)
    await world.write(b" and second", at=5)
    await world.device.flush()
    await world.lose_power()
    await world.write(b"THIRD")
    await world.device.sync()
    assert await world.content() == b"THIRD"
    assert not len(world.device.journal)
    assert {b"first and second", b"THIRD"} <= world.server.history()
