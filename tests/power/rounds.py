"""One round: somebody works in a real mount whose state directory is recorded.

Knows: how mount, server and recorder are put together. Must not know: what may be lost.

A round is offline (the server is stopped when the mount has started) or online: then what is sent
leaves the journal meanwhile, and the mount is stopped now and then for a copy of what the server
has at that position. In the middle the mount is unmounted once, and killed once: a state that has
seen both must be as safe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.power.ledger import Ledger
from tests.power.record import Event
from tests.power.recording import Disk, recording
from tests.power.workload import Person
from tests.system.harness import Device, Site, running

STOPS = 5  # copies of the server's data in a round that is online


@dataclass(frozen=True)
class Copy:
    """The server's data when the record was at `position`."""

    position: int
    data: Path


@dataclass(frozen=True)
class Round:
    seed: int
    ledger: Ledger
    events: Sequence[Event]
    usable: int  # the position at which the first mount was usable
    copies: list[Copy]  # the last one is of the end
    token: str  # the device's


def play(place: Path, seed: int, *, online: bool, length: int) -> Round:
    """Work for `length` habits. What is kept is under `place`."""
    copies: list[Copy] = []
    with running() as site:
        device = site.device("a")
        with recording(device.state, place / "record") as disk:
            device.mount()
            os.listdir(device.at)
            usable = disk.position
            if not online:
                site.server.stop()
            person = Person(device.at, lambda: disk.position, Random(seed))
            with _logs_of_failure(site):
                for part in range(STOPS):
                    person.work(length // STOPS)
                    if online:
                        copies.append(_copy(site, device, disk, place / f"server-{part}"))
                    _interrupt(device, person, part)
                person.rest()
                _die(device)
        copies.append(Copy(len(disk.events()), _take(site.server.data, place / "server")))
        token = _token(site)
    return Round(seed, person.ledger, disk.events(), usable, copies, token)


@contextlib.contextmanager
def _logs_of_failure(site: Site) -> Iterator[None]:
    """The mount's log is on the disk that goes away with the round."""
    try:
        yield
    except BaseException:
        for title, text in site.logs():
            print(f"--- {title}\n{text}")
        raise


def _interrupt(device: Device, person: Person, part: int) -> None:
    """Once the mount ends well, once it dies; its machine lives on."""
    if part == STOPS - 1:
        return
    if part % 2:
        person.rest()
        if part == 1:
            device.umount("--now")
        else:
            _die(device)
        device.mount()


def _die(device: Device) -> None:
    device.kill()
    device.umount()


def _copy(site: Site, device: Device, disk: Disk, to: Path) -> Copy:
    """The mount does nothing meanwhile: what it has asked for may still be carried out."""
    pid = device.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        return Copy(disk.position, _take(site.server.data, to))
    finally:
        os.kill(pid, signal.SIGCONT)


def _take(data: Path, to: Path) -> Path:
    """A copy of a server's data, of one moment: first what the database speaks of."""
    to.mkdir()
    database = "nearline.sqlite"
    with (
        closing(sqlite3.connect(data / database)) as source,
        closing(sqlite3.connect(to / database)) as copy,
    ):
        source.backup(copy)
    shutil.copytree(data / "keys", to / "keys")
    shutil.copytree(
        data / "blobs", to / "blobs", ignore=shutil.ignore_patterns("incoming"), symlinks=True
    )
    return to


def _token(site: Site) -> str:
    (file,) = site.home.glob(".config/nearline/credentials/*.token")
    return file.read_text().strip()
