"""Power is lost at hundreds of moments of somebody's work; the machine starts again; the folder has
everything that was promised, and nothing that it never had; and so has the server after it.

Longer: NEARLINE_POWER_POINTS=5000 (crash points a round), NEARLINE_POWER_LENGTH=1000 (things done
in a round), NEARLINE_POWER_SEED=7 (other things, and other points).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from cache.metadata.tree import ROOT
from tests.model.device import Device
from tests.model.test_devices import check_tables
from tests.power.disk import Loss, survivors
from tests.power.reboot import DataServer, look, reboot, write_tree
from tests.power.record import Moved, Removed, Synced
from tests.power.rounds import Copy, Round, play

pytestmark = pytest.mark.system

POINTS = int(os.environ.get("NEARLINE_POWER_POINTS", "100"))
SEED = int(os.environ.get("NEARLINE_POWER_SEED", "1"))
LENGTH = int(os.environ.get("NEARLINE_POWER_LENGTH", "60"))
REPLAYS = max(10, POINTS // 20)

Things = dict[str, tuple[object, ...]]


@pytest.fixture(scope="module", params=["offline", "online"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Round:
    place = tmp_path_factory.mktemp("power")
    return play(place, SEED, online=request.param == "online", length=LENGTH)


def points(played: Round, count: int) -> Iterator[tuple[int, int]]:
    """(position, seed): half anywhere, half beside what matters most."""
    last = len(played.events)
    sharp = [
        at for at, event in enumerate(played.events) if isinstance(event, Synced | Moved | Removed)
    ]
    for seed in range(played.seed * 1_000_000, played.seed * 1_000_000 + count):
        random = Random(seed)
        if random.random() < 0.5:
            yield random.randint(0, last), seed
        else:
            yield min(last, max(0, random.choice(sharp) + random.randint(-2, 3))), seed


def lose_power(played: Round, position: int, seed: int, at: Path) -> Loss:
    """Leave of the state directory what a loss of power leaves, at `at`."""
    random = Random(seed)
    loss = Loss.any(random)
    write_tree(survivors(played.events[:position], loss, random), at)
    return loss


def after_power_loss(
    played: Round, server: DataServer, position: int, seed: int, at: Path
) -> str | None:
    """The fault of a device after power loss; None: it has none."""
    loss = lose_power(played, position, seed, at)
    try:
        device = reboot(at, server, played.token, was_usable=position >= played.usable)
        try:
            check_tables(device)
            wrong = played.ledger.complaint(look(device, server), position)
        finally:
            device.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told with its point
        wrong = f"{type(error).__name__}: {error}"
    return None if wrong is None else f"position {position} seed {seed} {loss}: {wrong}"


def test_what_was_promised_is_there_at_every_point(played: Round, tmp_path: Path) -> None:
    print(f"seed {played.seed}: {len(played.events)} events, {len(played.ledger.acts)} acts")
    server = DataServer(played.copies[-1].data)
    wrongs = []
    for position, seed in points(played, POINTS):
        at = tmp_path / "state"
        wrong = after_power_loss(played, server, position, seed, at)
        if wrong is not None:
            wrongs.append(wrong)
        shutil.rmtree(at)
    server.close()
    assert not wrongs, f"{len(wrongs)} of {POINTS}:\n" + "\n\n".join(wrongs[:10])


# And then the network is back.


def moments(played: Round) -> Iterator[tuple[Copy, int]]:
    """The server's data at a position, and a seed. A server that was stopped at the beginning has
    the same at every position."""
    stopped = len(played.copies) == 1
    for seed in range(played.seed * 1_000_000, played.seed * 1_000_000 + REPLAYS):
        random = Random(seed)
        copy = random.choice(played.copies[:-1] or played.copies)
        if stopped:
            copy = Copy(random.randint(played.usable, copy.position), copy.data)
        yield copy, seed


def run_until_sent(device: Device) -> None:
    async def work() -> None:
        with trio.fail_after(60):
            await device.sync()

    trio.run(work)


def sizes(state: Path, scratch: Path) -> set[object]:
    """The files of which the database says that there is something in them."""
    shutil.copytree(state, scratch)
    with contextlib.closing(sqlite3.connect(scratch / "tree.sqlite")) as db:
        return {row[0] for row in db.execute("SELECT file FROM node WHERE live AND size > 0")}


def everything(device: Device) -> Things:
    found: Things = {}

    async def work() -> None:
        found.update(await device.everything())

    trio.run(work)
    return found


def held(device: Device) -> set[object]:
    """Files with changes that wait for a decision: their bytes are gone."""
    return {op.file for op in device.journal}


def told_apart(device: Device, other: Device) -> str | None:
    """The difference of two devices in what does not wait; None: there is none. Times are the
    server's."""
    waiting = held(device)
    one, two = (
        {
            path: (kind, mode, file, body)
            for path, (kind, mode, file, _, body, *_rest) in everything(which).items()
            if file not in waiting
        }
        for which in (device, other)
    )
    wrong = [
        (path, one.get(path), two.get(path))
        for path in sorted(one.keys() | two.keys())
        if one.get(path) != two.get(path) and not is_waiting(device, path, waiting)
    ]
    return str(wrong) if wrong else None


def is_waiting(device: Device, path: str, waiting: set[object]) -> bool:
    """True if `path` is in a directory that waits."""
    ino = ROOT
    for name in path.strip("/").split("/"):
        node = device.tree.child(ino, name)
        if node is None:
            return False
        if node.file in waiting:
            return True
        ino = node.ino
    return False


@pytest.mark.parametrize("number", range(REPLAYS))
def test_what_is_left_reaches_the_server_and_nothing_else(
    played: Round, number: int, tmp_path: Path
) -> None:
    copy, seed = list(moments(played))[number]
    print(f"position {copy.position} seed {seed}")
    shutil.copytree(copy.data, tmp_path / "data")
    server = DataServer(tmp_path / "data")
    lose_power(played, copy.position, seed, tmp_path / "state")
    claimed = sizes(tmp_path / "state", tmp_path / "peek")
    device = reboot(tmp_path / "state", server, played.token)
    emptied = claimed - sizes(tmp_path / "state", tmp_path / "peek again")
    before = look(device, server)
    assert played.ledger.complaint(before, copy.position) is None
    run_until_sent(device)
    after = look(device, server)
    if len(played.copies) == 1:
        assert after == before
    # Else the server may have what the journal here forgot that it sent: newer files among older.
    bodies = [item.body for item in after.values() if item.body]
    assert all(played.ledger.is_known(body, len(played.ledger.acts)) for body in bodies)
    fresh = Device(server, tmp_path / "fresh", "fresh", server.token("fresh"))
    trio.run(fresh.start)
    assert told_apart(device, fresh) is None
    empty = {file for _, _, file, _, body, *_ in everything(fresh).values() if body == b""}
    assert not emptied & empty
    for item in (device, fresh):
        item.close()
    server.close()
