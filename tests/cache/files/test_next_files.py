"""Files that are fetched ahead of a sweep, out of the tree."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.files.next_files import NextFiles
from cache.metadata.tree import ROOT
from remote.protocol.errors import Unreachable
from tests.cache.state import State, new_file


class Reader:
    def __init__(self) -> None:
        self.here: set[str] = set()
        self.asked: list[str] = []
        self.fails: Exception | None = None

    def is_here(self, version: str) -> bool:
        return version in self.here

    async def fetch_whole(self, wanted: Sequence[tuple[str, str]]) -> None:
        if self.fails:
            raise self.fails
        self.asked += [version for _, version in wanted]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path)
    yield state
    state.close()


def fill(state: State, many: int, size: int = 100, parent: int = ROOT) -> list[int]:
    told = [
        (f"{number:03}", state.record(rev=1, size=size, version=new_file()))
        for number in range(many)
    ]
    state.list_directory(parent, told, 1)
    return [entry.node.ino for entry in state.tree.entries(parent, 0, many)]


async def sweep(state: State, reader: Reader, inodes: Sequence[int]) -> None:
    ahead = NextFiles(state.tree, reader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ahead.run)
        for ino in inodes:
            ahead.begun(ino)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def versions(state: State, inodes: Sequence[int]) -> list[str | None]:
    return [state.tree.node(ino).version for ino in inodes]


async def test_the_files_behind_are_fetched(state: State) -> None:
    inodes, reader = fill(state, 60), Reader()
    await sweep(state, reader, inodes[:2])
    assert reader.asked == versions(state, inodes[2:18])


async def test_one_file_costs_nothing(state: State) -> None:
    inodes, reader = fill(state, 60), Reader()
    await sweep(state, reader, inodes[:1])
    assert reader.asked == []


async def test_what_is_here_is_no_sweep_and_is_not_fetched(state: State) -> None:
    inodes, reader = fill(state, 60), Reader()
    reader.here = {item for item in versions(state, inodes[:20]) if item}
    await sweep(state, reader, inodes[:10])
    assert reader.asked == []
    reader.here = {item for item in versions(state, inodes[5:8]) if item}
    await sweep(state, reader, inodes[:2])
    assert reader.asked == versions(state, [*inodes[2:5], *inodes[8:18]])


async def test_large_files_are_left_to_themselves(state: State) -> None:
    inodes, reader = fill(state, 20, size=10_000_000), Reader()
    await sweep(state, reader, inodes[:10])
    assert reader.asked == []


async def test_it_goes_on_in_the_directories_that_follow_and_are_listed(state: State) -> None:
    directories = [(name, state.record(rev=1, kind="directory")) for name in "abcd"]
    state.list_directory(ROOT, directories, 1)
    a, b, _, d = [entry.node.ino for entry in state.tree.entries(ROOT, 0, 9)]
    first, second, fourth = (fill(state, 5, parent=ino) for ino in (a, b, d))
    reader = Reader()
    await sweep(state, reader, first[:2])
    assert reader.asked == versions(state, [*first[2:], *second, *fourth])


@pytest.mark.parametrize("error", [Unreachable("nobody answers"), OSError(errno.ENOSPC, "full")])
async def test_a_failure_is_nobodys_and_the_next_sweep_asks_again(
    state: State, error: Exception
) -> None:
    inodes, reader = fill(state, 200), Reader()
    reader.fails = error
    await sweep(state, reader, inodes[:2])
    reader.fails = None
    await sweep(state, reader, inodes[50:53])
    assert reader.asked == versions(state, inodes[53:69])
