"""`--on-conflict=copy` on real mounts: what was overtaken is beside the winner, marked once."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import Device, Site, noise
from tests.system.selection import some

MARK = "(conflicted copy"


def offline(site: Site, *devices: Device) -> None:
    site.server.stop()
    for device in devices:
        device.goes_offline()


def online(site: Site, *devices: Device) -> None:
    site.server.start()
    for device in devices:
        device.comes_online()
    for _round in range(2):  # the copy is a file that is sent in its turn
        for device in devices:
            device.flush()


def copies(at: Path) -> list[str]:
    return sorted(name for name in os.listdir(at) if MARK in name)


def alike(*devices: Device) -> dict[str, bytes]:
    """The files that all of them show, once they show the same."""

    def tree(device: Device) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in device.at.iterdir() if path.is_file()}

    first, *rest = devices
    first.shows(lambda: all(tree(item) == tree(first) for item in rest), "the same everywhere")
    return tree(first)


def save(path: Path, content: bytes) -> None:
    """Also where close fails because the server cannot be reached: the bytes are kept."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, content)
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno != errno.ENETUNREACH:
            raise


@pytest.mark.parametrize("sync", some(["remote", "local"], 2))
def test_both_edit_one_file_offline_and_both_are_kept(site: Site, sync: str) -> None:
    """Three times over, the last time also the copy: a name is marked once."""
    options = ["--on-conflict", "copy", "--sync", sync]
    a, b = site.device("a", *options), site.device("b", *options)
    a.mount()
    b.mount()
    (a.at / "report.txt").write_bytes(b"0")
    b.sees("report.txt", b"0")
    saved = {b"0"}
    for turn in range(3):
        names = ["report.txt", *copies(a.at)] if turn == 2 else ["report.txt"]
        offline(site, a, b)
        for device in (a, b):
            for number, name in enumerate(names):
                content = f"{device.name} {turn} {number}".encode() + noise(2000, turn)
                save(device.at / name, content)
                saved.add(content)
        online(site, a, b)
        found = alike(a, b)
    assert all(name.count(MARK) == 1 for name in found if name != "report.txt"), sorted(found)
    assert all(name.endswith(".txt") for name in found)
    here = set(found.values())
    last = {content for content in saved if content[2:3] == b"2"}
    assert last <= here
    kept = {content for content in saved if content[4:5] == b"0"} - {b"0"}
    history = set(map(bytes, here)) | versions(a, found)
    assert saved <= history
    assert kept <= history
    assert a.status()["refused"] == b.status()["refused"] == []


def versions(device: Device, names: dict[str, bytes]) -> set[bytes]:
    """Every version of every file."""
    found = set()
    for name in names:
        beside = device.at / f"{name}@@"
        found |= {(beside / item).read_bytes() for item in os.listdir(beside)}
    return found


def test_an_editors_save_loses_nothing_either(site: Site) -> None:
    """Temporary and rename over, on both, offline."""
    a, b = (site.device(name, "--on-conflict", "copy") for name in "ab")
    a.mount()
    b.mount()
    (a.at / "notes").write_bytes(b"first")
    b.sees("notes", b"first")
    offline(site, a, b)
    for device in (a, b):
        script = f"printf 'of {device.name}' > .notes.tmp && mv .notes.tmp notes"
        subprocess.run(["sh", "-c", script], cwd=device.at, check=True)
    online(site, a, b)
    found = alike(a, b)
    assert sorted(found.values()) == [b"of a", b"of b"]
    assert len(copies(a.at)) == 1


def test_without_the_option_the_other_version_is_in_the_history_only(site: Site) -> None:
    a, b = site.device("a"), site.device("b")
    a.mount()
    b.mount()
    (a.at / "file").write_bytes(b"first")
    b.sees("file", b"first")
    offline(site, a, b)
    save(a.at / "file", b"of a")
    save(b.at / "file", b"of b")
    online(site, a, b)
    found = alike(a, b)
    assert list(found) == ["file"]
    assert versions(a, found) == {b"first", b"of a", b"of b"}
