"""Names and attributes are as POSIX has them: on a real mount, and on a local file system, which
proves the expectations right. For root: the scripts act as several users."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import harness, posix_scripts
from tests.system.harness import Device
from tests.system.posix_actor import Actor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    with Actor() as actor:
        yield actor


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with harness.running() as site:
        device = site.device("a", "-o", "allow_other")
        device.mount()
        yield device


@pytest.fixture(scope="module")
def other(device: Device) -> Device:
    other = device.site.device("b", "-o", "allow_other")
    other.mount()
    return other


@pytest.fixture(scope="module")
def mounted(device: Device) -> Path:
    return device.at


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


ALL = ("mode", "uid", "gid", "nlink", "size", "rdev", "mtime_ns")


def seen(top: Path, *more: str) -> dict[str, tuple[int, ...]]:
    """The attributes of everything below `top`, ALL and `more`, by path."""
    found = {}
    for above, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(above, name)
            status = path.lstat()
            values = tuple(getattr(status, f"st_{field}") for field in (*ALL, *more))
            found[str(path.relative_to(top))] = values
    return found


EVERYTHING = """
    mkdir d
    mkdir d/deep
    make regular d/regular
    make fifo d/fifo
    make socket d/socket
    make char d/char
    make block d/block
    make symlink d/symlink
    make dir d/dir
    link d/regular d/another
    open d/written O_CREAT|O_RDWR as h
    write @h hello = 5
    chmod @h 04755
    close @h
    link d/written d/deep/written
    chmod d/regular 06711
    lchown d/regular 1000 1001
    chmod d/dir 03775
    lchown d/dir 4294967294 7
    lchown d/symlink 3 4
    lchown d/fifo 5 6
    chmod d/char 0
    utimensat d/regular 1 1234567890123456789
    utimensat d/symlink 1 4300000000000000002 nofollow
    utimensat d/char 1 -1
    utimensat d/dir 1 2
    lstat d/dir = mode=3775 uid=4294967294 gid=7 mtime=2
"""


def test_attributes_are_the_same_on_the_other_device(
    actor: Actor, device: Device, other: Device
) -> None:
    directory = device.at / "everywhere"
    directory.mkdir()
    assert actor.play(directory, EVERYTHING) == []
    device.flush()
    here = seen(directory / "d")
    other.sees("everywhere/d/deep/written")
    # Of a directory in which something was made, the server says when it heard of that.
    times_apart = {"deep"}
    seen(other.at / "everywhere/d")  # the link count of a directory is told when it is listed
    there = seen(other.at / "everywhere/d")
    assert {path: there[path] for path in here.keys() - times_apart} == {
        path: here[path] for path in here.keys() - times_apart
    }


def test_attributes_are_the_same_after_a_new_mount(actor: Actor, device: Device) -> None:
    """Also ctime: who compares it (git, backup programs) must not read everything again."""
    directory = device.at / "again"
    directory.mkdir()
    assert actor.play(directory, EVERYTHING) == []
    before = seen(directory, "ctime_ns", "atime_ns", "ino")
    device.umount("--now")
    device.mount()
    assert seen(directory, "ctime_ns", "atime_ns", "ino") == before


@pytest.mark.parametrize("place", ["local", "mounted"])
@pytest.mark.parametrize("family", posix_scripts.FAMILIES)
def test_calls_do_what_posix_says(
    family: str, place: str, actor: Actor, request: pytest.FixtureRequest
) -> None:
    where: Path = request.getfixturevalue(place)
    complaints = {}
    for name, text in posix_scripts.scripts(family):
        directory = Path(tempfile.mkdtemp(dir=where))
        directory.chmod(0o755)
        if found := actor.play(directory, text):
            complaints[name] = found
    assert complaints == {}
