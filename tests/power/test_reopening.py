"""Processes that die and start again before the power is lost: what one deletes, an older state of
the disk must not need."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio

from tests.model.device import Device
from tests.model.server import Server
from tests.power.disk import PAGE, Loss, survivors
from tests.power.reboot import reboot, write_tree
from tests.power.record import Event, Removed
from tests.power.recording import recording

pytestmark = pytest.mark.system
LOSSES = [Loss("ordered", PAGE, 0.5), Loss("ordered", PAGE, 1.0), Loss("harsh", PAGE, 0.5)]
SEEDS = range(4)
BODY = b"what was promised" * 1000


def read_after(
    events: Sequence[Event], loss: Loss, seed: int, at: Path, server: Server, token: str
) -> bytes | None:
    """The content of the file "a" after a power loss."""
    write_tree(survivors(events, loss, Random(seed)), at)
    device = reboot(at, server, token)
    body: list[bytes] = []

    async def read() -> None:
        node = device.tree.child(1, "a")
        if node is not None:
            body.append(await device.read_all(node.ino))

    trio.run(read)
    device.close()
    return body[0] if body else None


def test_what_was_sent_is_deleted_only_when_the_disk_knows_that_it_was_sent(tmp_path: Path) -> None:
    """The journal is not synced when the server has answered; then the process dies."""
    server = Server(tmp_path)
    token = server.token("a")
    with recording(tmp_path / "disk", tmp_path / "record") as disk:
        device = Device(server, disk.at, "a", token)

        async def save_and_send() -> None:
            await device.start()
            await device.ensure_listed(1)
            node = device.edits.create(1, "a", "file", 0o644, 0, 0)
            await device.contents.write(node.ino, 0, BODY)
            await device.contents.sync(node.ino)
            promised.append(disk.position)
            await device.flush()

        promised: list[int] = []
        trio.run(save_and_send)
        again = Device(server, disk.at, "a", token)  # the first one is dead: nobody closed it
        trio.run(again.contents.tidy)
        again.close()
        device.close()
    events = disk.events()
    after = range(promised[0], len(events) + 1)
    removed = [at for at in after if isinstance(events[at - 1], Removed)]
    for position in {*removed, *after[::20]}:
        for loss, seed in itertools.product(LOSSES, SEEDS):
            at = tmp_path / f"{position}-{loss.names}-{loss.survival}-{seed}"
            body = read_after(events[:position], loss, seed, at, server, token)
            assert body == BODY, (position, loss, seed)
    server.close()
