"""Files wanted ahead of a program: traces of programs, and of others that sweep nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.files.sweep import GAP, MAX_AHEAD, Order, Place, Sweeps, Wanted


class Directory:
    """Files by number: its inode, cookies in the order of `names`."""

    def __init__(self, ino: int, names: Sequence[str]) -> None:
        self.ino = ino
        self.places = [Place(ino * 1000 + number, name) for number, name in enumerate(names, 1)]

    def of(self, name: str) -> Place:
        return next(item for item in self.places if item.name == name)

    def distance(self, order: Order, before: Place, now: Place) -> int | None:
        index = 0 if order == "readdir" else 1
        between = sum(before[index] < item[index] <= now[index] for item in self.places)
        return between if 0 < between <= GAP else None


class Program:
    """Files that are asked for, told back to `Sweeps` as `next_files` does; in one directory, with
    those that follow it."""

    def __init__(self, *directories: Directory) -> None:
        self.sweeps, self.directories = Sweeps(), list(directories)
        self.asked: list[Place] = []

    def open(self, directory: Directory, name: str) -> Wanted | None:
        place = directory.of(name)
        wanted = self.sweeps.opened(
            directory.ino, place, directory.distance, asked=place in self.asked
        )
        self._ask(wanted)
        return wanted

    def look(self, directory: Directory) -> None:
        self._ask(self.sweeps.entered(directory.ino))

    def _ask(self, wanted: Wanted | None) -> None:
        if wanted is None:
            return
        index, passed, found = 0 if wanted.order == "readdir" else 1, list[int](), list[Place]()
        at = next(n for n, d in enumerate(self.directories) if d.ino == wanted.window.directory)
        after, last = wanted.window.place, None
        for directory in self.directories[at:]:
            behind = sorted(directory.places, key=lambda one: one[index])
            behind = [
                one
                for one in behind
                if directory.ino != self.directories[at].ino or one[index] > after[index]
            ]
            if directory.ino != self.directories[at].ino:
                passed.append(directory.ino)
            found += behind[: wanted.most - len(found)]
            if len(found) == wanted.most:
                last = found[-1]
                break
        self.asked += found
        self.sweeps.asked(wanted.window, directory.ino, last, len(found), passed)


def names(many: int) -> list[str]:
    return [f"{number:03}" for number in range(many)]


def test_one_open_and_a_second_want_nothing() -> None:
    one = Directory(2, names(100))
    program = Program(one)
    program.open(one, "010")
    program.open(one, "011")
    assert program.asked == []


@pytest.mark.slow
def test_a_copy_is_ahead_from_the_second_open_on_and_ever_more() -> None:
    one = Directory(2, names(1000))
    program = Program(one)
    ahead = []
    for number, name in enumerate(names(1000)):
        program.open(one, name)
        ahead.append(len(program.asked) + 2 - number)
    assert all(one.places[number] in program.asked for number in range(2, 1000))
    assert len(program.asked) == len(set(program.asked))
    assert max(ahead) <= MAX_AHEAD + 2


def test_what_goes_by_name_is_followed_by_name() -> None:
    """A shell's `*`, in a directory whose files were made in another order."""
    mixed = [f"{number * 37 % 100:03}" for number in range(100)]
    one = Directory(2, mixed)
    program = Program(one)
    for name in sorted(mixed)[:4]:
        program.open(one, name)
    assert [item.name for item in program.asked][:10] == sorted(mixed)[2:12]


def test_it_goes_on_in_the_next_directory_before_that_is_looked_at() -> None:
    directories = [Directory(number, names(20)) for number in range(2, 12)]
    program = Program(*directories)
    waited = []
    for directory in directories:
        program.look(directory)
        for place in directory.places:
            if place not in program.asked:
                waited.append((directory.ino, place.name))
            program.open(directory, place.name)
    assert waited == [(2, "000"), (2, "001")]


def test_another_directory_than_thought_is_followed_at_once() -> None:
    one, other, far = (Directory(number, names(40)) for number in (2, 3, 50))
    program = Program(one, other, far)
    for place in one.places:
        program.open(one, place.name)
    program.look(far)
    assert far.places[0] in program.asked


def test_after_a_while_a_directory_is_looked_at_for_itself() -> None:
    one, other = Directory(2, names(40)), Directory(3, names(40))
    program = Program(one)
    for place in one.places:
        program.open(one, place.name)
    elsewhere = Directory(9, names(100))
    program.directories.append(elsewhere)
    for name in ("090", "010", "060", "030", "080"):
        program.open(elsewhere, name)
    before = len(program.asked)
    program.directories.append(other)
    program.look(other)
    program.open(other, "000")
    assert len(program.asked) == before


@pytest.mark.slow
@given(st.permutations(range(60)))
def test_whoever_jumps_about_costs_little(order: list[int]) -> None:
    """Thumbnails as they scroll into view, a database of small files: three steps forward happen
    by chance, and are paid for with a small window, not with all that is there."""
    one = Directory(2, names(2000))
    program = Program(one)
    for number in order:
        program.open(one, f"{number * 30:03}")  # never within `GAP`
    assert program.asked == []


def test_who_begins_again_begins_a_window_anew() -> None:
    one = Directory(2, names(400))
    program = Program(one)
    for number in range(50):
        program.open(one, f"{number:03}")
    program.asked.clear()
    for number in range(300, 306):
        program.open(one, f"{number:03}")
    assert [item.name for item in program.asked][:2] == ["303", "304"]
