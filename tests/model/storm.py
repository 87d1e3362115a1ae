"""Programs that do everything at once in the same few directories of a device without FUSE.

Knows: which calls of `cache` the system calls of a program become, one by one, with other tasks
between any two; which errnos each may fail with when others change the same names; how a device
that is mounted lives beside them (it sends, hears of others, makes its bytes safe, dies). Must not
know: what must hold in the end (`test_storm`).

Everything is drawn from one seed. `reproducible` takes the rest that chance has in a run away:
clock, identifiers, threads, the order in which trio runs what may run. (The order of sets of
strings is left: PYTHONHASHSEED=0 takes that.)
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import trio
import trio.testing

from cache.files.snapshots import STEP_NS
from cache.metadata.tree import ROOT, Node
from remote.protocol.errors import NearlineError, NotFound, Refused
from tests.model.device import Device

T = TypeVar("T")
START_NS = 1_800_000_000 * 10**9
DIRECTORIES = ("one", "two", "one/in")
PAUSES = (0, 0, 0, 0.001, 0.01, 0.04, 0.3, 2)
SIZES = (0, 1, 100, 5000, 70_000, 300_000)

GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}  # what was there a moment ago, or above it
KIND = {errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL}  # something else has the name now
ALLOWED: dict[str, set[int]] = {
    "write": GONE | KIND,
    "exclusive": GONE | KIND,
    "again": GONE | KIND,
    "append": GONE | KIND,
    "truncate": GONE | KIND,
    "orphan": GONE | KIND,
    "editor": GONE | KIND,
    "backup": GONE | KIND | {errno.ENOTEMPTY, errno.EPERM},
    "sync": GONE | KIND,
    "read": GONE | KIND,
    "rename": GONE | KIND | {errno.ENOTEMPTY},
    "exchange": GONE | KIND,
    "link": GONE | KIND | {errno.EPERM},
    "symlink": GONE | KIND,
    "unlink": GONE | KIND,
    "mkdir": GONE | KIND,
    "rmdir": GONE | {errno.ENOTEMPTY},
    "attributes": GONE,
    "xattr": GONE,
    "list": GONE,
}


@dataclass(frozen=True)
class Plan:
    """Amounts of everything in a storm."""

    seed: int
    threads: int = 3  # on each device
    operations: int = 8  # of each thread
    names: int = 4  # in each directory
    crashes: bool = False
    partitions: bool = False
    resets: bool = False  # the server forgets now and then what the feed has told

    def dice(self, *whose: object) -> random.Random:
        """A chance of one's own: what others draw changes nothing."""
        return random.Random(" ".join(map(str, (self.seed, *whose))))


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """In a trio run of its own: the same seed is the same run."""
    dice, ticks = random.Random(seed), itertools.count()

    def now() -> int:
        return START_NS + round(trio.current_time() * 1e9) + next(ticks)

    async def in_turn(work: Callable[..., T], *args: Any, **_: object) -> T:
        await trio.sleep(dice.choice(PAUSES[:5]))
        return work(*args)

    state = random.getstate()
    random.seed(seed)
    scheduler: Any = trio._core._run
    try:
        with (
            mock.patch.object(scheduler, "_r", random.Random(seed)),
            mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            mock.patch.object(time, "time_ns", now),
            mock.patch.object(time, "monotonic", trio.current_time),
            mock.patch.object(os, "urandom", dice.randbytes),
            mock.patch.object(os, "fdatasync"),  # this machine loses no power
            mock.patch.object(trio.to_thread, "run_sync", in_turn),
        ):
            yield
    finally:
        random.setstate(state)


class Life:
    """A process that has the device mounted, from its start to its death: what the kernel and open
    handles hold of its inodes."""

    def __init__(self, device: Device, dice: random.Random) -> None:
        self.device, self._dice = device, dice
        self.is_over = False
        self._held = Counter[int]()

    @contextlib.contextmanager
    def calls(self) -> Iterator[list[int]]:
        """While a program is in its calls; what these look up goes into the list."""
        found: list[int] = []
        try:
            yield found
        finally:
            for ino in found:
                self._let_go(ino)

    def hold(self, ino: int) -> int:
        self._held[ino] += 1
        self.device.handles.add(ino)
        return ino

    def _let_go(self, ino: int) -> None:
        self._held[ino] -= 1
        if not self._held[ino] and not self.is_over:
            self.device.handles.discard(ino)
            if ino != ROOT:
                self.device.collector.unused(ino)

    @contextlib.contextmanager
    def opened(self, ino: int) -> Iterator[None]:
        """Open for writing, as `mount.fuse.file_requests` does it."""
        snapshots = self.device.replayer.snapshots
        snapshots.opened(ino)
        self.hold(ino)
        try:
            yield
        finally:
            if not self.is_over and snapshots.closed(ino):
                self.device.replayer.wake()
            self._let_go(ino)

    # --- what goes on besides ---------------------------------------------------------------------

    async def hear(self) -> None:
        """The socket, and a poll now and then: late, twice, not in order."""
        while True:
            await trio.sleep(self._dice.choice(PAUSES))
            how = self._dice.choice((self.device.listen, self.device.listen, self.device.pull))
            with contextlib.suppress(NearlineError):
                await how()
                await self.device.hear(self._dice.randrange(3))
            if self._dice.random() < 0.5 and self.device.hints:
                self.device.hints.pop(0)

    async def keep(self) -> None:
        """As `mount.session.session` does beside the calls."""
        await self.device.contents.sync_in_background()

    async def ask(self) -> None:
        """As `mount.fuse.writeback` has the kernel do it."""
        snapshots = self.device.replayer.snapshots
        while True:
            await trio.sleep(STEP_NS / 1e9)
            inodes, began = snapshots.to_ask(), time.time_ns()
            for ino in inodes:
                await trio.lowlevel.checkpoint()
                if self._dice.random() < 0.8:
                    snapshots.at_rest(ino)
            snapshots.asked(inodes, began)
            self.device.replayer.wake()


class Program:
    """One thread of calls."""

    def __init__(self, number: str, plan: Plan) -> None:
        self._dice, self._plan = plan.dice(number), plan
        self._number, self._left, self._count = number, plan.operations, 0
        self.done = Counter[str]()
        self._life: Life
        self._found: list[int]

    async def work(self, life: Life) -> None:
        """Whatever is left to do."""
        self._life = life
        while self._left:
            self._left -= 1
            await self._pause()
            if self._dice.random() < 0.7:
                life.device.replayer.asked()
            name = self._dice.choice(list(ALLOWED))
            with life.calls() as self._found:
                await self._attempt(name, getattr(self, name))

    async def _attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self.done[name] += 1
        try:
            await work()
        except OSError as error:
            self.done[f"{name}-failed"] += 1
            if error.errno not in ALLOWED[name]:
                raise
        except Refused as error:  # what the server has no more
            if not isinstance(error.problem, NotFound):
                raise
        except NearlineError:
            if not self._plan.partitions:
                raise

    async def _pause(self) -> None:
        await trio.sleep(self._dice.choice(PAUSES))

    # --- looking up -------------------------------------------------------------------------------

    @property
    def _device(self) -> Device:
        return self._life.device

    def _path(self) -> str:
        name = f"n{self._dice.randrange(self._plan.names)}"
        return f"{self._dice.choice(DIRECTORIES)}/{name}"

    async def _place(self, path: str) -> tuple[int, str]:
        """The directory of `path`, walked through and listed, and the last name."""
        above, _, name = path.rpartition("/")
        ino = ROOT
        for part in filter(None, above.split("/")):
            ino = (await self._look_up(ino, part)).ino
        await self._device.ensure_listed(ino)
        return ino, name

    async def _look_up(self, parent: int, name: str) -> Node:
        await self._device.ensure_listed(parent)
        found = self._device.tree.child(parent, name)
        if found is None:
            raise OSError(errno.ENOENT, name)
        self._found.append(self._life.hold(found.ino))
        await trio.sleep(self._dice.choice((0, 0, 0, 0.001, 0.1)))
        return found

    async def _node(self, path: str | None = None) -> Node:
        return await self._look_up(*await self._place(path or self._path()))

    async def _file(self, path: str | None = None) -> int:
        return _regular(await self._node(path))

    async def _make(self, path: str, *, exclusive: bool = False) -> int:
        """open(O_CREAT)."""
        parent, name = await self._place(path)
        known = self._device.tree.child(parent, name)
        if known is not None and not exclusive:
            return _regular(await self._look_up(parent, name))
        node = self._device.edits.create(parent, name, "file", 0o644, 0, 0)
        self._found.append(self._life.hold(node.ino))
        return node.ino

    # --- bytes ------------------------------------------------------------------------------------

    def _data(self) -> bytes:
        self._count += 1
        stamp = f"{self._number}.{self._count} ".encode()
        size = self._dice.choice(SIZES[1:])
        return (stamp * (size // len(stamp) + 1))[: max(size, len(stamp))]

    async def _write(self, ino: int, times: int, at: int | None = None) -> None:
        """So many writes, and what the kernel says of the time at last."""
        for _ in range(times):
            size = self._device.tree.node(ino).size
            start = self._dice.choice((0, 3, 4096, size)) if at is None else at
            await self._device.contents.write(ino, start, self._data())
            await self._pause()
        if self._dice.random() < 0.5:
            self._device.edits.set_attributes(ino, {"mtime_ns": time.time_ns()})

    async def write(self) -> None:
        ino = await self._make(self._path())
        with self._life.opened(ino):
            self._device.contents.truncate(ino, 0)
            await self._write(ino, self._dice.randrange(3))

    async def exclusive(self) -> None:
        ino = await self._make(self._path(), exclusive=True)
        with self._life.opened(ino):
            await self._write(ino, 1)

    async def again(self) -> None:
        """Written, and when its upload may be under way written again."""
        ino = await self._make(self._path())
        for _ in range(self._dice.randrange(1, 4)):
            with self._life.opened(ino):
                await self._write(ino, 1)
            await self._pause()

    async def append(self) -> None:
        ino = await self._make(self._path())
        with self._life.opened(ino):
            await self._write(ino, 1, self._device.tree.node(ino).size)

    async def truncate(self) -> None:
        ino = await self._file()
        with self._life.opened(ino):
            self._device.contents.truncate(ino, self._dice.choice((0, 10, 6000, 100_000)))
            await self._pause()

    async def orphan(self) -> None:
        """Written on after its name is gone."""
        path = self._path()
        ino = await self._make(path)
        with self._life.opened(ino):
            await self._write(ino, self._dice.randrange(2))
            parent, name = await self._place(path)
            self._device.edits.unlink(parent, name, directory=False)
            self._device.collector.collect()
            await self._pause()
            await self._write(ino, self._dice.randrange(2))

    async def editor(self) -> None:
        path = self._path()
        above, _, name = path.rpartition("/")
        temporary = f"{above}/.{name}~"
        ino = await self._make(temporary, exclusive=self._dice.random() < 0.5)
        with self._life.opened(ino):
            await self._write(ino, 1)
            if self._dice.random() < 0.5:
                await self._fsync(ino)
        await self._pause()
        await self._rename(temporary, path)

    async def backup(self) -> None:
        """The old version is kept: renamed away or linked, and then another one made."""
        path = self._path()
        temporary = f"{path}.new"
        way = self._dice.choice(("create", "rename", "link"))
        made = path if way == "create" else temporary
        if way != "create":
            await self._written(made)
        if way == "link":
            node = await self._node(path)
            self._device.edits.link(node.ino, *await self._place(f"{path}~"))
        else:
            await self._rename(path, f"{path}~")
        await self._pause()
        if way == "create":
            await self._written(made)
        else:
            await self._rename(temporary, path)

    async def _written(self, path: str) -> None:
        ino = await self._make(path)
        with self._life.opened(ino):
            await self._write(ino, 1)

    async def sync(self) -> None:
        ino = await self._make(self._path())
        with self._life.opened(ino):
            await self._write(ino, 1)
            await self._fsync(ino)
            await self._write(ino, self._dice.randrange(2))

    async def _fsync(self, ino: int) -> None:
        now = self._dice.random() < 0.5
        self._device.replayer.snapshots.at_rest(ino, now=now)
        await self._device.contents.sync_bytes(ino)

    async def read(self) -> None:
        node = await self._node()
        for _ in range(2 if node.is_regular else 0):
            await self._device.read_all(node.ino)
            await self._pause()

    # --- names ------------------------------------------------------------------------------------

    async def rename(self) -> None:
        await self._rename(self._path(), self._path())

    async def _rename(self, old: str, new: str) -> None:
        device, here, there = self._device, await self._place(old), await self._place(new)
        over = device.tree.child(*there)
        if over is not None:
            await device.ensure_listed(over.ino)
            node = device.tree.child(*here)
            if node is not None and node.is_regular:
                await device.contents.sync_bytes(node.ino)
        device.edits.rename(*here, *there)
        device.collector.collect()

    async def exchange(self) -> None:
        here, there = await self._place(self._path()), await self._place(self._path())
        if here != there:
            self._device.edits.exchange(*here, *there)

    async def link(self) -> None:
        node = await self._node()
        self._device.edits.link(node.ino, *await self._place(self._path()))

    async def symlink(self) -> None:
        place = await self._place(self._path())
        self._device.edits.create(*place, "symlink", 0o777, 0, 0, target="n0")

    async def unlink(self) -> None:
        self._device.edits.unlink(*await self._place(self._path()), directory=False)
        self._device.collector.collect()

    async def mkdir(self) -> None:
        self._device.edits.create(*await self._place(self._path()), "directory", 0o755, 0, 0)

    async def rmdir(self) -> None:
        place = await self._place(self._path())
        node = self._device.tree.child(*place)
        if node is not None:
            await self._device.ensure_listed(node.ino)
        self._device.edits.unlink(*place, directory=True)
        self._device.collector.collect()

    async def list(self) -> None:
        node = await self._node(self._dice.choice(DIRECTORIES))
        await self._device.ensure_listed(node.ino)

    # --- attributes -------------------------------------------------------------------------------

    async def attributes(self) -> None:
        node = await self._node()
        what = self._dice.choice(("mode", "uid", "mtime_ns"))
        self._device.edits.set_attributes(node.ino, {what: self._dice.randrange(0o777)})

    async def xattr(self) -> None:
        node = await self._node()
        self._device.edits.set_xattr(node.ino, "user.storm", self._data()[:100])
        if self._dice.random() < 0.5:
            await self._pause()
            self._device.edits.set_xattr(node.ino, "user.storm", None)


class Site:
    """A device, the programs on it, and what befalls it."""

    def __init__(self, device: Device, plan: Plan, name: str) -> None:
        self.device, self._plan, self._dice = device, plan, plan.dice(name)
        device.network.weather = self._dice
        self._programs = [Program(f"{name}{number}", plan) for number in range(plan.threads)]
        self.is_calm = trio.Event()  # the programs have ended

    @property
    def done(self) -> Counter[str]:
        return sum((item.done for item in self._programs), Counter())

    async def live(self) -> None:
        """Until cancelled."""
        while True:
            life = Life(self.device, self._dice)
            async with trio.open_nursery() as nursery:
                for work in (self.device.replayer.run, life.hear, life.keep, life.ask):
                    nursery.start_soon(work)
                nursery.start_soon(self._storm, life)
                await self._until_death()
                life.is_over = True
                nursery.cancel_scope.cancel()
            self.device.crash()
            await self.device.start()

    async def _until_death(self) -> None:
        if self._plan.crashes:
            with trio.move_on_after(self._dice.choice((0.02, 0.3, 1, 3, 10))):
                await self.is_calm.wait()
        if self.is_calm.is_set() or not self._plan.crashes:
            await trio.sleep_forever()

    async def _storm(self, life: Life) -> None:
        async with trio.open_nursery() as everything:
            async with trio.open_nursery() as programs:
                for program in self._programs:
                    programs.start_soon(program.work, life)
                everything.start_soon(self._break_network)
            everything.cancel_scope.cancel()
        self.is_calm.set()

    async def _break_network(self) -> None:
        network = self.device.network
        try:
            while True:
                network.lose_replies = self._dice.choice((0, 0, 1, 3))
                network.up = not self._plan.partitions or self._dice.random() < 0.6
                await trio.sleep(self._dice.choice((0.1, 1, 5)))
        finally:
            network.up, network.lose_replies = True, 0

    async def come_to_rest(self) -> None:
        """Send all there is, and hear of all there is."""
        await self.device.pull()
        await self.device.replayer.flush()
        await self.device.pull()


def _regular(node: Node) -> int:
    """open(O_NOFOLLOW | O_WRONLY)."""
    if node.is_directory:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not node.is_regular:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return node.ino
