"""With `--on-conflict=copy`: what is overtaken is what another device wrote, never what was written
here before, however files hand on their identity before the server hears of it; and it gets a name,
wherever the file's name is by then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cache.metadata.tree import ROOT
from tests.amounts import amount
from tests.model.device import Device
from tests.model.people import WAYS, Person
from tests.model.server import Server

COPY = re.compile(r" \(conflicted copy, \w+ [-0-9]+\)")
RENAMED = [way for way in WAYS if way != "link"]  # GNOME's makes one backup, and then fails: EEXIST


@pytest.fixture
async def one(server: Server, tmp_path: Path, autojump_clock: object) -> Any:
    async for person in opened(server, tmp_path / "one", keep_copies=True):
        yield person


@pytest.fixture
async def two(server: Server, tmp_path: Path, autojump_clock: object) -> Any:
    async for person in opened(server, tmp_path / "two"):
        yield person


def backup(way: str, data: bytes) -> dict[str, object]:
    """The file left beside the saved one; exchanged, the old version is deleted."""
    return {} if way == "exchange" else {"/f~": data}


async def opened(server: Server, directory: Path, *, keep_copies: bool = False) -> Any:
    token = server.token(directory.name)
    device = Device(server, directory, directory.name, token, keep_copies=keep_copies)
    await device.start()
    await device.ensure_listed(ROOT)
    yield Person(device)
    device.close()


async def seen(person: Person) -> dict[str, object]:
    """Paths and bytes; the day and device of a conflicted copy left out."""
    await person.device.pull()
    view = await person.device.everything()
    return {COPY.sub("*", path): found[4] for path, found in view.items()}


async def both_have_it(one: Person, two: Person) -> None:
    await one.save("f", b"0")
    await one.device.flush()
    await seen(two)


@pytest.mark.parametrize("times", [1, 2, 3][:: amount(1, 2)])
@pytest.mark.parametrize("way", RENAMED)
async def test_saving_with_a_backup_again_and_again_overtakes_nobody(
    one: Person, way: str, times: int
) -> None:
    await one.save("f", b"0")
    await one.device.flush()
    await one.save("f", b"1")
    for number in range(times):
        await one.save_with_backup("f", b"%d" % (number + 2), way)
    await one.device.flush()
    assert await seen(one) == {"/f": b"%d" % (times + 1)} | backup(way, b"%d" % times)


async def test_what_was_renamed_over_a_file_is_not_overtaken_by_its_next_version(
    one: Person,
) -> None:
    await one.save("f", b"0")
    await one.save("g", b"1")
    await one.device.flush()
    await one.save("g", b"2")
    await one.rename("g", "f")
    await one.save_by_rename("f", b"3")
    await one.device.flush()
    assert await seen(one) == {"/f": b"3"}


async def test_files_renamed_over_one_after_the_other_overtake_nobody(one: Person) -> None:
    for name in "fgh":
        await one.save(name, name.encode())
    await one.device.flush()
    await one.save("g", b"1")
    await one.rename("g", "f")
    await one.rename("h", "f")
    await one.device.flush()
    assert await seen(one) == {"/f": b"h"}


@pytest.mark.parametrize("times", [1, 2, 3][:: amount(1, 2)])
@pytest.mark.parametrize("way", RENAMED)
async def test_an_overtaken_version_gets_a_name_though_its_file_was_saved_anew_since(
    one: Person, two: Person, way: str, times: int
) -> None:
    """An overtaken version is told when the inode that overtook it has no name any more."""
    await both_have_it(one, two)
    await two.save("f", b"theirs")
    await two.device.flush()
    await one.save("f", b"1")
    for number in range(times):
        await one.save_with_backup("f", b"%d" % (number + 2), way)
    await one.device.flush()
    last = {"/f": b"%d" % (times + 1)} | backup(way, b"%d" % times)
    assert await seen(one) == await seen(two) == last | {"/f*": b"theirs"}


async def test_what_came_between_is_overtaken_by_what_is_renamed_over_the_backup(
    one: Person, two: Person
) -> None:
    """The name is taken back from a version that nobody here has seen: the backup holds that."""
    await both_have_it(one, two)
    await two.save("f", b"theirs")
    await two.device.flush()
    await one.save_with_backup("f", b"1", "create")
    await one.save_with_backup("f", b"2", "create")
    await one.device.flush()
    assert await seen(one) == await seen(two) == {"/f": b"2", "/f~": b"1", "/f~*": b"theirs"}


async def test_a_version_from_between_two_of_ours_is_overtaken(one: Person, two: Person) -> None:
    await both_have_it(one, two)
    await one.save("g", b"1")
    await one.device.flush()
    await one.save("g", b"2")
    await one.rename("g", "f")
    await one.save_by_rename("f", b"3")
    await two.save("f", b"theirs")
    await two.device.flush()
    await one.device.flush()
    assert await seen(one) == await seen(two) == {"/f": b"3", "/f*": b"theirs"}


@pytest.mark.parametrize("is_sent", [False, True])
async def test_a_file_that_comes_back_to_its_name_is_no_successor_of_itself(
    one: Person, two: Person, is_sent: bool
) -> None:
    """It was made a moment ago, and renamed away and back."""
    await both_have_it(one, two)
    tree, edits = one.device.tree, one.device.edits
    file = tree.child(ROOT, "f").file  # type: ignore[union-attr]
    edits.rename(ROOT, "f", ROOT, "away")
    if is_sent:
        await one.device.flush()
    edits.rename(ROOT, "away", ROOT, "f")
    await one.device.flush()
    assert await seen(one) == await seen(two) == {"/f": b"0"}
    for person in (one, two):
        assert person.device.tree.child(ROOT, "f").file == file  # type: ignore[union-attr]
