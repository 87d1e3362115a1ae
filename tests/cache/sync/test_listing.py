"""Directories are listed when somebody looks, and ahead of who walks."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cache.metadata.damage import DamagedState
from cache.metadata.tree import ROOT
from cache.namespace import underway
from cache.sync.listing import _next_size
from remote.protocol import messages
from tests.cache.state import State
from tests.model.device import Device
from tests.model.server import Server


@pytest.fixture
async def writer(server: Server, tmp_path: Path) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "writer", "writer", server.token("writer"))
    await device.start()
    yield device
    device.close()


@pytest.fixture
async def reader(server: Server, tmp_path: Path) -> AsyncIterator[Device]:
    device = Device(server, tmp_path / "reader", "reader", server.token("reader"))
    await device.start()
    yield device
    device.close()


async def make(device: Device, *paths: str) -> None:
    for path in paths:
        parent, name = await device.place(path)
        device.edits.create(parent, name, "directory", 0o755, 0, 0)
    await device.flush()


def requests(device: Device) -> list[list[str]]:
    """The directories of each request ahead that the device makes from now on."""
    made: list[list[str]] = []
    plain = device.port.list_several

    async def note(directories: Sequence[str]) -> messages.ListReply:
        made.append(list(directories))
        return await plain(directories)

    device.port.list_several = note  # type: ignore[method-assign]
    return made


def unlisted(device: Device) -> set[str]:
    sql = "SELECT ino FROM node WHERE kind = 'directory' AND listed IS NULL"
    return {device.tree.path(row[0]) for row in device.db.all(sql)}


async def test_what_is_below_comes_in_one_request_a_level(writer: Device, reader: Device) -> None:
    await make(writer, "a", "b", "a/c", "a/d", "b/e")
    made = requests(reader)
    await reader.listing.list_directory(ROOT)
    await reader.listing.list_ahead(ROOT)
    assert [len(item) for item in made] == [2, 3]
    assert unlisted(reader) == set()


async def test_who_comes_to_what_is_asked_for_waits_for_that(
    writer: Device, reader: Device
) -> None:
    await make(writer, "a", "a/b")
    await reader.listing.list_directory(ROOT)
    asked: list[str] = []
    plain = reader.port.children

    async def note(file: str, cursor: str | None = None) -> messages.ChildrenPage:
        asked.append(file)
        return await plain(file, cursor)

    reader.port.children = note  # type: ignore[method-assign]
    answer, ready = reader.port.list_several, trio.Event()

    async def late(directories: Sequence[str]) -> messages.ListReply:
        await ready.wait()
        return await answer(directories)

    reader.port.list_several = late  # type: ignore[method-assign]
    node = reader.tree.child(ROOT, "a")
    assert node is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.listing.list_ahead, ROOT)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader.listing.ensure_listed, node.ino)
        await trio.testing.wait_all_tasks_blocked()
        ready.set()
    assert asked == []
    assert reader.tree.child(node.ino, "b") is not None


async def test_without_an_answer_each_is_listed_when_somebody_looks(
    writer: Device, reader: Device
) -> None:
    await make(writer, "a", "a/b")
    await reader.listing.list_directory(ROOT)
    reader.network.up = False
    await reader.listing.list_ahead(ROOT)
    reader.network.up = True
    assert unlisted(reader) == {"a"}
    assert (await reader.resolve("a/b")).is_directory


async def test_a_directory_without_room_is_asked_for_once(writer: Device, reader: Device) -> None:
    """The model's server answers with five entries at most."""
    await make(writer, "large", "small", *(f"large/{number}" for number in range(6)))
    await reader.listing.list_directory(ROOT)
    made = requests(reader)
    await reader.listing.list_ahead(ROOT)
    await reader.listing.list_ahead(ROOT)
    assert sum("large" in map(reader.tree.path, places(reader, item)) for item in made) == 1
    assert unlisted(reader) == {"large"}


def places(device: Device, files: Sequence[str]) -> list[int]:
    return [node.ino for file in files if (node := device.tree.live(file)) is not None]


async def test_what_the_feed_tells_while_pieces_are_merged_is_not_lost(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is in the answer, in a piece that is merged after it was deleted."""
    await make(writer, *(f"{number}" for number in range(6)))
    ask, take = reader.port.children, reader.listing_merge.list_some
    news: list[messages.ChangesPage] = []

    async def delete_behind(file: str, cursor: str | None = None) -> messages.ChildrenPage:
        page = await ask(file, cursor)
        if page.next is None and not news:
            writer.edits.unlink(ROOT, "5", directory=True)
            await writer.flush()
            news.append(await reader.port.changes(reader.merge.cursor()))
        return page

    def hear_between(ino: int, children: Sequence[messages.Child], as_of: int) -> None:
        take(ino, children, as_of)
        if reader.merge.seq(reader.tree.own_drive) < news[0].seq:
            reader.merge.apply(news[0].changes, news[0].cursor, news[0].seq, None)

    monkeypatch.setattr(reader.port, "children", delete_behind)
    monkeypatch.setattr(reader.listing_merge, "list_some", hear_between)
    await reader.listing.list_directory(ROOT)
    assert [entry.name for entry in reader.tree.entries(ROOT, 0, 100)] == list("01234")
    assert reader.tree.live(news[0].changes[-1].entries[0].file or "") is None


async def test_who_writes_steadily_keeps_no_listing_from_its_end(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two pages something is made in the directory, and told by the feed."""
    await make(writer, *(f"{number}" for number in range(9)))
    ask, asked = reader.port.children, 0

    async def write_meanwhile(file: str, cursor: str | None = None) -> messages.ChildrenPage:
        nonlocal asked
        asked += 1
        page = await ask(file, cursor)
        await make(writer, f"new {asked}")
        await reader.pull()
        return page

    monkeypatch.setattr(reader.port, "children", write_meanwhile)
    await reader.listing.list_directory(ROOT)
    names = {entry.name for entry in reader.tree.entries(ROOT, 0, 100)}
    assert names == {*map(str, range(9)), *(f"new {number}" for number in range(1, asked + 1))}
    assert asked <= 9


async def test_of_more_than_is_kept_meanwhile_it_is_asked_again(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underway, "MAX_MEANWHILE", 3)
    await make(writer, "a", "b")
    ask, asked = reader.port.children, 0

    async def write_meanwhile(file: str, cursor: str | None = None) -> messages.ChildrenPage:
        nonlocal asked
        asked += 1
        page = await ask(file, cursor)
        if asked == 1:
            await make(writer, "c", "d", "e")
            await reader.pull()
        return page

    monkeypatch.setattr(reader.port, "children", write_meanwhile)
    await reader.listing.list_directory(ROOT)
    assert {entry.name for entry in reader.tree.entries(ROOT, 0, 100)} == set("abcde")
    assert asked > 1


async def test_a_directory_that_changes_its_drive_while_it_is_listed_is_listed_again(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the answer is one of the drive that it was in."""
    await make(writer, "a", "b", "c")
    ask, asked = reader.port.children, 0

    async def move(file: str, cursor: str | None = None) -> messages.ChildrenPage:
        nonlocal asked
        asked += 1
        page = await ask(file, cursor)
        if asked == 1:
            with reader.db.transaction():
                reader.tree.update(ROOT, drive="f" * 32)
        return page

    monkeypatch.setattr(reader.port, "children", move)
    await reader.listing.list_directory(ROOT)
    assert asked == 2
    assert reader.tree.node(ROOT).listed is not None


async def test_what_was_asked_before_a_reset_is_not_merged_after_it(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(writer, "a", "b", "c")
    take, taken, resets = reader.listing_merge.list_some, 0, 0

    def reset_first(ino: int, children: Sequence[messages.Child], as_of: int) -> None:
        nonlocal taken, resets
        taken += 1
        take(ino, children, as_of)
        if taken == 1:
            resets = len(reader.merge.underway)
            reader.merge.underway.forget()

    monkeypatch.setattr(reader.listing_merge, "list_some", reset_first)
    await reader.listing.list_directory(ROOT)
    assert resets == 1
    assert taken == 1 + 2  # the first piece once, all pieces after that
    assert {entry.name for entry in reader.tree.entries(ROOT, 0, 100)} == set("abc")


async def disbelieve(device: Device, ino: int) -> None:
    with device.db.transaction():
        device.tree.update(ino, listed=None)


async def test_a_directory_in_doubt_is_listed_while_nobody_waits(
    writer: Device, reader: Device
) -> None:
    await make(writer, "a", "a/b")
    node = await reader.resolve("a/b")
    parent = reader.tree.parent(node.ino)
    writer.edits.unlink(writer.tree.live(reader.tree.node(parent).file).ino, "b", directory=True)  # type: ignore[union-attr]  # it is there
    await writer.flush()
    await disbelieve(reader, parent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.listing.run)
        assert reader.tree.child(parent, "b") is not None
        reader.listing.doubt(parent)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert reader.tree.is_listed(parent)
    assert reader.tree.child(parent, "b") is None


async def test_what_is_in_doubt_and_cannot_be_asked_for_is_doubted_again(
    writer: Device, reader: Device
) -> None:
    await make(writer, "a", "a/b")
    parent = (await reader.resolve("a")).ino
    await reader.ensure_listed(parent)
    await disbelieve(reader, parent)
    reader.network.up = False
    reader.listing.doubt(parent)
    await reader.listing.list_again()
    assert not reader.tree.is_listed(parent)
    reader.network.up = True
    await reader.listing.list_again()  # nobody has looked since
    assert not reader.tree.is_listed(parent)
    reader.listing.doubt(parent)
    await reader.listing.list_again()
    assert reader.tree.is_listed(parent)


@pytest.mark.parametrize(
    ("size", "seconds", "next_size"),
    [(500, 0.01, 500), (500, 0.1, 50), (50, 0.005, 100), (20, 1.0, 20), (100, 0.0, 500)],
)
def test_pieces_take_about_as_long_whatever_is_in_them(
    size: int, seconds: float, next_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.sync.listing.PIECE", 500)  # the model's are short
    assert _next_size(size, seconds) == next_size


@pytest.mark.slow
@given(st.data())
def test_entries_put_in_at_once_are_as_those_merged_one_by_one(data: st.DataObject) -> None:
    """Whatever was known before: edits here that were not sent, files known by other names."""
    with tempfile.TemporaryDirectory() as at_once, tempfile.TemporaryDirectory() as one_by_one:
        states = [State(Path(at_once)), State(Path(one_by_one))]
        kinds = st.sampled_from(["file", "directory", "symlink"])
        known = data.draw(st.lists(st.tuples(st.sampled_from("abcd"), kinds), unique_by=first))
        made = data.draw(st.sets(st.sampled_from("abxy")))
        records = [states[0].record(rev=1, kind=kind, xattrs={"user.a": b"1"}) for _, kind in known]
        names = st.lists(st.sampled_from("abcdef"), unique=True)
        told = [
            (name, data.draw(st.sampled_from([*records, states[0].record(rev=2)])))
            for name in data.draw(names)
        ]
        told = list({record.id: (name, record) for name, record in told}.values())
        for state, whole in zip(states, (True, False), strict=True):
            for (name, _), record in zip(known, records, strict=True):
                state.remote(1, [record], [state.entry(name, record.id, 1)])
            for name in sorted(made - {name for name, _ in known}):
                state.make(name, "directory")
            if not whole:
                state.listing_merge._split = lambda _ino, children, _as_of: ([], list(children))  # type: ignore[method-assign]
            state.list_directory(ROOT, told, 2)
        assert seen(states[0]) == seen(states[1])
        for state in states:
            state.close()


def first(pair: tuple[str, str]) -> str:
    return pair[0]


def seen(state: State) -> dict[str, object]:
    """Nodes and names in the top. Of files made here the id differs, of all the inode and the
    cookie."""
    found: dict[str, object] = {}
    for entry in state.tree.entries(ROOT, 0, 100):
        node = entry.node
        id = node.file if node.rev else "made here"
        rest = (node.rev, node.live, node.subdirs, state.tree.entry_rev(ROOT, entry.name))
        found[entry.name] = (id, node.kind, node.mode, rest, state.tree.xattrs(node.ino))
    found["."] = (state.tree.node(ROOT).subdirs, state.tree.node(ROOT).listed)
    return found


async def test_a_full_disk_does_not_end_listing_ahead(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(writer, "a", "a/b")
    await reader.listing.list_directory(ROOT)

    def full(ino: int, children: Sequence[messages.Child], as_of: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.listing.run)
        with monkeypatch.context() as patched:
            patched.setattr(reader.listing_merge, "list_some", full)
            reader.listing.visit(ROOT)
            await trio.testing.wait_all_tasks_blocked()
            assert unlisted(reader) == {"a"}
            assert not reader.listing._underway
            assert not reader.merge.underway
        reader.listing.visit(ROOT)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert unlisted(reader) == set()


async def test_damage_that_is_found_while_listing_ahead_is_told(
    writer: Device, reader: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(writer, "a", "a/b")
    await reader.listing.list_directory(ROOT)

    def damaged(ino: int, children: Sequence[messages.Child], as_of: int) -> None:
        raise DamagedState("it is not what was written")

    monkeypatch.setattr(reader.listing_merge, "list_some", damaged)
    with pytest.raises(DamagedState):
        await reader.listing.list_ahead(ROOT)
    assert not reader.listing._underway
