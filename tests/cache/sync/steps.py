"""Steps of people on a device of `tests.model`, by paths."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import trio

from tests.model.device import Device

COPY = re.compile(r" \(conflicted copy, \w+ [-0-9]+\)")


async def save(device: Device, path: str, data: bytes) -> int:
    parent, name = await device.place(path)
    node = device.tree.child(parent, name)
    node = node or device.edits.create(parent, name, "file", 0o644, 0, 0)
    device.contents.truncate(node.ino, 0)
    await device.contents.write(node.ino, 0, data)
    return node.ino


async def mkdir(device: Device, path: str) -> int:
    parent, name = await device.place(path)
    return device.edits.create(parent, name, "directory", 0o755, 0, 0).ino


async def rename(device: Device, old: str, new: str) -> None:
    device.edits.rename(*await device.place(old), *await device.place(new))


async def remove(device: Device, path: str) -> None:
    node = await device.resolve(path)
    await device.ensure_listed(node.ino)
    device.edits.unlink(*await device.place(path), directory=node.is_directory)
    device.collector.collect()


async def files(device: Device) -> dict[str, bytes | None]:
    """Paths and bytes; the day and device of a conflicted copy left out."""
    await device.pull()
    return {COPY.sub("*", path): seen[4] for path, seen in (await device.everything()).items()}  # type: ignore[misc]  # [4] is bytes or None


async def until(condition: Callable[[], bool], changed: Callable[[], trio.Event]) -> None:
    """Wait through as many changes as it takes; the mock clock makes an hour cost nothing."""
    with trio.fail_after(3600):
        while not condition():
            await changed().wait()


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)
