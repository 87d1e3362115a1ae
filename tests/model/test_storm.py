"""Everything at once on two devices that send, hear and resolve meanwhile, as in
`tests.system.test_storm` but without kernel and sockets: a seed is a run that can be had again.

    NEARLINE_MODEL_STORMS=2000 NEARLINE_MODEL_STORMS_FIRST=100 .venv/bin/pytest ...

In the end nothing is under way, nothing waits and nothing is left over, both devices and a new one
show the same, also after they were started anew, and the server's own check finds nothing wrong.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import structlog.testing
import trio
import trio.testing

from cache.metadata.operations import Op
from cache.sync.resolver import Resolver
from tests.model.device import Device
from tests.model.reference import differences
from tests.model.server import Server
from tests.model.storm import DIRECTORIES, Plan, Site, reproducible
from tests.model.test_devices import check_tables, unwrapped

pytestmark = pytest.mark.slow

STORMS = int(os.environ.get("NEARLINE_MODEL_STORMS", "16"))
FIRST = int(os.environ.get("NEARLINE_MODEL_STORMS_FIRST", "0"))
NAME = "laptop"  # of both devices: so are the names of their conflicted copies
LONGEST = 3600.0  # seconds of the mock clock
MOST_REQUESTS = 600  # of each device, from the end of a storm until nothing is under way


def plan_of(seed: int) -> Plan:
    dice = random.Random(seed)
    return Plan(
        seed,
        threads=dice.randrange(1, 6),
        operations=dice.randrange(4, 14),
        names=dice.randrange(1, 6),
        crashes=seed % 4 == 2,
        partitions=seed % 4 == 3,
        resets=seed % 5 == 4,
    )


class Storm:
    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan, self._directory = plan, directory
        self.server = Server(directory)
        self._copies = plan.dice("copies").random() < 0.3
        self.devices: list[Device] = []

    def close(self) -> None:
        for device in self.devices:
            device.close()
        self.server.close()

    async def run(self) -> None:
        with trio.fail_after(LONGEST):
            await self._begin()
            await self._rage()
            await self._check()

    async def _open(self, name: str) -> Device:
        token, directory = self.server.token(name), self._directory / name
        device = Device(
            self.server, directory, NAME, token, keep_copies=self._copies, has_asker=True
        )
        self.devices.append(device)
        await device.start()
        return device

    async def _begin(self) -> None:
        a, b = await self._open("a"), await self._open("b")
        for path in DIRECTORIES:
            a.edits.create(*await a.place(path), "directory", 0o755, 0, 0)
        await a.sync()
        await b.sync()

    async def _rage(self) -> None:
        sites = [Site(one, self._plan, name) for one, name in zip(self.devices, "ab", strict=True)]
        async with trio.open_nursery() as nursery:
            for site in sites:
                nursery.start_soon(site.live)
            if self._plan.resets:
                nursery.start_soon(self._forget)
            for site in sites:
                await site.is_calm.wait()
            await self._come_to_rest(sites)
            nursery.cancel_scope.cancel()

    async def _forget(self) -> None:
        dice = self._plan.dice("server")
        while True:
            await trio.sleep(dice.choice((0.5, 2, 10)))
            self.server.forget_feed()

    async def _come_to_rest(self, sites: list[Site]) -> None:
        for device in self.devices:
            device.network.requests, device.network.most = 0, MOST_REQUESTS
        seen = -1
        while seen != (seen := (await self.devices[0].port.me()).seq):
            for site in sites:
                await site.come_to_rest()
        for device in self.devices:
            device.network.weather = None

    async def _check(self) -> None:
        for device in self.devices:
            device.collector.collect()
            check_nothing_is_left(device)
        await self._open("new")
        views = [await device.everything() for device in self.devices]
        for device in self.devices:
            device.crash()
            await device.start()
            check_nothing_is_left(device)
            views.append(await device.everything())
        for number, view in enumerate(views[1:], 1):
            assert not (apart := differences(views[0], view)), (number, apart)
        complaints = self.server.complaints()
        assert not complaints, complaints


def check_nothing_is_left(device: Device) -> None:
    assert list(device.journal) == [], list(device.journal)
    assert device.contents.dirty_bytes == 0, device.contents.dirty_bytes
    assert not device.uploader.progress
    assert not device.uploader.ready
    for table in ("layer", "extent", "unsettled", "shadow"):
        rows = [tuple(row) for row in device.db.all(f"SELECT * FROM {table}")]
        assert rows == [], table
    dead = [tuple(row) for row in device.db.all("SELECT * FROM node WHERE NOT live")]
    assert dead == [], dead
    check_tables(device)


def passed_on(_: Resolver, op: Op, what: str) -> contextlib.AbstractContextManager[None]:
    """In place of `Resolver.putting_aside`: a fault is one of this test, too."""
    return contextlib.nullcontext()


def one_storm(seed: int, directory: Path) -> int:
    """The number of chunks that came in bundles."""
    storm = Storm(plan_of(seed), directory)
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        with reproducible(seed), structlog.testing.capture_logs() as said:
            trio.run(unwrapped, storm.run, clock=clock)
    finally:
        storm.close()
    errors = [item for item in said if item["log_level"] == "error"]
    assert not errors, errors
    return storm.server.bundled


def main(first: int, storms: int) -> None:
    """In a process of its own: what makes a run reproducible changes clock and chance for everybody
    in the process, such as the servers of other tests."""
    with mock.patch.object(Resolver, "putting_aside", passed_on):
        for seed in range(first, first + storms):
            print(f"storm {seed}", flush=True)
            with tempfile.TemporaryDirectory(prefix="nearline-storm-") as directory:
                bundled = one_storm(seed, Path(directory))
            print(f"calm: {bundled}", flush=True)


def test_storms_end_and_leave_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.test_storm", str(FIRST), str(STORMS)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    bundled = [int(count) for count in re.findall(r"calm: (\d+)", done.stdout)]
    assert len(bundled) == STORMS, f"{done.stdout[-30:]}\n{done.stderr}"
    assert sum(bundled) > STORMS, "chunks that came in bundles"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
