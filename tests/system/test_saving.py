"""Editors' saves and moved directories, as the other device and the server see them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from remote.http.api import ApiClient
from tests.system.conftest import Pair
from tests.system.harness import Device, Site, noise

SAVES = 100


class Watcher:
    """Reads a file over and over, in a thread; `seen` is every content it had, in order."""

    def __init__(self, path: Path) -> None:
        self._path, self._over = path, threading.Event()
        self.seen: list[bytes] = []
        self.troubles: list[OSError] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                data = self._path.read_bytes()
            except OSError as error:
                self.troubles.append(error)
                return
            if not self.seen or self.seen[-1] != data:
                self.seen.append(data)


def content(number: int) -> bytes:
    """All of one save: every line tells its number, so that a mix shows; the lengths differ."""
    return b"save %04d\n" % number * (200 + 37 * number)


def save(path: Path, data: bytes) -> None:
    """Write a temporary file, fsync, rename over: as vim, emacs and most others do."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def test_whoever_reads_while_an_editor_saves_sees_whole_saves_only(pair: Pair) -> None:
    """On the other device: never no file, an empty one, or a mix; and never an older one again."""
    (pair.a.at / "text").mkdir()
    path = pair.a.at / "text" / "letter"
    save(path, content(0))
    pair.b.sees("text/letter", content(0))
    whole = {content(number): number for number in range(SAVES + 1)}
    with Watcher(pair.b.at / "text" / "letter") as watcher:
        for number in range(1, SAVES + 1):
            save(path, content(number))
            if number % 10 == 0:  # those between may be folded into one
                pair.a.flush()
                pair.b.sees("text/letter", content(number))
    assert watcher.troubles == []
    assert [data[:40] for data in watcher.seen if data not in whole] == []
    numbers = [whole[data] for data in watcher.seen]
    assert numbers == sorted(numbers) != []


@pytest.fixture
def device(site: Site) -> Device:
    device = site.device("a")
    device.mount()
    return device


def _trash_and_head(site: Site) -> tuple[int, int]:
    """The number of files in the trash; the drive's last sequence number."""

    async def asked(client: ApiClient) -> tuple[int, int]:
        page = await client.trash()
        return len(page.items), (await client.me()).seq

    return site.ask(asked)


def test_a_temporary_file_that_is_gone_before_its_turn_is_never_sent(
    site: Site, device: Device
) -> None:
    letter = device.at / "letter"
    letter.write_bytes(b"draft")
    device.flush()
    before, uploaded = _trash_and_head(site), device.uploaded
    site.server.stop()
    for number in range(5):
        (device.at / "scratch").write_bytes(noise(1_000_000, number))
        (device.at / "scratch").unlink()
        save(letter, noise(1_000_000, 10 + number))
    assert device.status()["journal"]["operations"] == 1
    save(letter, b"final")
    site.server.start()
    device.flush()
    after = _trash_and_head(site)
    assert after == (before[0], before[1] + 1)
    assert device.uploaded - uploaded < 1000
    other = site.device("another")
    other.mount()
    assert sorted(os.listdir(other.at)) == ["letter"]
    assert (other.at / "letter").read_bytes() == b"final"


def test_a_directory_is_renamed_by_one_operation_however_much_is_in_it(
    site: Site, device: Device
) -> None:
    for directory in ("d", "d/e", "d/e/f"):
        (device.at / directory).mkdir()
        for number in range(60):
            (device.at / directory / f"file{number}").write_text(f"{directory} {number}")
    (device.at / "elsewhere").mkdir()
    device.flush()
    before = _trash_and_head(site)[1]
    (device.at / "d").rename(device.at / "elsewhere" / "moved")
    device.flush()
    assert _trash_and_head(site)[1] == before + 1
    other = site.device("another")
    other.mount()
    moved = other.at / "elsewhere" / "moved"
    assert (moved / "e" / "f" / "file59").read_text() == "d/e/f 59"
    assert sum(len(files) for _, _, files in os.walk(moved)) == 180
