"""Two accounts: one gives and takes back shares of what the other is working in, at any moment.

The walks of `test_walks`, with a host (anna) and a guest (ben, who may also be elsewhere, offline,
or dead in the middle). What must hold in the end: both devices show what the server has; nothing
that is not shared is left on the guest's device; what anybody saved is in somebody's history, or
still on the device, where it can be read, with a refusal that says why.

`NEARLINE_MODEL_WALKS` sets how many walks; one is reproduced by its number.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from cache.metadata.tree import HISTORY, LOCAL, REVOKED, ROOT, Node
from remote.protocol.errors import NotFound, Refused
from remote.protocol.messages import Role
from tests.model.device import Device
from tests.model.people import Person
from tests.model.plans import PATHS
from tests.model.reference import differences
from tests.model.server import Server
from tests.model.test_devices import EXPECTED, Devices, check_tables, unwrapped
from tests.model.test_walks import STEPS, WALKS, WEIGHTS, arguments

HOST, GUEST = 0, 1
REFUSED = {errno.EXDEV, errno.EROFS, errno.EACCES}  # what sharing adds to what edits answer
ARRANGED = {"share": 10, "unshare": 5, "leave": 1, "weaken": 1, "forget_feed": 1}
ARRANGED |= {"flush_meanwhile": 7, "pull": 8, "look_around": 4, "partition": 2, "flush": 3}
ARRANGED |= {"save": 9, "patch": 6, "make": 6}


class Guest(Device):
    """Ben's device: a path leads into what anna shares under that name, if she does."""

    def shared_path(self, path: str) -> str:
        first = path.split("/")[0]
        node: Node | None = self.tree.node(ROOT)
        for name in ("Shared", "anna", first):
            node = None if node is None else self.tree.child(node.ino, name)
        return path if node is None else f"Shared/anna/{path}"

    async def resolve(self, path: str) -> Node:
        return await super().resolve(self.shared_path(path))

    async def place(self, path: str) -> tuple[int, str]:
        return await super().place(self.shared_path(path))


class GuestAtWork(Person):
    """A guest whose `edit` and `save` ask what the mount asks at open."""

    async def edit_inode(self, ino: int, change: Callable[[bytes], bytes]) -> None:
        self.device.shares.check_readable(self.device.tree.node(ino))
        await super().edit_inode(ino, change)

    async def edit(self, path: str, change: Callable[[bytes], bytes]) -> None:
        self.device.shares.check_writable(await self.device.resolve(path))
        await super().edit(path, change)

    async def save(self, path: str, data: bytes) -> int:
        parent, name = await self.device.place(path)
        node = self.device.tree.child(parent, name)
        if node is not None:
            self.device.shares.check_writable(node)
        return await super().save(path, data)


class SharingDevices(Devices):
    def start(self) -> None:
        self.server.close()
        self.server = Server(self.directory / "two", ("anna", "ben"))
        self.tokens = {name: self.server.token(f"{name}'s", name) for name in ("anna", "ben")}
        host = Device(self.server, self.directory / "one", "one", self.tokens["anna"])
        guest = Guest(self.server, self.directory / "guest", "guest", self.tokens["ben"])
        self.people = [Person(host), GuestAtWork(guest)]
        for person in self.people:
            self.run(person.device.start)
        for path in ("d", "e"):
            self.make(HOST, path, "directory")
        for path in ("a", "d/a", "d/b"):
            self.save(HOST, path, 10)
        self.save(GUEST, "b", 10)
        self.flush(HOST, 0)
        for path in ("d", "e", "a"):
            self.share(path)
        self.pull(GUEST)
        self.look_around(GUEST)

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        async def answered() -> None:
            try:
                await work()
            except OSError as error:
                if error.errno not in EXPECTED | REFUSED:
                    raise
            except Refused as error:
                if not isinstance(error.problem, NotFound):
                    raise

        super().run(answered)

    # --- what the owner and the guest arrange, with the server ------------------------------------

    def share(self, path: str, role: Role = "editor") -> None:
        self.run(lambda: self._give(path, role))

    async def _give(self, path: str, role: Role) -> None:
        node = await self.people[HOST].device.resolve(path)
        if node.kind in ("directory", "file"):
            self.server.share(self.tokens["anna"], node.file, "ben", role)

    def weaken(self, path: str) -> None:
        self.share(path, "viewer")

    def unshare(self, nth: float) -> None:
        self._end("anna", nth)

    def leave(self, nth: float) -> None:
        self._end("ben", nth)

    def _end(self, who: str, nth: float) -> None:
        granted = sorted(self.server.granted())
        if granted:
            file = granted[int(nth * len(granted))]
            self.server.unshare(self.tokens[who], file, "ben")

    def flush_meanwhile(self, at: int, path: str, role: Role | None, nth: float) -> None:
        """While the guest's device is sending, somebody gives or takes, and it hears of it."""
        person = self.people[GUEST]
        network = person.device.network
        if not network.up:
            return
        network.requests, network.stop_at, network.reached = 0, at, trio.Event()

        async def arrange() -> None:
            await network.reached.wait()
            if role is None:
                self._end("anna", nth)
            else:
                await self._give(path, role)
            await person.device.pull()

        async def work() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(arrange)
                await person.device.flush()
                nursery.cancel_scope.cancel()

        self.run(lambda: unwrapped(work))
        network.stop_at = 0
        self.flush_one(person)

    def forget_feed(self) -> None:
        self.server.forget_feed()

    # --- what must hold ---------------------------------------------------------------------------

    def the_tree_is_a_tree(self) -> None:
        for person in self.people:
            check_tables(person.device)
            check_drives(person.device)
            for ino, data in list(person.bytes.items()):
                self.check_bytes_of(person, ino, data)

    def check_bytes_of(self, person: Person, ino: int, data: bytes) -> None:
        """Bytes that cannot be read here any more, because they are not shared, must be
        elsewhere."""
        node = person.device.tree.find(ino)
        if node is None or node.drive == REVOKED:
            del person.bytes[ino]
            person.saved.add(data)
        else:
            self.check_bytes(person.device, ino, data)

    def synchronize(self) -> None:
        for person in self.people:
            person.device.network.up = True
        for _round in range(3):
            for person in self.people:
                self.run(person.device.pull)
                self.flush_one(person)
                self.the_tree_is_a_tree()
        for person, account in zip(list(self.people), ("anna", "ben"), strict=True):
            self.run(person.device.pull)
            refused = [op for op in person.device.journal if op.refused]
            assert all((op.refused or "").startswith("forbidden") for op in refused), refused
            if not refused:
                assert list(person.device.journal) == []
                self.shows_what_the_server_has(person, account)
        saved = {data for person in self.people for data in person.saved if data}
        missing = {data[:30] for data in saved - self.server.history()}
        assert not missing

    def shows_what_the_server_has(self, person: Person, account: str) -> None:
        view = self.view(person.device)
        kind, name = type(person.device), f"new {account}"
        token = self.server.token(name, account)
        fresh = kind(self.server, self.directory / name, name, token)
        self.people.append(Person(fresh))
        self.run(fresh.start)
        self.run(fresh.pull)
        apart = differences(view, self.view(fresh))
        assert not apart, apart
        check_nothing_is_left(person.device)


def check_drives(device: Device) -> None:
    """A name and its directory are of one drive, but at the top of what is shared."""
    wrong = device.db.all(
        "SELECT entry.name, holder.drive, node.drive FROM entry JOIN node USING (ino)"
        " JOIN node holder ON holder.ino = entry.parent"
        " WHERE holder.drive != node.drive AND ? NOT IN (holder.drive, node.drive)",
        LOCAL,
    )
    assert not [tuple(row) for row in wrong], "a name of another drive"


def check_nothing_is_left(device: Device) -> None:
    """Every node of somebody else's drive can be reached from a place under Shared."""
    own = (device.tree.own_drive, LOCAL, HISTORY, REVOKED)
    rows = device.db.all("SELECT * FROM node WHERE live AND drive NOT IN (?, ?, ?, ?)", *own)
    lost = [dict(row) for row in rows if not device.tree.is_under(row["ino"], ROOT)]
    assert not lost, lost


def more_arguments(step: str, dice: random.Random) -> dict[str, object]:
    match step:
        case "share":
            return {"path": dice.choice(PATHS)}
        case "weaken":
            return {"path": dice.choice(PATHS)}
        case "unshare" | "leave":
            return {"nth": dice.random()}
        case "flush_meanwhile":
            role = dice.choice((None, None, "editor", "viewer"))
            path = dice.choice(PATHS)
            return {"at": dice.randrange(1, 8), "path": path, "role": role, "nth": dice.random()}
        case "forget_feed":
            return {}
    who = GUEST if dice.random() < 0.6 else dice.randrange(2)
    return arguments(step, dice) | {"who": who}


@pytest.mark.parametrize("number", range(WALKS))
def test_a_walk_of_two_accounts_ends_in_agreement_and_nothing_is_lost(number: int) -> None:
    dice, devices = random.Random(number), SharingDevices()
    weights = WEIGHTS | ARRANGED
    try:
        devices.start()
        for step in dice.choices(list(weights), list(weights.values()), k=STEPS):
            getattr(devices, step)(**more_arguments(step, dice))
            devices.the_tree_is_a_tree()
        devices.synchronize()
    finally:
        devices.close()
