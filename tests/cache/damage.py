"""A realistic state directory as a killed mount leaves it, and ways to damage its files.

Knows: `tests.model`'s device and server. Must not know: what salvaging makes of the damage.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache.metadata.tree import ROOT
from cache.recovery.sqlite_pages import PAGE
from tests.model.device import Device
from tests.model.server import Server

KNOWN, FRESH = 60, 40  # files that the server has, and files that it has not heard of


def words(number: int, size: int) -> bytes:
    """Bytes that tell which file they are of."""
    return (f"{number:08d} says what nobody else says; ".encode() * (size // 30 + 1))[:size]


@dataclass
class Damageable:
    """`killed` is the state directory of a mount that was killed while it was offline."""

    server: Server
    token: str
    killed: Path
    dirty: dict[str, bytes] = field(default_factory=dict)  # by path
    clean: dict[str, bytes] = field(default_factory=dict)

    def again(self, directory: Path) -> Damageable:
        """The same with a server of its own, which keeps what it has in `directory`."""
        return replace(self, server=self.server.copy(directory))

    def copy(self, where: Path) -> Path:
        shutil.copytree(self.killed, where)
        return where

    def device(self, where: Path) -> Device:
        return Device(self.server, where, "hit", self.token)


async def build(directory: Path, *, is_moved: bool) -> Damageable:
    """`is_moved`: most of the log is in the database already."""
    (directory / "server").mkdir()
    server = Server(directory / "server")
    token = server.token("hit")
    live = directory / "live"
    device = Device(server, live, "hit", token)
    await device.start()
    await device.ensure_listed(ROOT)
    made = Damageable(server, token, directory / "killed")
    for number in range(KNOWN):
        await _save(device, made.clean, f"known/{number % 5}/file {number}", number, 300 + number)
    await device.sync()
    await device.contents.sync_all()
    for number in range(FRESH):
        size = 9000 * (1 + number % 4)
        await _save(device, made.dirty, f"fresh/{number % 3}/new {number}", number + 1000, size)
    if is_moved:
        device.db.run("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(0, KNOWN, 3):
        path = f"known/{number % 5}/file {number}"
        ino = (await device.resolve(path)).ino
        device.contents.truncate(ino, 0)
        made.dirty[path] = words(number + 2000, 5000)
        await device.contents.write(ino, 0, made.dirty[path])
        del made.clean[path]
    for number in range(1, KNOWN, 6):
        place, name = await device.place(f"known/{number % 5}/file {number}")
        device.edits.rename(place, name, place, f"moved {number}")
        content = made.clean.pop(f"known/{number % 5}/{name}")
        made.clean[f"known/{number % 5}/moved {number}"] = content
    device.edits.set_xattr((await device.resolve("fresh/0/new 0")).ino, "user.tag", b"x" * 9000)
    shutil.copytree(live, made.killed)  # what is in the page cache is what a killed process leaves
    device.close()
    return made


async def _save(device: Device, into: dict[str, bytes], path: str, number: int, size: int) -> None:
    place = ROOT
    *above, name = path.split("/")
    for part in above:
        found = device.tree.child(place, part)
        place = (found or device.edits.create(place, part, "directory", 0o755, 0, 0)).ino
    node = device.edits.create(place, name, "file", 0o644, 0, 0)
    into[path] = words(number, size)
    await device.contents.write(node.ino, 0, into[path])


# Damage. Each takes a file's bytes and gives others.

Damage = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 3, 30])):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def zero_pages(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 4])):
        at = chance.randrange(-(-len(data) // PAGE)) * PAGE
        end = min(at + PAGE, len(data))
        data[at:end] = bytes(end - at)


def swap_pages(data: bytearray, chance: random.Random) -> None:
    one, two = (chance.randrange(max(1, len(data) // PAGE)) * PAGE for _ in range(2))
    data[one : one + PAGE], data[two : two + PAGE] = data[two : two + PAGE], data[one : one + PAGE]


def nonsense(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at : at + 2000] = chance.randbytes(len(data[at : at + 2000]))


KINDS: dict[str, Damage] = {
    one.__name__: one for one in (flip, truncate, zero_pages, swap_pages, nonsense)
}


def spoil(file: Path, kind: str, seed: int) -> None:
    data = bytearray(file.read_bytes())
    KINDS[kind](data, random.Random(f"{kind} {seed} {file.name}"))
    file.write_bytes(data)
