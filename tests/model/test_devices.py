"""Two devices and a server: whatever people do, offline or not, with crashes and lost answers, in
the end both devices show what the server has, and nothing that was saved is lost.

"Saved" is what a device's file held when the device was flushed; what was overwritten or deleted
on the same device before that needs no place. Each saved content must be in the history of some
file on the server: in place, under a conflicted name, overtaken, or in the trash.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cache.journal import Body
from cache.tree import ROOT
from remote.errors import NearlineError
from tests.model.device import Device
from tests.model.server import Server

PATHS = ("a", "b", "d", "d/a", "d/b", "e", "e/a")
paths = st.sampled_from(PATHS)
which = st.sampled_from((0, 1))
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL}
EXPECTED |= {errno.EPERM, errno.ESTALE}


class Person:
    """A device, and what its person may rely on."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.bytes: dict[int, bytes] = {}  # by inode: what was written, while it is not flushed
        self.handle: int | None = None

    def note_gone(self, ino: int) -> None:
        node = self.device.tree.find(ino)
        if node is None or node.links == 0:
            self.bytes.pop(ino, None)

    async def edit(self, path: str, change: Callable[[bytes], bytes]) -> None:
        """Bring a regular file to `change(what it holds)`, by one write and one truncate."""
        node = await self.device.resolve(path)
        if node.is_regular:
            await self.edit_inode(node.ino, change)

    async def edit_inode(self, ino: int, change: Callable[[bytes], bytes]) -> None:
        contents = self.device.contents
        old = await self.device.read_all(ino)
        new = change(old)
        same = next(
            (n for n, pair in enumerate(zip(old, new, strict=False)) if len({*pair}) > 1),
            min(len(old), len(new)),
        )
        if same < len(new):
            await contents.write(ino, same, new[same:])
        contents.truncate(ino, len(new))
        if new != old:
            self.bytes[ino] = new

    async def save(self, path: str, data: bytes) -> int:
        """Create or overwrite, as `cp` does."""
        parent, name = await self.device.place(path)
        node = self.device.tree.child(parent, name)
        if node is None:
            node = self.device.edits.create(parent, name, "file", 0o644, 0, 0)
        if node.is_regular:
            self.device.contents.truncate(node.ino, 0)
            await self.device.contents.write(node.ino, 0, data)
            self.bytes[node.ino] = data
        return node.ino

    async def rename(self, old: str, new: str) -> None:
        device = self.device
        parent, name = await device.place(old)
        new_parent, new_name = await device.place(new)
        over = device.tree.child(new_parent, new_name)
        if over is not None:
            await device.ensure_listed(over.ino)
        device.edits.rename(parent, name, new_parent, new_name)
        if over is not None:
            self.note_gone(over.ino)
        device.collector.collect()


class Devices(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="nearline-model-"))
        self.server = Server(self.directory)
        self.people: list[Person] = []
        self.saved: set[bytes] = set()
        self.numbers = itertools.count(1)

    @initialize()
    def start(self) -> None:
        for name in ("one", "two"):
            device = Device(self.server, self.directory / name, name, self.server.token(name))
            self.people.append(Person(device))
            self.run(device.start)
        for path in ("d", "e"):
            self.make(0, path, "directory")
        for path in ("a", "d/a", "d/b"):
            self.save(0, path, 10)
        self.flush(0, 0)
        self.look_around(1)

    def teardown(self) -> None:
        try:
            if self.people:
                self.settle_down()
        finally:
            self.close()

    def close(self) -> None:
        for person in self.people:
            person.device.close()
        self.server.close()
        shutil.rmtree(self.directory)

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Let one person do one thing; it may fail as a system call may."""
        try:
            trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
        except OSError as problem:
            if problem.errno not in EXPECTED:
                raise
        except NearlineError:
            assert any(not person.device.network.up for person in self.people)

    # What people do.

    @rule(who=which, path=paths, size=st.sampled_from((0, 10, 300_000)))
    def save(self, who: int, path: str, size: int) -> None:
        person, data = self.people[who], self.fresh(size)
        self.run(lambda: person.save(path, data))

    def fresh(self, size: int) -> bytes:
        """Bytes nobody has written before, unless there are none to write."""
        if not size:
            return b""
        stamp = f"{next(self.numbers)} ".encode()
        return (stamp * (size // len(stamp) + 1))[:size] if size > 10 else stamp

    @rule(who=which, path=paths, at=st.integers(0, 40))
    def patch(self, who: int, path: str, at: int) -> None:
        mark = self.fresh(10)

        def change(old: bytes) -> bytes:
            return old[:at].ljust(at, b"\0") + mark + old[at + len(mark) :]

        self.run(lambda: self.people[who].edit(path, change))

    @rule(who=which, path=paths, size=st.integers(0, 20))
    def truncate(self, who: int, path: str, size: int) -> None:
        change: Callable[[bytes], bytes] = lambda old: old[:size].ljust(size, b"\0")  # noqa: E731
        self.run(lambda: self.people[who].edit(path, change))

    @rule(who=which, path=paths)
    def save_by_rename(self, who: int, path: str) -> None:
        """As editors do."""
        person, data = self.people[who], self.fresh(10)

        async def work() -> None:
            above, _, name = path.rpartition("/")
            temporary = f"{above}/.tmp-{name}"
            await person.save(temporary, data)
            await person.rename(temporary, path)

        self.run(work)

    @rule(who=which, path=paths)
    def open(self, who: int, path: str) -> None:
        person = self.people[who]

        async def work() -> None:
            node = await person.device.resolve(path)
            if person.handle is None and node.is_regular:
                person.handle = node.ino
                person.device.handles.add(node.ino)

        self.run(work)

    @precondition(lambda self: any(person.handle for person in self.people))
    @rule(who=which)
    def write_through_handle(self, who: int) -> None:
        person, mark = self.people[who], self.fresh(10)
        if person.handle is None:
            return
        deleted = person.device.tree.node(person.handle).links == 0
        self.run(lambda: person.edit_inode(person.handle or 0, lambda old: mark + old[:50]))
        if deleted:
            person.bytes.pop(person.handle, None)

    @precondition(lambda self: any(person.handle for person in self.people))
    @rule(who=which)
    def release(self, who: int) -> None:
        person = self.people[who]
        if person.handle is not None:
            person.device.handles.discard(person.handle)
            person.device.collector.unused(person.handle)
            person.handle = None

    @rule(who=which, old=paths, new=paths)
    def rename(self, who: int, old: str, new: str) -> None:
        self.run(lambda: self.people[who].rename(old, new))

    @rule(who=which, one=paths, other=paths)
    def exchange(self, who: int, one: str, other: str) -> None:
        device = self.people[who].device

        async def work() -> None:
            if one != other:
                here, there = await device.place(one), await device.place(other)
                device.edits.exchange(*here, *there)

        self.run(work)

    @rule(who=which, path=paths)
    def remove(self, who: int, path: str) -> None:
        person = self.people[who]
        device = person.device

        async def work() -> None:
            parent, name = await device.place(path)
            node = await device.resolve(path)
            await device.ensure_listed(node.ino)
            device.edits.unlink(parent, name, directory=node.is_directory)
            person.note_gone(node.ino)
            device.collector.collect()

        self.run(work)

    @rule(who=which, path=paths, kind=st.sampled_from(("directory", "directory", "symlink")))
    def make(self, who: int, path: str, kind: str) -> None:
        device = self.people[who].device

        async def work() -> None:
            parent, name = await device.place(path)
            target = "elsewhere" if kind == "symlink" else None
            device.edits.create(parent, name, kind, 0o755, 0, 0, target=target)  # type: ignore[arg-type]  # a Kind

        self.run(work)

    @rule(who=which, old=paths, new=paths)
    def link(self, who: int, old: str, new: str) -> None:
        device = self.people[who].device

        async def work() -> None:
            node = await device.resolve(old)
            device.edits.link(node.ino, *await device.place(new))

        self.run(work)

    @rule(
        who=which,
        path=paths,
        changes=st.dictionaries(
            st.sampled_from(("mode", "uid", "mtime_ns")), st.integers(0, 0o777), min_size=1
        ),
    )
    def set_attributes(self, who: int, path: str, changes: dict[str, int]) -> None:
        device = self.people[who].device

        async def work() -> None:
            device.edits.set_attributes((await device.resolve(path)).ino, changes)

        self.run(work)

    @rule(who=which, path=paths, value=st.sampled_from((None, b"1", b"2")))
    def set_xattr(self, who: int, path: str, value: bytes | None) -> None:
        device = self.people[who].device

        async def work() -> None:
            device.edits.set_xattr((await device.resolve(path)).ino, "user.x", value)

        self.run(work)

    # What happens to them.

    @rule(who=which)
    def pull(self, who: int) -> None:
        self.run(self.people[who].device.pull)

    @rule(who=which)
    def look_around(self, who: int) -> None:
        self.run(self.people[who].device.everything)

    @rule(who=which, lost=st.sampled_from((0, 0, 1, 2)))
    def flush(self, who: int, lost: int) -> None:
        person = self.people[who]
        if person.device.network.up:
            person.device.network.lose_replies = lost
            self.flush_one(person)

    def flush_one(self, person: Person) -> None:
        self.run(person.device.flush)
        person.device.network.lose_replies = 0
        person.device.network.requests = 0
        self.saved |= set(person.bytes.values())
        person.bytes.clear()

    @rule(who=which, lost=st.sampled_from((0, 1)))
    def die_while_flushing(self, who: int, lost: int) -> None:
        """The process dies after some answers came, and some were lost."""
        person = self.people[who]

        async def work() -> None:
            with trio.move_on_after(0.01):
                await person.device.flush()

        person.device.network.lose_replies = 3 * lost
        self.run(work)
        person.device.network.lose_replies = 0
        self.crash(who)

    @rule(who=which, up=st.booleans())
    def partition(self, who: int, up: bool) -> None:
        self.people[who].device.network.up = up

    @rule(who=which)
    def crash(self, who: int) -> None:
        person = self.people[who]
        if person.handle is not None:
            person.handle = None
        person.device.handles.clear()
        person.device.crash()
        self.run(person.device.start)

    # What must hold.

    @invariant()
    def the_tree_is_a_tree(self) -> None:
        for person in self.people:
            check_tables(person.device)
            for ino, data in person.bytes.items():
                self.check_bytes(person.device, ino, data)

    def check_bytes(self, device: Device, ino: int, data: bytes) -> None:
        if not device.network.up:
            return

        async def work() -> None:
            assert await device.read_all(ino) == data

        self.run(work)

    def settle_down(self) -> None:
        for person in self.people:
            person.device.network.up = True
        for _round in range(2):
            for person in self.people:
                self.run(person.device.pull)
                self.flush_one(person)
        views = []
        for person in self.people:
            self.run(person.device.pull)
            assert list(person.device.journal) == []
            views.append(self.view(person.device))
            assert person.device.contents.dirty_bytes == 0 or person.handle is not None
        apart = differences(*views)
        assert not apart, apart
        fresh = Device(self.server, self.directory / "new", "new", self.server.token("new"))
        self.people.append(Person(fresh))
        self.run(fresh.start)
        apart = differences(self.view(fresh), views[0])
        assert not apart, apart
        missing = {data[:30] for data in self.saved - self.server.history() if data}
        assert not missing

    def view(self, device: Device) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}

        async def work() -> None:
            found.update(await device.everything())

        self.run(work)
        return found


def differences(
    one: dict[str, tuple[object, ...]], other: dict[str, tuple[object, ...]]
) -> dict[str, object]:
    both = one.keys() | other.keys()
    return {p: (one.get(p), other.get(p)) for p in both if one.get(p) != other.get(p)}


def check_tables(device: Device) -> None:
    """What `tree` and `journal` promise of their tables."""
    db = device.db
    wrong = db.all(
        "SELECT d.ino, d.subdirs FROM node d WHERE d.kind = 'directory' AND d.subdirs !="
        " (SELECT COUNT(*) FROM entry e JOIN node n USING (ino)"
        "  WHERE e.parent = d.ino AND n.kind = 'directory')"
    )
    assert not [tuple(row) for row in wrong], "subdirs"
    wrong = db.all(
        "SELECT e.name FROM entry e LEFT JOIN node n ON n.ino = e.ino WHERE n.ino IS NULL"
    )
    assert not [tuple(row) for row in wrong], "a name without a node"
    wrong = db.all(
        "SELECT e.name FROM entry e LEFT JOIN node n ON n.ino = e.parent WHERE n.ino IS NULL"
    )
    assert not [tuple(row) for row in wrong], "a name in no directory"
    wrong = db.all("SELECT e.name, e.ino FROM entry e JOIN node n USING (ino) WHERE NOT n.live")
    assert not [tuple(row) for row in wrong], "a name of a dead node"
    wrong = db.all(
        "SELECT ino FROM entry JOIN node USING (ino) WHERE kind = 'directory'"
        " GROUP BY ino HAVING COUNT(*) > 1"
    )
    assert not [tuple(row) for row in wrong], "a directory with two names"
    for ino in (row["ino"] for row in db.all("SELECT ino FROM node WHERE live AND ino != ?", ROOT)):
        assert device.tree.is_under(ino, ino)
    check_journal(device)


def check_journal(device: Device) -> None:
    rows = device.db.all("SELECT * FROM op ORDER BY seq")
    table = [(r["seq"], r["key"], r["kind"], r["ino"], r["file"], r["body"], r["version"],
              bool(r["sent"]), r["refused"]) for r in rows]  # fmt: skip
    memory = [(o.seq, o.key, o.kind, o.ino, o.file, msgspec.msgpack.encode(o.body), o.version,
               o.sent, o.refused) for o in device.journal]  # fmt: skip
    assert table == memory
    assert all(device.journal.get(op.key) is op for op in device.journal)
    assert all(msgspec.msgpack.decode(row["body"], type=Body) for row in rows)


TestDevices = Devices.TestCase
TestDevices.settings = settings(
    max_examples=int(os.environ.get("NEARLINE_MODEL_EXAMPLES", "15")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
