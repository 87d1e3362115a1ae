"""The walks of `tests.model` on real mounts: two devices, each behind a network of its own that is
cut and mended, killed and mounted again, and a real server.

What must hold is what must hold there: in the end both show the same; what only one person has
changed is exactly as that person left it; whatever was on either device when it said that all was
sent is in the tree or in a history; the server's own check finds nothing wrong.

`NEARLINE_MOUNT_WALKS` sets how many walks, `NEARLINE_MOUNT_FIRST` from which number on; one is
reproduced by its number, as far as two mounts can be.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio

from mount.control import client
from mount.control.messages import FlushRequest, socket_path
from server.metadata.db import Database
from server.storage.blobs import LocalBlobStore
from tests.model import plans
from tests.model.plans import PATHS, TERRITORIES, Step
from tests.model.reference import Reference, View, differences
from tests.model.server import Storage
from tests.model.test_devices import BODY, EXPECTED
from tests.system import harness
from tests.system.faultproxy import FaultProxy
from tests.system.harness import ACCOUNT, Device, Site, wait_until
from tests.system.persons import MountedPerson

WALKS = int(os.environ.get("NEARLINE_MOUNT_WALKS", "2"))
FIRST = int(os.environ.get("NEARLINE_MOUNT_FIRST", "0"))
STEPS = 45
WEIGHTS = plans.WEIGHTS | {"flush": 2, "partition": 4, "crash": 1, "look_around": 3, "agree": 1}
# What a call may answer besides: no network (or none yet again), an attribute that is not there.
ALSO = {errno.ENETUNREACH, errno.EBUSY, errno.ETIMEDOUT, errno.ENODATA, errno.ELOOP}


class Away(Device):
    """A device that reaches its server through a network of its own."""

    network: FaultProxy

    def mount(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.at.mkdir(exist_ok=True)
        where = ["--state", str(self.state), "--cache", str(self.cache)]
        words = ["mount", self.network.url, str(self.at), *where, "--insecure"]
        words += [*self.options, *more]
        return self.site.cli(*words, check=check)

    # --- asked without a process of its own for each question: a walk asks often ------------------

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(client.status(socket_path(self.state)))
        return found

    def flush(self, seconds: float = harness.COMMAND_SECONDS) -> None:
        request = FlushRequest(timeout=seconds)
        client.ask(socket_path(self.state), request, line_timeout=None)


@dataclass
class Two:
    site: Site
    devices: list[Away]
    saved: set[bytes] = field(default_factory=set)

    def storage(self) -> Storage:
        """All that the server has kept; it is stopped."""
        self.site.server.stop()
        data = self.site.server.data
        return Storage(Database(data / "nearline.sqlite"), LocalBlobStore(data / "blobs"))


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    """Two mounts for all walks; what the server then has is looked at in the end."""
    with ExitStack() as stack:
        port = harness.free_port()
        networks = [stack.enter_context(FaultProxy("127.0.0.1", port)) for _ in range(2)]
        site = stack.enter_context(harness.running(port=port))
        devices = []
        for name, network in zip(("one", "two"), networks, strict=True):
            password = ["--password-file", str(site.password_file)]
            site.cli("login", network.url, "--account", ACCOUNT, "--insecure", *password)
            device = Away(site, name, ["--on-conflict", "copy"] if name == "two" else [])
            device.network = network
            site.devices.append(device)
            device.mount()
            devices.append(device)
        yield Two(site, devices)


class Walk:
    """One walk, in a directory of its own."""

    def __init__(self, two: Two, number: int) -> None:
        self.two, self.dice = two, random.Random(number)
        self.apart = number % 2 == 1
        self.reference = Reference()
        self.fresh = (f"{number}.{n} ".encode() for n in range(1, 10_000))
        name = f"walk{number}"
        (two.devices[0].at / name).mkdir()
        for device in two.devices:
            device.sees(name)
        self.people = [MountedPerson(device.at / name) for device in two.devices]

    def run(self) -> None:
        self.reference.touched(0, "a", "d", "e")
        for path in ("d", "e"):
            (self.people[0].at / path).mkdir()
        for path in ("a", "d/a", "d/b"):
            (self.people[0].at / path).write_bytes(next(self.fresh))
        self.agree()
        for name in self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            self.step(name, self.dice.randrange(2))
        self.agree()

    def step(self, name: str, who: int) -> None:
        match name:
            case "agree":
                self.agree()
            case "flush":
                self.flush(who)
            case "look_around":
                self.allowed(lambda: self.people[who].view())
            case "partition":
                network = self.two.devices[who].network
                (network.cut if self.dice.random() < 0.6 else network.mend)()
            case "crash":
                self.crash(who)
            case _:
                at_home = self.apart and self.dice.random() > 0.1
                choices = TERRITORIES[who] if at_home else PATHS
                step = Step(name, plans.arguments(name, self.dice, choices))
                self.reference.touched(who, *step.paths)
                data = next(self.fresh)
                self.allowed(lambda: trio.run(step.work, self.people[who], data))

    def allowed(self, work: Callable[[], object]) -> None:
        """It may fail as a system call may."""
        try:
            work()
        except OSError as error:
            if error.errno not in EXPECTED | ALSO:
                raise

    def crash(self, who: int) -> None:
        device = self.two.devices[who]
        device.kill()
        device.umount()
        device.mount()

    def flush(self, who: int) -> None:
        device = self.two.devices[who]
        device.network.mend()
        self.online(device)
        before = self.view(who)
        device.flush()
        self.two.saved |= {seen[BODY] for seen in before.values() if isinstance(seen[BODY], bytes)}

    def online(self, device: Device) -> None:
        device.comes_online()

    def agree(self) -> None:
        for device in self.two.devices:
            device.network.mend()
        for device in self.two.devices:
            self.online(device)
        last_seen = [self.view(who) for who in range(2)]
        for _ in range(2):
            for who in range(2):
                self.flush(who)
        view = self.converge()
        surprises = self.reference.surprises(last_seen, view)
        assert not surprises, surprises
        self.reference.agree(view)

    def view(self, who: int) -> View:
        """Looked at again, when something went away while it was looked at."""
        found: list[View] = []

        def look() -> bool:
            try:
                found.append(self.people[who].view())
            except OSError as error:
                if error.errno not in EXPECTED | ALSO:
                    raise
            return bool(found)

        wait_until(look, f"a look at everything on {self.two.devices[who].name}")
        return found[0]

    def converge(self) -> View:
        views: list[View] = []

        def same() -> bool:
            views[:] = [self.view(who) for who in range(2)]
            return not differences(*views)

        try:
            wait_until(same, "both show the same")
        except harness.Trouble as error:
            raise harness.Trouble(f"{error}: {differences(*views)}") from error
        for device in self.two.devices:
            assert device.status()["refused"] == []
        return views[0]


@pytest.mark.parametrize("number", range(FIRST, FIRST + WALKS))
def test_a_walk_on_real_mounts_ends_in_agreement(two: Two, number: int) -> None:
    Walk(two, number).run()


def test_nothing_that_was_saved_in_any_walk_is_lost(two: Two) -> None:
    """Last: the server is stopped for it."""
    storage = two.storage()
    try:
        assert two.saved
        missing = {data[:30] for data in two.saved - storage.history() if data}
        assert not missing
        assert storage.complaints() == []
    finally:
        storage.db.close()
