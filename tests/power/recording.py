"""Starts and ends a recorder: `recording(...)` is a mounted disk whose every change is recorded."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.power.record import Event, Position, load
from tests.system.harness import Trouble, run

REPOSITORY = Path(__file__).parents[2]


class Disk:
    """A directory whose changes are recorded. `events` can be read after `stop`."""

    def __init__(self, at: Path, record: Path) -> None:
        self.at, self._record = at, record
        at.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.power.recorder", at, record],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise Trouble("the recorder did not start")
        self._position = Position(record)

    @property
    def position(self) -> int:
        return self._position.read()

    def stop(self) -> None:
        """Unmount, and have the whole record. Raises Trouble when something is open there."""
        run("umount", self.at)
        self._end()

    def give_up(self) -> None:
        """Unmount, whatever is open there."""
        run("umount", "-l", self.at, check=False)
        self._process.kill()
        self._end()

    def _end(self) -> None:
        assert self._process.stdout is not None
        self._process.wait(60)
        self._process.stdout.close()
        self._position.close()

    def events(self) -> Sequence[Event]:
        return load(self._record)


@contextlib.contextmanager
def recording(at: Path, record: Path) -> Iterator[Disk]:
    """Everything must be closed at the end."""
    disk = Disk(at, record)
    try:
        yield disk
        disk.stop()
    except BaseException:
        disk.give_up()
        raise
