"""Two devices and a server: whatever people do, offline or not, with crashes and lost answers, in
the end both devices show what the server has, and nothing that was saved is lost.

"Saved" is what a device's file held when the device was flushed; what was overwritten or deleted
on the same device before that needs no place. Each saved content must be in the history of some
file on the server: in place, under a conflicted name, overtaken, or in the trash. Where both
devices keep conflicted copies, what nobody has overwritten or deleted knowingly has a name. What
only one person has changed is exactly as that person left it (`reference`). And the server's own
check finds nothing wrong with it.
"""

from __future__ import annotations

import errno
import functools
import itertools
import random
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

from cache.metadata.operations import Body
from cache.metadata.tree import ROOT
from remote.protocol.errors import NearlineError
from tests.amounts import amount
from tests.model.device import Device
from tests.model.people import WAYS, Person, backup, temporary
from tests.model.plans import PATHS, PAUSES, TERRITORIES, Step, plan
from tests.model.reference import Reference, View, differences
from tests.model.server import Server

BODY = 4  # where in a view's tuple the bytes are
paths = st.sampled_from(PATHS)
which = st.sampled_from((0, 1))
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL}
EXPECTED |= {errno.EPERM, errno.ESTALE}


class Devices(RuleBasedStateMachine):
    """`keep_copies`: which of the two devices leave conflicted copies."""

    def __init__(self, keep_copies: tuple[bool, bool] = (False, True)) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="nearline-model-"))
        self.server = Server(self.directory)
        self.keep_copies = keep_copies
        self.people: list[Person] = []
        self.reference = Reference()
        self.numbers = itertools.count(1)

    @initialize()
    def start(self) -> None:
        for name, keeps in zip(("one", "two"), self.keep_copies, strict=True):
            token = self.server.token(name)
            directory = self.directory / name
            device = Device(self.server, directory, name, token, keep_copies=keeps)
            self.people.append(Person(device))
            self.run(device.start)
        for path in ("d", "e"):
            self.make(0, path, "directory")
        for path in ("a", "d/a", "d/b"):
            self.save(0, path, 10)
        self.agree()

    def teardown(self) -> None:
        try:
            if self.people:
                self.synchronize()
        finally:
            self.close()

    def close(self) -> None:
        for person in self.people:
            person.device.close()
        self.server.close()
        shutil.rmtree(self.directory)

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Let one person do one thing; it may fail as a system call may."""
        trio.run(self.attempt, work, clock=trio.testing.MockClock(autojump_threshold=0))

    async def attempt(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except OSError as error:
            if error.errno not in EXPECTED:
                raise
        except NearlineError:
            assert any(not person.device.network.up for person in self.people)

    def act(self, who: int, work: Callable[[Person], Awaitable[object]], *paths: str) -> None:
        self.reference.touched(who, *paths)
        self.run(lambda: work(self.people[who]))

    # --- what people do ---------------------------------------------------------------------------

    @rule(who=which, path=paths, size=st.sampled_from((0, 10, 300_000)))
    def save(self, who: int, path: str, size: int) -> None:
        data = self.fresh(size)
        self.act(who, lambda person: person.save(path, data), path)

    def fresh(self, size: int) -> bytes:
        """Bytes nobody has written before, unless there are none to write."""
        if not size:
            return b""
        stamp = f"{next(self.numbers)} ".encode()
        return (stamp * (size // len(stamp) + 1))[:size] if size > 10 else stamp

    @rule(who=which, path=paths, at=st.integers(0, 40))
    def patch(self, who: int, path: str, at: int) -> None:
        mark = self.fresh(10)
        self.act(who, lambda person: person.patch(path, at, mark), path)

    @rule(who=which, path=paths, size=st.integers(0, 20))
    def truncate(self, who: int, path: str, size: int) -> None:
        self.act(who, lambda person: person.truncate(path, size), path)

    @rule(who=which, path=paths)
    def save_by_rename(self, who: int, path: str) -> None:
        """As editors do."""
        data = self.fresh(10)
        self.act(who, lambda person: person.save_by_rename(path, data), path, temporary(path))

    @rule(who=which, path=paths, way=st.sampled_from(WAYS))
    def save_with_backup(self, who: int, path: str, way: str) -> None:
        data, touched = self.fresh(10), (path, temporary(path), backup(path))
        self.act(who, lambda person: person.save_with_backup(path, data, way), *touched)

    @rule(who=which, path=paths)
    def open(self, who: int, path: str) -> None:
        self.run(lambda: self.people[who].open(path))

    @precondition(lambda self: any(person.handle for person in self.people))
    @rule(who=which)
    def write_through_handle(self, who: int) -> None:
        mark, path = self.fresh(10), self.people[who].handle_path
        self.act(who, lambda person: person.write_through_handle(mark), path)

    @precondition(lambda self: any(person.handle for person in self.people))
    @rule(who=which, mode=st.integers(0, 0o777))
    def chmod_through_handle(self, who: int, mode: int) -> None:
        path = self.people[who].handle_path
        self.act(who, lambda person: person.chmod_through_handle(mode), path)

    @precondition(lambda self: any(person.handle for person in self.people))
    @rule(who=which)
    def release(self, who: int) -> None:
        self.run(self.people[who].release)

    @rule(who=which, old=paths, new=paths)
    def rename(self, who: int, old: str, new: str) -> None:
        self.act(who, lambda person: person.rename(old, new), old, new)

    @rule(who=which, one=paths, other=paths)
    def exchange(self, who: int, one: str, other: str) -> None:
        self.act(who, lambda person: person.exchange(one, other), one, other)

    @rule(who=which, path=paths)
    def remove(self, who: int, path: str) -> None:
        self.act(who, lambda person: person.remove(path), path)

    @rule(who=which, path=paths, kind=st.sampled_from(("directory", "directory", "symlink")))
    def make(self, who: int, path: str, kind: str) -> None:
        self.act(who, lambda person: person.make(path, kind), path)

    @rule(who=which, old=paths, new=paths)
    def link(self, who: int, old: str, new: str) -> None:
        self.act(who, lambda person: person.link(old, new), old, new)

    @rule(
        who=which,
        path=paths,
        changes=st.dictionaries(
            st.sampled_from(("mode", "uid", "mtime_ns")), st.integers(0, 0o777), min_size=1
        ),
    )
    def set_attributes(self, who: int, path: str, changes: dict[str, int]) -> None:
        self.act(who, lambda person: person.set_attributes(path, changes), path)

    @rule(who=which, path=paths, value=st.sampled_from((None, b"1", b"2")))
    def set_xattr(self, who: int, path: str, value: bytes | None) -> None:
        self.act(who, lambda person: person.set_xattr(path, value), path)

    # --- what happens to them ---------------------------------------------------------------------

    @rule(who=which)
    def pull(self, who: int) -> None:
        self.run(self.people[who].device.pull)

    @rule(who=which, nth=st.integers(0, 3), again=st.booleans())
    def hear(self, who: int, nth: int, again: bool) -> None:
        """Events arrive: some later than those behind them, some twice."""
        device = self.people[who].device

        async def work() -> None:
            await device.listen()
            for _ in range(2 if again else 1):
                await device.hear(nth)

        self.run(work)

    @rule(who=which)
    def look_around(self, who: int) -> None:
        self.run(self.people[who].look_around)

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
        person.flushed()

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

    @rule(seed=st.integers(0, 1 << 32), apart=st.booleans())
    def all_at_once(self, seed: int, apart: bool) -> None:
        """Both work, send and hear at the same time, and what is asked and answered takes its time:
        answers are overtaken by events, events by answers, either by what people do meanwhile."""
        dice = random.Random(seed)
        plans = [plan(dice, places if apart else PATHS) for places in TERRITORIES]
        for who, steps in enumerate(plans):
            for step in steps:
                self.reference.touched(who, *step.paths)

        async def work() -> None:
            async with trio.open_nursery() as everybody:
                for person, steps in zip(self.people, plans, strict=False):
                    person.device.network.weather = dice
                    everybody.start_soon(self._live_on, person, steps, dice)

        self.run(lambda: unwrapped(work))
        for person in self.people:
            network = person.device.network
            network.weather, network.requests, network.lose_replies = None, 0, 0
            if network.up:
                self.flush_one(person)

    async def _live_on(self, person: Person, steps: list[Step], dice: random.Random) -> None:
        """One person's device for a while, with everything that goes on in it."""
        device = person.device
        device.network.lose_replies = dice.choice((0, 0, 1))
        async with trio.open_nursery() as nursery:
            if device.network.up:
                nursery.start_soon(self.attempt, device.flush)
            nursery.start_soon(self._hear_of_it, device, dice)
            for step in steps:
                await trio.sleep(dice.choice(PAUSES))
                work = functools.partial(step.work, person, self.fresh(10))
                await self.attempt(work)

    async def _hear_of_it(self, device: Device, dice: random.Random) -> None:
        for _ in range(dice.randrange(4)):
            await trio.sleep(dice.choice(PAUSES))
            how = dice.choice((device.pull, device.listen, device.everything))
            await self.attempt(how)
            await self.attempt(functools.partial(device.hear, dice.randrange(4)))

    @rule(who=which, up=st.booleans())
    def partition(self, who: int, up: bool) -> None:
        self.people[who].device.network.up = up

    @rule(who=which)
    def crash(self, who: int) -> None:
        person = self.people[who]
        person.died()
        person.device.crash()
        self.run(person.device.start)

    # --- what must hold ---------------------------------------------------------------------------

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

    @rule()
    def agree(self) -> None:
        """All devices come home; what one of them alone has changed is as it left it."""
        for person in self.people:
            person.device.network.up = True
            self.run(person.release)
        last_seen = [self.view(person.device) for person in self.people]
        view = self.converge()
        surprises = self.reference.surprises(last_seen, view)
        assert not surprises, surprises
        self.reference.agree(view)

    def synchronize(self) -> None:
        self.agree()
        fresh = Device(self.server, self.directory / "new", "new", self.server.token("new"))
        self.people.append(Person(fresh))
        self.run(fresh.start)
        apart = differences(self.view(fresh), self.view(self.people[0].device))
        assert not apart, apart
        complaints = self.server.complaints()
        assert not complaints, complaints

    def converge(self) -> View:
        """Until nobody has anything to say any more, all show the same, and nothing is lost."""
        for _round in range(3):
            for person in self.people:
                self.run(person.device.pull)
                self.flush_one(person)
        views = []
        for person in self.people:
            self.run(person.device.pull)
            assert list(person.device.journal) == []
            views.append(self.view(person.device))
            assert person.device.contents.dirty_bytes == 0
        for view in views[1:]:
            apart = differences(views[0], view)
            assert not apart, apart
        self.check_nothing_is_lost(views[0])
        return views[0]

    def check_nothing_is_lost(self, view: View) -> None:
        saved = {data for person in self.people for data in person.saved if data}
        missing = {data[:30] for data in saved - self.server.history()}
        assert not missing, missing
        if all(self.keep_copies):
            found = {seen[BODY] for seen in view.values()} | self.server.trash()
            versions = self.server.versions()
            for person in self.people:
                found |= person.overtaken
                found |= {versions[item] for item in person.overtaken_versions if item in versions}
            nameless = {data[:30] for data in saved - found}
            assert not nameless, nameless

    def view(self, device: Device) -> View:
        found: dict[str, tuple[object, ...]] = {}

        async def work() -> None:
            found.update(await device.everything())

        self.run(work)
        return found


async def unwrapped(work: Callable[[], Awaitable[object]]) -> None:
    """Run it; what its nursery raised is raised as it was."""
    try:
        await work()
    except BaseExceptionGroup as error:
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        raise found from error


def check_tables(device: Device) -> None:
    """The tables are as `tree` and `journal` promise."""
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
    max_examples=amount(15, 1, "NEARLINE_MODEL_EXAMPLES"),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
