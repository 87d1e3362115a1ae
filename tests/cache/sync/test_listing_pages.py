"""A directory that changes between the pages of its listing.

What holds: pages are in the order of names, and a page's cursor is the last name on it, so a name
that is there all the time is on exactly one page, whatever comes and goes around it. What came or
went between two pages may be told or not; the sequence number of the first page is that of the
listing, so the feed tells of it afterwards. What it has told since the question is applied over the
answer.
A name keeps its position (cookie) from then on as long as it is there.

The server's pages have three entries here. Each change is made at every await of the listing, with
and without the feed telling of it there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import count, pairwise
from pathlib import Path

import pytest

from cache.metadata.tree import ROOT
from remote.protocol.messages import ChildrenPage
from tests.amounts import amount
from tests.model.device import Device
from tests.model.server import Server

NAMES = [f"f{number}" for number in range(8)]  # pages end at f2 and f5
UNTOUCHED = {"f0", "f3", "f4", "f6"}


@pytest.fixture
async def writer(server: Server, tmp_path: Path) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "writer", "writer", server.token("writer"))
    await device.start()
    await device.ensure_listed(ROOT)
    for name in NAMES:
        device.edits.create(ROOT, name, "file", 0o644, 0, 0)
    await device.flush()
    yield device
    device.close()


@pytest.fixture
async def reader(writer: Device, server: Server, tmp_path: Path) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "reader", "reader", server.token("reader"))
    await device.start()
    yield device
    device.close()


def create(*names: str) -> Callable[[Device], None]:
    def change(device: Device) -> None:
        for name in names:
            device.edits.create(ROOT, name, "file", 0o644, 0, 0)

    return change


def delete(*names: str) -> Callable[[Device], None]:
    def change(device: Device) -> None:
        for name in names:
            device.edits.unlink(ROOT, name, directory=False)

    return change


def rename(old: str, *new: str) -> Callable[[Device], None]:
    """To each of the new names in turn."""

    def change(device: Device) -> None:
        for before, after in pairwise([old, *new]):
            device.edits.rename(ROOT, before, ROOT, after)

    return change


CHANGES: dict[str, list[Callable[[Device], None]]] = {
    "create on every page": [create("a", "f2b", "f5b", "z")],
    "delete what a cursor names": [delete("f2", "f5")],
    "delete the first and the last": [delete("f1", "f7")],
    "rename to a later page": [rename("f1", "z")],
    "rename to an earlier page": [rename("f7", "a")],
    "rename away": [rename("f1", "z"), rename("z", "f1")],
    "rename away and back at once": [rename("f7", "a", "f7")],
    "replace by one of a later page": [rename("f7", "f2")],
    "replace by one of an earlier page": [rename("f1", "f5")],
    "delete, and make anew": [delete("f5"), create("f5")],
}


def positions(device: Device) -> dict[str, int]:
    return {item.name: item.cookie for item in device.tree.entries(ROOT, 0, 1 << 30)}


def files(device: Device) -> dict[str, str]:
    return {item.name: item.node.file for item in device.tree.entries(ROOT, 0, 1 << 30)}


@pytest.mark.parametrize("is_told", [False, True], ids=["later", "at once"])
@pytest.mark.parametrize("at", range(0, 6, amount(1, 6)))
@pytest.mark.parametrize("what", CHANGES)
async def test_what_stays_is_listed_once_and_the_rest_is_told_by_the_feed(
    writer: Device, reader: Device, what: str, at: int, is_told: bool
) -> None:
    ask, awaits, changes = reader.port.children, count(), iter(CHANGES[what])

    async def change() -> None:
        """One change at the await number `at`, another one at each that follows."""
        if next(awaits) >= at and (step := next(changes, None)) is not None:
            step(writer)
            await writer.flush()
            if is_told:
                await reader.pull()

    async def changing(file: str, cursor: str | None = None) -> ChildrenPage:
        await change()
        page = await ask(file, cursor)
        await change()
        return page

    reader.port.children = changing  # type: ignore[method-assign]
    await reader.ensure_listed(ROOT)
    first = positions(reader)
    assert first.keys() >= UNTOUCHED
    assert len(set(first.values())) == len(first)
    for step in changes:
        step(writer)
        await writer.flush()
    await reader.pull()
    then = positions(reader)
    assert then.keys() == positions(writer).keys()
    assert {name: then[name] for name in UNTOUCHED} == {name: first[name] for name in UNTOUCHED}
    assert files(reader) == files(writer)


async def test_a_name_that_comes_back_is_new_to_who_began_to_read_before(
    writer: Device, reader: Device
) -> None:
    """It was not there when they began: where a directory is read up to is its last position."""
    rename("f3", "away")(writer)
    await writer.flush()
    await reader.ensure_listed(ROOT)
    last = reader.tree.last_cookie(ROOT)
    rename("away", "f3")(writer)
    await writer.flush()
    await reader.pull()
    read = [entry.name for entry in reader.tree.listing(ROOT, 0, last)]
    assert sorted(read) == sorted(set(NAMES) - {"f3"})
    assert sorted(positions(reader)) == NAMES
