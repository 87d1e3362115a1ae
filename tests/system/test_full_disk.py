"""The disk under the state directory is full: ENOSPC, and what was acknowledged is there, also
after the process has died, and when there is room again on the server too."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.harness import Device, Site, noise, run

Expected = dict[str, bytes | None]


@pytest.fixture
def device(site: Site) -> Iterator[Device]:
    """State and block cache on one disk of 40 MB; a file and a directory that the server has."""
    device = site.device("a", "--cache-size", "32MiB")
    for directory in (device.state, device.cache):
        directory.mkdir(mode=0o700)
    run("mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs", device.state)
    (device.state / "cache").mkdir()
    run("mount", "--bind", device.state / "cache", device.cache)
    try:
        device.mount()
        (device.at / "known").write_bytes(noise(1_000_000, 1))
        (device.at / "dir").mkdir()
        device.flush()
        yield device
    finally:
        if device.mounted:
            device.umount("--now", check=False)
        for directory in (device.cache, device.state):  # its process may be ending yet
            run("umount", "-l", directory)


def fill(device: Device, left: int = 0) -> Path:
    """Only `left` bytes are free; by default not even what the mount keeps for its journal."""
    filler = device.state / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - left))
    return filler


def offline(site: Site, device: Device) -> None:
    site.server.stop()
    device.goes_offline()


def attempt(work: Callable[[], object]) -> bool:
    """Was it done? Anything but ENOSPC is not an answer to a full disk."""
    try:
        work()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def names(at: Path) -> set[str]:
    return {str(path.relative_to(at)) for path in at.rglob("*")}


def tree(at: Path) -> Expected:
    found: Expected = {}
    for path in sorted(at.rglob("*")):
        found[str(path.relative_to(at))] = path.read_bytes() if path.is_file() else None
    return found


def synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_every_operation_on_a_full_disk_is_done_or_refused(site: Site, device: Device) -> None:
    """With no room at all even for the journal. What was refused is as before; when there is room
    everything goes on; the other device shows what this one does."""
    at = device.at
    for name in ("renamed", "removed", "linked", "changed"):
        (at / name).write_bytes(name.encode())
    (at / "empty").mkdir()
    device.flush()
    offline(site, device)
    filler = fill(device)
    done: set[str] = set()
    for _round in range(4000):  # log and database have room of their own at first
        steps: dict[str, Callable[[], object]] = {
            f"dir{_round}": lambda n=_round: (at / f"dir{n}").mkdir(),  # type: ignore[misc]  # n
            f"link{_round}": lambda n=_round: os.link(at / "linked", at / f"link{n}"),  # type: ignore[misc]
            f"sym{_round}": lambda n=_round: os.symlink("linked", at / f"sym{n}"),  # type: ignore[misc]
        }
        now_done = {name for name, step in steps.items() if attempt(step)}
        done |= now_done
        attempt(lambda: os.setxattr(at / "changed", "user.a", bytes(60_000)))
        if f"dir{_round}" in now_done:  # so that the database has grown into its room soon
            new = at / f"dir{_round}"
            attempt(lambda at=new: os.setxattr(at, "user.a", bytes(60_000)))  # type: ignore[misc]
        attempt(lambda: (at / "changed").chmod(0o600))
        if not now_done:
            break
    else:
        pytest.fail("the journal was never full")
    assert not attempt(lambda: synced(at / "no room", noise(100_000, 3)))
    moved = attempt(lambda: (at / "renamed").rename(at / "dir" / "moved"))
    gone = attempt(lambda: (at / "removed").unlink())
    rmdir = attempt(lambda: (at / "empty").rmdir())
    now = names(at)
    assert ("dir/moved" in now, "renamed" in now) == (moved, not moved)
    assert ("removed" in now) is not gone
    assert ("empty" in now) is not rmdir
    assert {*done, "known", "linked", "changed"} <= now
    filler.unlink()
    (at / "after").write_bytes(b"there is room")
    with contextlib.suppress(FileNotFoundError):
        (at / "no room").unlink()
    site.server.start()
    device.comes_online()
    # The next close is told when times could not be written. The bytes may have to be fetched: what
    # is on the server is cached only as far as there was room.
    for name in ("linked", "changed"):
        attempt((at / name).read_bytes)
    device.flush()
    other = site.device("other")
    other.mount()
    assert tree(other.at) == (found := tree(at))
    assert done <= found.keys()
    assert found["known"] == noise(1_000_000, 1)
    assert found["linked"] == b"linked"


def test_others_fill_the_disk_and_deleting_and_making_directories_go_on(
    site: Site, device: Device
) -> None:
    """Deleting is what makes room; the journal has its room before others can take it."""
    at = device.at
    for number in range(120):
        (at / f"file{number}").write_bytes(b"x")
    device.flush()
    offline(site, device)
    filler = fill(device)
    for number in range(120):
        (at / f"file{number}").unlink()
        (at / f"dir{number}").mkdir()
    site.server.start()
    device.comes_online()
    device.flush()
    filler.unlink()
    other = site.device("other")
    other.mount()
    assert names(other.at) == names(at)
    assert "dir119" in names(at)
    assert "file0" not in names(at)


@pytest.mark.parametrize("end", ["unmounted", "killed"])
def test_on_a_disk_that_others_filled_meanwhile_a_mount_starts(device: Device, end: str) -> None:
    """Twice in a row: what the first start used is there for the second one too."""
    at = device.at
    for _again in range(2):
        if end == "killed":
            device.kill()
            device.umount()
        else:
            device.umount("--now")
        fill(device)
        device.mount()
        assert (at / "known").read_bytes() == noise(1_000_000, 1)
        (at / "dir").rmdir()
        (at / "dir").mkdir()
    (at / "known").unlink()
    device.flush()


def test_killed_while_full_what_was_acknowledged_is_there(site: Site, device: Device) -> None:
    at, kept = device.at, dict[str, bytes]()
    offline(site, device)
    full = False
    for number in range(200):
        content = noise(700_000, 100 + number)
        if not attempt(lambda c=content, n=number: synced(at / f"file{n}", c)):  # type: ignore[misc]  # of this turn
            full = True
            break
        kept[f"file{number}"] = content
    assert full
    assert len(kept) > 10
    filler = fill(device)
    device.kill()
    cleaned = device.umount(check=False)
    assert cleaned.returncode == 0, cleaned
    again = device.mount(check=False)
    if again.returncode:  # a mount that has no room to start says so, and harms nothing
        assert "make room" in again.stderr
        filler.unlink()
        device.mount()
    for name, content in kept.items():
        assert (at / name).read_bytes() == content
    assert (at / "known").stat().st_size == 1_000_000
    filler.unlink(missing_ok=True)
    site.server.start()
    device.comes_online()
    device.flush()
    other = site.device("other")
    other.mount()
    for name, content in kept.items():
        assert (other.at / name).read_bytes() == content
    assert device.status()["refused"] == []


def test_a_block_cache_on_a_full_disk_only_caches_less(site: Site, device: Device) -> None:
    """Reading goes on from the server; the dirty bytes beside it stay."""
    other = site.device("other")
    other.mount()
    cold = noise(20_000_000, 4)
    (other.at / "cold").write_bytes(cold)
    other.flush()
    device.sees("cold")
    (device.at / "dirty").write_bytes(b"dirty")
    fill(device, left=2_000_000)
    assert (device.at / "cold").read_bytes() == cold
    assert (device.at / "dirty").read_bytes() == b"dirty"
    other.sees("dirty", b"dirty")
