"""Folders that another device removed while files were put into them: made anew around the files.

Each test is two or three devices of one drive (`tests.model`) with the real server's transactions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from cache.metadata.tree import ROOT
from server.metadata.schema import files as files_table
from tests.cache.sync.steps import COPY, files, mkdir, remove, rename, save
from tests.model.device import Device
from tests.model.server import Server

OLD, NEW = b"old", b"new"


@pytest.fixture
async def one(server: Server, tmp_path: Path, autojump_clock: object) -> AsyncIterator[Device]:
    async for device in opened(server, tmp_path / "one"):
        yield device


@pytest.fixture
async def two(server: Server, tmp_path: Path, autojump_clock: object) -> AsyncIterator[Device]:
    async for device in opened(server, tmp_path / "two"):
        yield device


@pytest.fixture
async def three(server: Server, tmp_path: Path, autojump_clock: object) -> AsyncIterator[Device]:
    async for device in opened(server, tmp_path / "three"):
        yield device


async def opened(server: Server, directory: Path) -> AsyncIterator[Device]:
    device = Device(server, directory, directory.name, server.token(directory.name))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


async def project(one: Device, *others: Device) -> None:
    """A folder with one in it and a file in each, that every device has looked into."""
    await mkdir(one, "project")
    await mkdir(one, "project/deep")
    await save(one, "project/old", OLD)
    await save(one, "project/deep/old", OLD)
    await one.flush()
    for other in others:
        await files(other)


async def remove_project(device: Device) -> None:
    for path in ("project/deep/old", "project/deep", "project/old", "project"):
        await remove(device, path)
    await device.flush()


def in_trash(server: Server, name: str) -> int:
    """The number of files of that name in the trash."""
    with server.db.read() as conn:
        query = select(files_table.c.id).where(files_table.c.trashed_name == name)
        return len(conn.execute(query.where(files_table.c.links == 0)).all())


async def agree(*devices: Device) -> dict[str, bytes | None]:
    """The view that all of them show, when nothing waits any more."""
    seen = [await files(device) for device in devices]
    full = [await device.everything() for device in devices]
    assert all(item == full[0] for item in full)
    assert all(not len(device.journal) for device in devices)
    assert not any(COPY.search(path) for path in full[0])
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("knows", ["before", "after", "never", "reset"])
async def test_files_that_were_put_into_it_have_it_around_them(
    server: Server, one: Device, two: Device, knows: str
) -> None:
    await project(one, two)
    for number in range(30):
        await save(two, f"project/{number}", b"%d" % number)
    await mkdir(two, "project/deep/er")
    await save(two, "project/deep/er/new", NEW)
    if knows == "after":
        for op in [op for op in two.journal if op.has_content]:
            await two.uploader.prepare(op)
    await remove_project(one)
    if knows == "reset":
        server.forget_feed()
    if knows != "never":
        await two.pull()
    await two.flush()
    expected: dict[str, bytes | None] = {f"/project/{n}": b"%d" % n for n in range(30)}
    expected |= {"/project": None, "/project/deep": None, "/project/deep/er": None}
    assert await agree(two, one) == expected | {"/project/deep/er/new": NEW}
    assert in_trash(server, "project") == in_trash(server, "deep") == 1
    assert in_trash(server, "old") == 2


async def test_a_file_that_was_changed_in_it_comes_back_in_it(
    server: Server, one: Device, two: Device
) -> None:
    await project(one, two)
    await save(two, "project/deep/old", NEW)
    await remove_project(one)
    await two.pull()
    assert [name for name in await files(two) if "old" in name] == ["/project/deep/old"]
    await two.flush()
    expected = {"/project": None, "/project/deep": None, "/project/deep/old": NEW}
    assert await agree(two, one) == expected
    assert OLD in server.trash()


async def test_while_something_waits_in_it_it_stays_and_takes_more(
    one: Device, two: Device
) -> None:
    await project(one, two)
    await save(two, "project/deep/first", NEW)
    await remove_project(one)
    await two.pull()
    two.edits.set_attributes((await two.resolve("project")).ino, {"mode": 0o700})
    await save(two, "project/second", NEW)
    await two.flush()
    assert (await agree(two, one)).keys() == {
        "/project", "/project/deep", "/project/deep/first", "/project/second"
    }  # fmt: skip
    assert (await one.resolve("project")).mode == 0o700


async def test_when_nothing_is_to_be_sent_from_it_any_more_it_goes(
    one: Device, two: Device
) -> None:
    await project(one, two)
    await save(two, "project/deep/new", NEW)
    await remove_project(one)
    await two.pull()
    await remove(two, "project/deep/new")
    await two.flush()
    assert await agree(two, one) == {}


@pytest.mark.slow
@pytest.mark.parametrize("knows", [True, False])
async def test_one_of_that_name_that_was_made_meanwhile_takes_them(
    one: Device, two: Device, knows: bool
) -> None:
    await project(one, two)
    await save(two, "project/deep/new", NEW)
    await remove_project(one)
    await mkdir(one, "project")
    await save(one, "project/theirs", OLD)
    await one.flush()
    if knows:
        await two.pull()
    await two.flush()
    assert await agree(two, one) == {
        "/project": None,
        "/project/deep": None,
        "/project/deep/new": NEW,
        "/project/theirs": OLD,
    }


@pytest.mark.slow
async def test_a_file_that_took_its_name_keeps_it(one: Device, two: Device) -> None:
    await project(one, two)
    await save(two, "project/new", NEW)
    await remove_project(one)
    await save(one, "project", OLD)
    await one.flush()
    await two.flush()
    assert await files(one) == await files(two) == {
        "/project": OLD, "/project*": None, "/project*/new": NEW
    }  # fmt: skip


@pytest.mark.slow
async def test_two_devices_at_once_make_one(one: Device, two: Device, three: Device) -> None:
    await project(one, two, three)
    await save(two, "project/deep/two", b"2")
    await save(three, "project/deep/three", b"3")
    await save(three, "project/old", NEW)
    await remove_project(one)
    await three.pull()
    await two.flush()
    await three.flush()
    assert await agree(one, two, three) == {
        "/project": None,
        "/project/deep": None,
        "/project/deep/two": b"2",
        "/project/deep/three": b"3",
        "/project/old": NEW,
    }


async def test_what_has_moved_out_of_it_is_where_it_moved(one: Device, two: Device) -> None:
    await project(one, two)
    await save(two, "project/new", NEW)
    await save(two, "project/old", b"changed")
    await rename(one, "project/old", "moved")
    await remove(one, "project/deep/old")
    await remove(one, "project/deep")
    await remove(one, "project")
    await one.flush()
    await two.flush()
    assert await agree(two, one) == {"/moved": b"changed", "/project": None, "/project/new": NEW}


@pytest.mark.slow
@pytest.mark.parametrize("knows", [True, False])
async def test_what_was_moved_or_linked_into_it_has_it_around_it(
    one: Device, two: Device, knows: bool
) -> None:
    await project(one, two)
    for path in ("moved", "linked"):
        await save(one, path, OLD)
    await mkdir(one, "folder")
    await save(one, "folder/in", OLD)
    await one.flush()
    await files(two)
    await rename(two, "moved", "project/moved")
    await rename(two, "folder", "project/deep/folder")
    two.edits.link((await two.resolve("linked")).ino, *await two.place("project/linked"))
    await remove_project(one)
    if knows:
        await two.pull()
    await two.flush()
    assert (await agree(two, one)).keys() == {
        "/linked", "/project", "/project/linked", "/project/moved", "/project/deep",
        "/project/deep/folder", "/project/deep/folder/in",
    }  # fmt: skip


async def test_what_is_gone_itself_needs_no_folder(one: Device, two: Device) -> None:
    await project(one, two)
    await save(one, "moved", OLD)
    await one.flush()
    await files(two)
    await rename(two, "moved", "project/moved")
    await remove_project(one)
    await remove(one, "moved")
    await one.flush()
    await two.flush()
    assert await agree(two, one) == {}


async def test_one_that_was_moved_elsewhere_takes_them_there(one: Device, two: Device) -> None:
    await project(one, two)
    await save(two, "project/new", NEW)
    await mkdir(one, "archive")
    await rename(one, "project", "archive/project")
    await one.flush()
    await two.pull()
    await two.flush()
    assert (await agree(two, one))["/archive/project/new"] == NEW


async def test_its_name_is_that_which_it_has_here(one: Device, two: Device) -> None:
    await project(one, two)
    await rename(two, "project", "renamed")
    await save(two, "renamed/new", NEW)
    await remove_project(one)
    await two.pull()
    await two.flush()
    assert await agree(two, one) == {"/renamed": None, "/renamed/new": NEW}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
async def test_a_process_that_dies_in_between_makes_it_once(
    server: Server, one: Device, two: Device, lost: int
) -> None:
    await project(one, two)
    for number in range(5):
        await save(two, f"project/deep/{number}", NEW)
    await remove_project(one)
    first = next(iter(two.journal))
    assert await two.resolver._rebuilder.rebuild(first)
    assert [op.seq for op in two.journal][:2] == [-2, -1]
    two.crash()
    assert len(two.journal) == 7
    two.network.lose_replies = lost
    await two.flush()
    assert len(await agree(two, one)) == 7
    assert in_trash(server, "deep") == 1


@pytest.mark.slow
async def test_a_long_journal_is_read_with_what_was_put_to_its_front(
    one: Device, two: Device
) -> None:
    await project(one, two)
    for number in range(250):
        await mkdir(two, f"project/{number}")
    await remove_project(one)
    assert await two.resolver._rebuilder.rebuild(next(iter(two.journal)))
    two.crash()
    assert len(two.journal) == 251
    await two.journal.load()
    assert [op.body.name for op in two.journal][:2] == ["project", "0"]
    await two.flush()
    assert len(await agree(two, one)) == 251


async def test_nothing_is_left_of_one_in_which_a_file_was_renamed(one: Device, two: Device) -> None:
    """The rename is refused, because the file is gone as well; its new name is known here only."""
    await project(one, two)
    await remove_project(one)
    await rename(two, "project/old", "project/renamed")
    await rename(two, "project/deep/old", "project/deep/renamed")
    await two.flush()
    assert await agree(two, one) == {}
    for device in (one, two):
        assert [row[0] for row in device.db.all("SELECT ino FROM node")] == [ROOT]
        assert device.db.all("SELECT * FROM entry") == []
