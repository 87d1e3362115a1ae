"""Reading directories while they change: what stays is returned exactly once, from any position."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import harness
from tests.system.conftest import Pair, watched
from tests.system.harness import Trouble, wait_until

ENTRIES = int(os.environ.get("NEARLINE_READDIR_ENTRIES", "1000"))
PIECE_BYTES = 1024
EVERY = max(7, ENTRIES // 200)  # how many entries are read between two changes
PATIENCE_SECONDS = 60 + ENTRIES / 50
SLOWEST = 10  # entries a second


class Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(Dirent)
_libc.telldir.restype = ctypes.c_long
for _call in (_libc.readdir, _libc.telldir, _libc.rewinddir, _libc.closedir):
    _call.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Stream:
    """A directory stream of the C library; iterating reads what is left."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream, os.strerror(ctypes.get_errno())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._stream)

    def __iter__(self) -> Iterator[str]:
        while entry := _libc.readdir(self._stream):
            if entry.contents.name not in (b".", b".."):
                yield os.fsdecode(entry.contents.name)

    def tell(self) -> int:
        position: int = _libc.telldir(self._stream)
        return position

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """That of all tests of real mounts, with time for so many entries."""
    with watched(harness.TEST_SECONDS + ENTRIES / SLOWEST):
        yield


@pytest.fixture(scope="module")
def stable(pair: Pair) -> tuple[Path, set[str]]:
    """A directory on device a, with names that nobody touches, and some in between that will go."""
    place = pair.a.at / "many"
    place.mkdir()
    names = {f"stays-{number:06}" for number in range(ENTRIES)}
    for number, name in enumerate(sorted(names)):
        os.mknod(place / name, 0o100644)
        if number % EVERY == 0:
            os.mknod(place / f"goes-{number}", 0o100644)
    pair.a.flush(PATIENCE_SECONDS)
    return place, names


def read_while(path: Path, change: Callable[[int], None]) -> Counter[str]:
    """The number of times that each name was read, with a change every few entries."""
    seen: Counter[str] = Counter()
    for number, name in enumerate(in_small_pieces(path)):
        seen[name] += 1
        if number % EVERY == 0 and number < 2 * ENTRIES:
            change(number)
    return seen


def in_small_pieces(path: Path) -> Iterator[str]:
    """The names in a directory, a few at a time: the C library would read thousands ahead."""
    buffer = ctypes.create_string_buffer(PIECE_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while (size := _libc.getdents64(descriptor, buffer, PIECE_BYTES)) > 0:
            at = 0
            while at < size:
                length = int.from_bytes(buffer[at + 16 : at + 18], sys.byteorder)
                name = os.fsdecode(buffer[at + 19 : at + length].split(b"\0", 1)[0])
                at += length
                if name not in (".", ".."):
                    yield name
        assert size == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


def coming_and_going(place: Path) -> Callable[[int], None]:
    """Create, remove, rename within, and replace, in turn; and remove what is to go."""
    going = sorted(path for path in place.iterdir() if path.name.startswith("goes-"))

    def change(number: int) -> None:
        if going:
            going.pop().unlink()
        new = place / f"comes-{number}"
        os.mknod(new, 0o100644)
        if number % 3 == 0:
            new.unlink()
        elif number % 3 == 1:
            new.rename(place / f"renamed-{number}")
        elif number > EVERY * 3:
            os.replace(new, place / "replaced")

    return change


def wait_until_it_lists(place: Path, names: set[str]) -> None:
    """When it does not, how it differs is what tells the cause."""

    def differs() -> tuple[Counter[str], Counter[str]]:
        found, wanted = Counter(os.listdir(place)), Counter(names)
        return found - wanted, wanted - found

    with contextlib.suppress(Trouble):
        wait_until(lambda: not any(differs()), "the names", PATIENCE_SECONDS)
    assert differs() == (Counter(), Counter())


def passing(place: Path) -> None:
    """Take away what came."""
    for name in os.listdir(place):
        if not name.startswith("stays-"):
            (place / name).unlink()


def test_what_stays_is_read_exactly_once_while_others_come_and_go(
    stable: tuple[Path, set[str]],
) -> None:
    place, names = stable
    seen = read_while(place, coming_and_going(place))
    assert {name for name in seen if name.startswith("stays-")} == names
    assert max(seen[name] for name in names) == 1
    passing(place)
    assert Counter(os.listdir(place)) == Counter(names)


def test_another_process_changes_it_as_fast_as_it_can(stable: tuple[Path, set[str]]) -> None:
    place, names = stable
    stop, change = threading.Event(), coming_and_going(place)

    def churn() -> None:
        number = 0
        while not stop.is_set():
            change(number)
            number += 1

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(3):
            seen = Counter(os.listdir(place))
            assert Counter({name: seen[name] for name in names}) == Counter(names)
    finally:
        stop.set()
        churning.join()
    passing(place)


def test_a_position_stays_what_it_was(stable: tuple[Path, set[str]]) -> None:
    """telldir, seekdir and rewinddir, with entries before and behind the position gone and new."""
    place, names = stable
    for number in range(20):
        os.mknod(place / f"before-{number}", 0o100644)
    with Stream(place) as stream:
        start = stream.tell()
        listing = iter(stream)
        first = [next(listing) for _ in range(ENTRIES // 2)]
        middle = stream.tell()
        rest = list(listing)
        end = stream.tell()
        for number in range(20):
            (place / f"before-{number}").unlink()
        (place / first[3]).rename(place / "away")
        os.mknod(place / "new", 0o100644)
        stream.seek(middle)
        gone = {f"before-{number}" for number in range(20)}
        assert list(stream) == [name for name in rest if name not in gone]
        stream.seek(end)
        assert list(stream) == []
        (place / "away").rename(place / first[3])
        (place / "new").unlink()
        for again in (stream.rewind, lambda: stream.seek(start)):
            again()
            assert Counter(stream) == Counter(names)


def test_the_same_on_a_device_that_lists_it_for_the_first_time(
    pair: Pair, stable: tuple[Path, set[str]]
) -> None:
    """The listing comes from the server, while device a makes and removes files in it. What other
    tests did to what stays is there before: a name that comes back meanwhile is a new one."""
    place, names = stable
    pair.a.flush(PATIENCE_SECONDS)
    pair.b.sees(place.name)
    there = pair.b.at / place.name
    seen = read_while(there, coming_and_going(place))
    assert Counter({name: seen[name] for name in names}) == Counter(names)
    passing(place)
    pair.a.flush(PATIENCE_SECONDS)
    wait_until_it_lists(there, names)
    seen = read_while(there, coming_and_going(there))
    assert Counter({name: seen[name] for name in names}) == Counter(names)
    passing(there)
    pair.b.flush(PATIENCE_SECONDS)
    wait_until_it_lists(place, names)
    with os.scandir(there) as entries:
        inodes = {entry.name: entry.inode() for entry in entries}
    some = sorted(names)[:: max(1, ENTRIES // 50)]
    assert {name: (there / name).stat().st_ino for name in some} == {n: inodes[n] for n in some}


def test_a_removed_directory_that_is_still_open_is_empty(pair: Pair) -> None:
    place = pair.a.at / "removed"
    place.mkdir()
    with Stream(place) as stream:
        place.rmdir()
        assert list(stream) == []


@pytest.fixture(params=["mounted", "local"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory; what is asked of the local one is what any file system promises."""
    if request.param == "local":
        return tmp_path
    pair: Pair = request.getfixturevalue("pair")
    place = pair.a.at / f"fresh-{os.urandom(4).hex()}"
    place.mkdir()
    return place


def test_renaming_and_making_what_is_read_comes_to_an_end(fresh: Path) -> None:
    for number in range(5):
        (fresh / f"f{number}").touch()
    with os.scandir(fresh) as entries:
        for count, entry in enumerate(entries):
            assert count < 20, "it goes on and on"
            os.rename(entry.path, f"{entry.path}-renamed")
            (fresh / f"new-{count}").touch()
    names = set(os.listdir(fresh))
    assert {f"f{number}-renamed" for number in range(5)} <= names


def test_every_position_leads_to_its_entry(fresh: Path) -> None:
    """In any order, also when who sought one reads on to the end."""
    names = {f"f{number:03}" for number in range(300)}
    for name in names:
        (fresh / name).touch()
    with Stream(fresh) as stream:
        found, listing = [], iter(stream)
        begins = [stream.tell()]
        for name in listing:
            found.append(name)
            begins.append(stream.tell())
        assert Counter(found) == Counter(names)
        order = random.Random(7).sample(range(1, len(found)), len(found) - 1)
        for at in order:
            stream.seek(begins[at])
            assert next(iter(stream)) == found[at]
        for at in order[:10]:
            stream.seek(begins[at])
            assert list(stream) == found[at:]
        stream.seek(begins[-1])
        assert list(stream) == []
        stream.rewind()
        assert list(stream) == found


def test_what_comes_meanwhile_is_seen_after_a_rewind(pair: Pair) -> None:
    """In pieces smaller than what the C library reads ahead, so that the end is asked for."""
    place = pair.a.at / "ends"
    place.mkdir()
    for number in range(100):
        (place / f"f{number}").touch()
    seen = []
    for name in in_small_pieces(place):
        assert len(seen) < 200, "it goes on and on"
        seen.append(name)
        if name.startswith("f"):
            (place / name).rename(place / f"x{name}")
        (place / f"new-{len(seen)}").touch()
    assert Counter(name.lstrip("x") for name in seen) == {f"f{n}": 1 for n in range(100)}
    with Stream(place) as stream:
        assert len(list(stream)) == 200
        (place / "later").touch()
        stream.rewind()
        assert len(list(stream)) == 201


def test_a_name_that_is_replaced_meanwhile_is_read_once(pair: Pair) -> None:
    """As editors do: the name is always there, and must not be missed because it is new."""
    place = pair.a.at / "replaced"
    place.mkdir()
    names = {f"f{number:02}" for number in range(60)}
    for name in sorted(names):
        (place / name).touch()
    seen: Counter[str] = Counter()
    for name in in_small_pieces(place):
        seen[name] += 1
        if len(seen) in (1, 30):
            for item in names:
                (place / "new").write_bytes(b"x")
                os.replace(place / "new", place / item)
    assert seen == Counter(names)
