"""The bytes of one file, whatever is done to it: `fsx` on real mounts.

`NEARLINE_FSX_OPERATIONS` is how many operations, dealt out equally to the shapes; in the last one
most go past the page cache. `NEARLINE_FSX_SEED` is which ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import fsx, harness
from tests.system.conftest import Pair, watched
from tests.system.fsx import SHAPES, Shape
from tests.system.harness import Device, wait_until

OPERATIONS = int(os.environ.get("NEARLINE_FSX_OPERATIONS", "2000"))
SEED = int(os.environ.get("NEARLINE_FSX_SEED", "1"))
SECONDS_TO_ARRIVE = 60.0
SLOWEST = 20  # operations a second


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """That of all tests of real mounts, with time for so many operations."""
    with watched(harness.TEST_SECONDS + OPERATIONS / SLOWEST):
        yield


@dataclass
class OnPair:
    """A file of two devices, at one of them."""

    name: str
    here: Device
    there: Device

    def path(self) -> Path:
        return self.here.at / self.name

    def flush(self) -> None:
        self.here.flush()

    def clear(self) -> None:
        self.here.clear_cache()

    def remount(self) -> None:
        self.here.umount("--now")
        self.here.mount()

    def move(self, content: bytes | bytearray) -> None:
        self.here, self.there = self.there, self.here
        wait_until(lambda: self._is(content), "the bytes on the other device", SECONDS_TO_ARRIVE)

    def _is(self, content: bytes | bytearray) -> bool:
        try:
            with self.path().open("rb") as file:
                return os.fstat(file.fileno()).st_size == len(content) and file.read() == content
        except FileNotFoundError:
            return False


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_byte_is_what_was_written_last(pair: Pair, shape: Shape) -> None:
    places = OnPair(f"fsx-{shape.name}", pair.a, pair.b)
    fsx.Run(places, SEED, shape, OPERATIONS // len(SHAPES)).go()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_it_is_so_on_a_local_file_system(direct_folder: Path, shape: Shape) -> None:
    fsx.Run(fsx.OneFolder(direct_folder), SEED, shape, OPERATIONS // len(SHAPES)).go()


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    shape = SHAPES[0]
    assert list(fsx.plan(7, shape, 500)) == list(fsx.plan(7, shape, 800))[:500]
    assert list(fsx.plan(7, shape, 500)) != list(fsx.plan(8, shape, 500))
