"""Times do not go back, and what is changed later is not older: on a mount, where some are made by
the kernel and some by the mount, and locally, which proves the expectations right."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.harness import Device

ROUNDS = 1000


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with harness.running() as site:
        device = site.device("a")
        device.mount()
        yield device


@pytest.fixture(params=["local", "mounted"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "local":
        return tmp_path
    device: Device = request.getfixturevalue("device")
    directory = device.at / tmp_path.name
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def precise(tmp_path: Path) -> Iterator[None]:
    """Beside the test a local file is looked at and written all the time. Linux 6.13 and later
    gives it a precise time for that, where the file system can have one, and no file on the
    machine an earlier one from then on."""
    file, ended = tmp_path / "precise", threading.Event()

    def look_and_write() -> None:
        with file.open("wb", buffering=0) as out:
            while not ended.wait(0.001):
                os.fstat(out.fileno())
                out.write(b"x")

    beside = threading.Thread(target=look_and_write)
    beside.start()
    yield
    ended.set()
    beside.join()


@contextmanager
def moves_on(path: Path) -> Iterator[None]:
    """Neither mtime nor ctime goes back by what is done."""
    before = path.lstat()
    yield
    after = path.lstat()
    assert after.st_mtime_ns >= before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_touch_never_makes_a_file_older(place: Path) -> None:
    file = place / "f"
    file.touch()
    for _ in range(ROUNDS):
        with moves_on(file), moves_on(place):
            file.touch()


def test_a_file_is_not_older_after_it_was_made_written_and_changed(place: Path) -> None:
    for number in range(ROUNDS // 5):
        file, moved, link = (place / f"{name}{number}" for name in "fml")
        with moves_on(place), file.open("wb", buffering=0) as out:
            for change in (
                partial(out.write, b"bytes"),
                partial(os.fsync, out.fileno()),
                partial(out.write, b"more"),
                partial(file.chmod, 0o600),
                partial(out.truncate, 3),
                partial(os.link, file, link),
                partial(os.setxattr, file, "user.a", b"1"),
                link.unlink,
            ):
                with moves_on(file):
                    change()
        with moves_on(file):
            file.open().close()
        before = file.stat()
        file.rename(moved)
        assert moved.stat().st_mtime_ns == before.st_mtime_ns
        assert moved.stat().st_ctime_ns >= before.st_ctime_ns


def test_what_is_made_or_written_after_another_is_not_older(place: Path) -> None:
    def empty(path: Path) -> None:
        path.touch()

    def written(path: Path) -> None:
        path.write_bytes(b"bytes")

    def linked(path: Path) -> None:
        path.symlink_to("nowhere")

    makers: list[Callable[[Path], None]] = [written, empty, written, Path.mkdir, linked]
    last = 0
    for number in range(ROUNDS):
        path = place / str(number)
        makers[number % len(makers)](path)
        made = path.lstat().st_mtime_ns
        assert made >= last
        last = made


def test_a_change_of_a_directory_or_a_link_does_not_take_its_times_back(place: Path) -> None:
    for number in range(ROUNDS // 5):
        directory, link = place / f"d{number}", place / f"s{number}"
        directory.mkdir()
        link.symlink_to("nowhere")
        for change in (
            (directory / "f").touch,
            partial(directory.chmod, 0o700),
            (directory / "f").unlink,
        ):
            with moves_on(directory):
                change()
        for path in (directory, link):
            before = path.lstat()
            moved = path.rename(place / f"moved-{path.name}")
            assert moved.lstat().st_ctime_ns >= before.st_ctime_ns


def test_make_and_find_take_nothing_for_older_than_what_was_before_it(place: Path) -> None:
    source, target = place / "source", place / "target"
    (place / "Makefile").write_text("target: source\n\tcp source target\n")
    for number in range(20):
        source.write_text(str(number))
        target.touch()
        subprocess.run(["make", "-q", "target"], cwd=place, check=True)
        found = subprocess.run(["find", source, "-newer", target], check=True, capture_output=True)
        assert found.stdout == b""


def test_a_time_that_a_program_sets_may_be_any_and_the_next_change_is_now(place: Path) -> None:
    file, directory = place / "f", place / "d"
    file.touch()
    directory.mkdir()
    for path in (file, directory):
        os.utime(path, ns=(1, 5_000_000_000_000_000_001))
        assert path.stat().st_mtime_ns == 5_000_000_000_000_000_001
    now = place.stat().st_mtime_ns
    file.write_text("later")
    (directory / "f").touch()
    for path in (file, directory):
        assert now <= path.stat().st_mtime_ns < 5_000_000_000_000_000_000
