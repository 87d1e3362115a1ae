"""Events for programs that watch files and folders by inotify(7), as editors and builders do: of
changes on their own device, and of those that come from another one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.conftest import Pair
from tests.system.harness import wait_until

EVENTS = {
    0x2: "modify",
    0x4: "attributes",
    0x8: "close",
    0x40: "from",
    0x80: "to",
    0x100: "create",
    0x200: "delete",
    0x400: "deleted itself",
    0x800: "moved itself",
}
WATCHED = sum(EVENTS)
_libc = ctypes.CDLL(None, use_errno=True)


class Watcher:
    def __init__(self) -> None:
        self._events = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._events >= 0, os.strerror(ctypes.get_errno())
        self._names: dict[int, list[str]] = {}  # of what is watched, by its number

    def close(self) -> None:
        os.close(self._events)

    def watch(self, path: Path) -> None:
        number = _libc.inotify_add_watch(self._events, os.fsencode(path), WATCHED)
        assert number >= 0, os.strerror(ctypes.get_errno())
        self._names.setdefault(number, []).append(path.name)

    def heard(self) -> Iterator[tuple[str, str, str]]:
        """(what is watched, event, name in it) of all that happened since the last time."""
        try:
            told = os.read(self._events, 1 << 16)
        except BlockingIOError:
            return
        while told:
            number, mask, _, length = struct.unpack_from("iIII", told)
            name = told[16 : 16 + length].rstrip(b"\0").decode()
            event = EVENTS.get(mask & WATCHED)
            if event is not None:
                yield ", ".join(sorted(self._names[number])), event, name
            told = told[16 + length :]


@contextmanager
def watching(*paths: Path) -> Iterator[Watcher]:
    watcher = Watcher()
    try:
        for path in paths:
            watcher.watch(path)
        yield watcher
    finally:
        watcher.close()


def test_a_program_that_watches_is_told_what_happens_on_its_device(pair: Pair) -> None:
    """The kernel tells, whatever the file system."""
    place = pair.a.at / "watched"
    place.mkdir()
    with watching(place) as watcher:
        (place / "draft").write_text("text")
        (place / "draft").rename(place / "final")
        (place / "final").chmod(0o600)
        (place / "final").unlink()
        assert list(watcher.heard()) == [
            ("watched", "create", "draft"),
            ("watched", "modify", "draft"),
            ("watched", "close", "draft"),
            ("watched", "from", "draft"),
            ("watched", "to", "final"),
            ("watched", "attributes", "final"),
            ("watched", "delete", "final"),
        ]


def known_to_the_kernel(pair: Pair, folder: str) -> Path:
    """The folder on device b, when b's kernel has been told everything of it, and knows each name:
    it is told in order, so what comes last shows that the rest has come."""
    barrier = pair.a.at / folder / "barrier"
    for content in (b"first", b"second"):
        barrier.write_bytes(content)
        pair.a.flush()
        pair.b.sees(f"{folder}/barrier", content)
    place = pair.b.at / folder
    for path in place.rglob("*"):
        path.lstat()
    return place


@dataclass
class Elsewhere:
    """Device a, whose changes are to be heard on device b."""

    pair: Pair
    watcher: Watcher

    def does(self, change: Callable[[], object], *wanted: str) -> None:
        """Those of the files `wanted` hear that they are gone, and nobody anything else."""
        change()
        self.pair.a.flush()
        self.hears(*wanted)

    def hears(self, *wanted: str) -> None:
        heard: list[tuple[str, str, str]] = []

        def all_heard() -> bool:
            heard.extend(self.watcher.heard())
            return set(wanted) <= {name for name, _, _ in heard}

        wait_until(all_heard, f"{wanted} are gone")
        assert sorted(heard) == [(name, "deleted itself", "") for name in sorted(wanted)]


@contextmanager
def heard_on_b(pair: Pair, folder: str) -> Iterator[Elsewhere]:
    """The folder, and all that is in it, is watched on device b."""
    place = known_to_the_kernel(pair, folder)
    with watching(place, *place.rglob("*")) as watcher:
        yield Elsewhere(pair, watcher)


def test_who_watches_a_file_is_told_when_another_device_replaces_or_deletes_it(pair: Pair) -> None:
    mine = pair.a.at / "taken"
    (mine / "full").mkdir(parents=True)
    (mine / "empty").mkdir()
    for name in ("saved", "new", "replaced", "deleted", "full/inside"):
        (mine / name).write_text(name)
    with heard_on_b(pair, "taken") as elsewhere:
        elsewhere.does(lambda: (mine / "saved").write_text("anew"), "saved")
        elsewhere.does(lambda: (mine / "new").replace(mine / "replaced"), "new", "replaced")
        elsewhere.does((mine / "deleted").unlink, "deleted")
        elsewhere.does((mine / "empty").rmdir, "empty")
        elsewhere.does(lambda: shutil.rmtree(mine / "full"), "full", "inside")


def test_a_file_that_has_another_name_or_is_open_is_not_gone_yet(pair: Pair) -> None:
    mine = pair.a.at / "staying"
    mine.mkdir()
    for name in ("linked", "read"):
        (mine / name).write_text(name)
    os.link(mine / "linked", mine / "still")
    with heard_on_b(pair, "staying") as elsewhere:
        elsewhere.does((mine / "linked").unlink)
        pair.b.misses("staying/linked")
        elsewhere.does((mine / "still").unlink, "linked, still")
        with (pair.b.at / "staying" / "read").open() as reading:
            elsewhere.does((mine / "read").unlink)
            pair.b.misses("staying/read")
            assert reading.read() == "read"
            assert os.fstat(reading.fileno()).st_nlink == 0
            elsewhere.hears()  # as on a local disk: when it is closed
        elsewhere.hears("read")


def test_what_else_another_device_does_is_not_heard(pair: Pair) -> None:
    mine = pair.a.at / "quiet"
    mine.mkdir()
    for name in ("mode", "moved"):
        (mine / name).write_text(name)
    with heard_on_b(pair, "quiet") as elsewhere:
        theirs = pair.b.at / "quiet"
        elsewhere.does(lambda: (mine / "made").write_text("made"))
        pair.b.sees("quiet/made", b"made")
        elsewhere.does(lambda: (mine / "mode").chmod(0o600))
        wait_until(lambda: stat.S_IMODE((theirs / "mode").stat().st_mode) == 0o600, "the mode")
        elsewhere.does(lambda: (mine / "moved").rename(mine / "new name"))
        pair.b.misses("quiet/moved")
        pair.b.sees("quiet/new name", b"moved")
        elsewhere.does((mine / "new name").unlink, "moved")  # nor does who watches the folder
