"""The fate of refused operations, where the person goes on working meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import delete, insert, select, update

from cache.metadata.tree import ROOT
from cache.namespace.conflicts import conflicted_name
from cache.sync.encode import message
from remote.protocol import messages
from remote.protocol.errors import Unreachable
from server.drive import purge, trash
from server.metadata.schema import files, idempotency, retired, versions
from tests.amounts import amount
from tests.model.device import Device
from tests.model.server import Server

NAME = "laptop"  # of both: conflicted copies of one day and name get in each other's way


@pytest.fixture
async def one(server: Server, tmp_path: Path, autojump_clock: object) -> Any:
    async for device in opened(server, tmp_path / "one"):
        yield device


@pytest.fixture
async def two(server: Server, tmp_path: Path, autojump_clock: object) -> Any:
    async for device in opened(server, tmp_path / "two"):
        yield device


async def opened(server: Server, directory: Path) -> Any:
    device = Device(server, directory, NAME, server.token(directory.name))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


async def save(device: Device, name: str, data: bytes) -> int:
    node = device.tree.child(ROOT, name)
    node = node or device.edits.create(ROOT, name, "file", 0o644, 0, 0)
    await device.contents.write(node.ino, 0, data)
    return node.ino


def names(device: Device) -> list[str]:
    return sorted(entry.name for entry in device.tree.entries(ROOT, 0, 1000))


def rests(device: Device) -> None:
    """Nothing is to be sent, and there is nothing that never will be."""
    assert list(device.journal) == []
    assert device.contents.dirty_bytes == 0
    assert device.db.all("SELECT id FROM layer") == []


async def both_have_the_same(one: Device, two: Device) -> None:
    await two.pull()
    await one.pull()
    assert await one.everything() == await two.everything()
    rests(one)
    rests(two)


@pytest.mark.parametrize("knows", [True, False])
async def test_a_conflicted_name_that_is_taken_on_the_server_is_not_tried_again(
    one: Device, two: Device, knows: bool
) -> None:
    """The other device calls itself the same, and has come first. Here the name is not in the tree:
    the file has another one by now, and what its creation makes is held back."""
    day = time.strftime("%Y-%m-%d")
    taken = ["a", *(conflicted_name("a", NAME, day, number) for number in (1, 2, 3))]
    for name in taken:
        await save(one, name, b"one")
    await one.flush()
    await save(two, "a", b"two")
    (op,) = two.journal
    with two.db.transaction():
        two.journal.rewrite(op, sent=True)
    two.edits.link(op.ino, ROOT, "b")
    two.edits.unlink(ROOT, "a", directory=False)
    if knows:
        await two.pull()
    await two.flush()
    await both_have_the_same(one, two)
    assert names(two) == sorted([*taken, "b"])


async def test_a_file_deleted_on_both_sides_leaves_its_last_versions_in_the_trash(
    server: Server, one: Device, two: Device
) -> None:
    ino = await written_again(one, two)
    one.edits.unlink(ROOT, "a", directory=False)
    await one.flush()
    assert one.tree.names(ino) == []
    assert b"v2" in server.trash()
    assert names(one) == []
    await both_have_the_same(one, two)


@pytest.mark.parametrize("way", ["link", "rename", "replace"])
async def test_also_by_whatever_names_it_went(
    server: Server, one: Device, two: Device, way: str
) -> None:
    await save(one, "b", b"to be replaced")
    ino = await written_again(one, two)
    if way == "replace":
        one.edits.rename(ROOT, "a", ROOT, "b")
        last = "b"
    elif way == "rename":
        one.edits.rename(ROOT, "a", ROOT, "c")
        last = "c"
    else:
        one.edits.link(ino, ROOT, "d")
        one.edits.unlink(ROOT, "a", directory=False)
        one.edits.rename(ROOT, "d", ROOT, "c")
        last = "c"
    one.edits.unlink(ROOT, last, directory=False)
    await one.flush()
    assert b"v2" in server.trash()
    assert names(one) == ([] if way == "replace" else ["b"])
    await both_have_the_same(one, two)


async def test_also_when_the_server_has_deleted_what_it_replaced(
    server: Server, one: Device, two: Device
) -> None:
    """All in one batch: the removal is of what the server has, and is done."""
    await save(one, "b", b"to be replaced")
    ino = await written_where_it_is_gone(one, two)
    (write,) = one.journal
    await one.uploader.prepare(write)
    with one.db.transaction():
        one.journal.rewrite(write, sent=True)
    one.edits.rename(ROOT, "a", ROOT, "b")
    one.edits.unlink(ROOT, "b", directory=False)
    await one.flush()
    assert names(one) == one.tree.names(ino) == []
    assert b"v2" in server.trash()
    await both_have_the_same(one, two)


async def test_what_was_written_last_into_a_file_that_comes_back_is_sent(
    one: Device, two: Device
) -> None:
    """It lost its name here to another one that was renamed over it."""
    await written_again(one, two)
    one.edits.create(ROOT, "b", "symlink", 0o777, 0, 0, target="t")
    one.edits.rename(ROOT, "b", ROOT, "a")
    await one.flush()
    await both_have_the_same(one, two)
    recovered = [name for name in names(one) if name != "a"]
    assert len(recovered) == 1
    node = one.tree.child(ROOT, recovered[0])
    assert node is not None
    assert await one.read_all(node.ino) == b"v3"


async def test_what_was_written_before_the_file_replaced_another_goes_with_it(
    server: Server, one: Device, two: Device
) -> None:
    await save(one, "b", b"to be replaced")
    ino = await written_again(one, two)
    one.edits.set_xattr(ino, "user.tag", b"value")
    one.edits.rename(ROOT, "a", ROOT, "b")
    await one.flush()
    await both_have_the_same(one, two)
    assert names(one) == ["b"]
    assert await one.read_all(ino) == b"v3"
    assert one.tree.xattrs(ino) == {"user.tag": b"value"}
    assert b"v2" in server.history()


async def written_where_it_is_gone(one: Device, two: Device) -> int:
    """The inode at `one` of "a": it was deleted at `two`, and then "v2" was written into it."""
    ino = await save(one, "a", b"v1")
    await one.flush()
    await two.pull()
    two.edits.unlink(ROOT, "a", directory=False)
    await two.flush()
    await save(one, "a", b"v2")
    return ino


async def written_again(one: Device, two: Device) -> int:
    """The inode at `one` of "a": it was deleted at `two`, and while what had been written into it
    was on its way it was written again."""
    ino = await written_where_it_is_gone(one, two)
    (op,) = one.journal
    assert one.uploader.snapshot(op)
    with one.db.transaction():
        one.journal.rewrite(op, sent=True)
    await save(one, "a", b"v3")
    return ino


async def test_what_one_name_was_taken_from_here_and_the_other_there_comes_back(
    one: Device, two: Device
) -> None:
    """The last name went there, where nobody knew of what was written here."""
    ino = await save(one, "a", b"old")
    one.edits.link(ino, ROOT, "b")
    await one.sync()
    await two.pull()
    await save(one, "a", b"new")
    one.edits.unlink(ROOT, "a", directory=False)
    for name in ("a", "b"):
        two.edits.unlink(ROOT, name, directory=False)
    await save(two, "b", b"another")
    await two.sync()
    await one.sync()
    await both_have_the_same(one, two)
    assert sorted(entry.node.size for entry in one.tree.entries(ROOT, 0, 10)) == [3, 7]
    one.collector.collect()
    assert one.db.all("SELECT ino FROM node WHERE NOT live") == []


async def test_an_empty_file_is_sent_again_when_its_next_version_is_frozen_already(
    one: Device, two: Device
) -> None:
    """The answer to its creation was lost with the process."""
    node = one.edits.create(ROOT, "a", "file", 0o644, 0, 0)
    (create,) = one.journal
    assert one.uploader.snapshot(create)
    with one.db.transaction():
        one.journal.rewrite(create, sent=True)
    await save(one, "a", b"bytes")
    write = list(one.journal)[-1]
    assert one.uploader.snapshot(write)
    with trio.fail_after(60):
        await one.sync()
    assert one.tree.node(node.ino).size == 5
    await both_have_the_same(one, two)


async def test_nothing_has_arrived_while_nobody_answers(
    one: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file has nothing to upload."""

    async def unreachable(request: messages.ApplyRequest) -> messages.ApplyReply:
        raise Unreachable("no network")

    seen = one.reached
    one.edits.create(ROOT, "empty", "file", 0o644, 0, 0)
    with monkeypatch.context() as offline, trio.move_on_after(5):
        offline.setattr(one.port, "apply", unreachable)
        await one.flush()
    assert seen == []
    await one.flush()
    assert seen == [True]
    one.replayer.lost_touch()
    assert not one.replayer.reachable
    await save(one, "a", b"bytes")
    await one.flush()
    assert seen == [True, True]


# --- what the owner has shared or published meanwhile -------------------------------------------


@pytest.fixture
async def guest(tmp_path: Path, autojump_clock: object) -> Any:
    """Ben's device, with anna's `d` and the directory `in` in it, in which there is `b`; `a` is in
    `d`. While he is away she shares `in` with cleo, who he does not know of."""
    server = Server(tmp_path / "three", ("anna", "ben", "cleo"))
    anna = Device(server, tmp_path / "anna", "anna's", server.token("anna's"))
    ben = Device(server, tmp_path / "ben", "ben's", server.token("ben's", "ben"))
    for device in (anna, ben):
        await device.start()
        await device.ensure_listed(ROOT)
    d = anna.edits.create(ROOT, "d", "directory", 0o755, 0, 0)
    inner = anna.edits.create(d.ino, "in", "directory", 0o755, 0, 0)
    plain = anna.edits.create(d.ino, "plain", "directory", 0o755, 0, 0)
    for place, name in ((d, "a"), (inner, "b"), (plain, "c")):
        made = anna.edits.create(place.ino, name, "file", 0o644, 0, 0)
        await anna.contents.write(made.ino, 0, name.encode())
    await anna.flush()
    server.share(server.token("x"), d.file, "ben", "editor")
    await ben.sync()
    before = await ben.everything()
    server.share(server.token("y"), inner.file, "cleo", "viewer")
    yield ben, before
    anna.close()
    ben.close()
    server.close()


@pytest.mark.parametrize("way", ["rename", "link"])
async def test_a_name_that_others_would_reach_is_kept_until_it_is_taken_back(
    guest: tuple[Device, Any], way: str
) -> None:
    ben, before = guest
    there, _ = await ben.place("Shared/anna/d/in/x")
    here, _ = await ben.place("Shared/anna/d/a")
    if way == "rename":
        ben.edits.rename(here, "a", there, "x")
    else:
        ben.edits.link((await ben.resolve("Shared/anna/d/a")).ino, there, "x")
    await ben.sync()
    (op,) = ben.journal
    assert str(op.refused).startswith("other_reach: ")
    assert await ben.read_all((await ben.resolve("Shared/anna/d/in/x")).ino) == b"a"
    if way == "rename":
        ben.edits.rename(there, "x", here, "a")
    else:
        ben.edits.unlink(there, "x", directory=False)
    await ben.sync()
    rests(ben)
    assert await ben.everything() == before


@pytest.mark.parametrize("way", ["replace", "exchange", "rename a directory"])
async def test_what_nobody_could_decide_is_as_the_owner_has_it(
    guest: tuple[Device, Any], way: str
) -> None:
    ben, before = guest
    there, _ = await ben.place("Shared/anna/d/in/b")
    here, _ = await ben.place("Shared/anna/d/a")
    if way == "replace":
        ben.edits.rename(here, "a", there, "b")
    elif way == "exchange":
        ben.edits.exchange(here, "a", there, "b")
    else:
        ben.edits.rename(here, "plain", there, "plain")
    await ben.sync()
    rests(ben)
    assert await ben.everything() == before


# --- ids that are taken -------------------------------------------------------------------------


def retire(server: Server, files: list[str]) -> None:
    """Let files of these ids have been deleted for good."""
    with server.db.write() as conn:
        conn.execute(insert(retired), [{"id": file} for file in files])


async def test_what_is_made_under_an_id_that_is_taken_goes_on_under_another(
    server: Server, one: Device, two: Device
) -> None:
    """A directory, what is in it, what replaced something there, and another name of that."""
    folder = one.edits.create(ROOT, "d", "directory", 0o755, 0, 0)
    for name in ("x", "y"):
        node = one.edits.create(folder.ino, name, "file", 0o644, 0, 0)
        await one.contents.write(node.ino, 0, name.encode())
    with one.db.transaction():
        for op in list(one.journal):  # so that nothing is folded away
            one.journal.rewrite(op, sent=True)
    one.edits.rename(folder.ino, "x", folder.ino, "y")
    one.edits.link(one.tree.child(folder.ino, "y").ino, ROOT, "z")
    taken = [op.file for op in one.journal if op.kind == "create"]
    assert len(taken) == 3
    retire(server, taken)
    await one.flush()
    assert names(one) == ["d", "z"]
    with server.db.read() as conn:
        assert not set(conn.execute(select(files.c.id)).scalars()) & set(taken)
    await both_have_the_same(one, two)
    assert b"x" in (await two.everything())["/d/y"]


async def test_a_creation_whose_answer_was_forgotten_is_not_sent_for_ever(
    server: Server, one: Device, two: Device
) -> None:
    """It was carried out long ago, and deleted for good since: what is here is a new file."""
    await save(one, "a", b"one")
    (create,) = one.journal
    await one.uploader.prepare(create)
    with one.db.transaction():
        one.journal.rewrite(create, sent=True)
    said = message(create, one.tree, one.uploader.ready[create.key])
    await one.port.apply(messages.ApplyRequest(ops=[messages.Keyed(key=create.key, op=said)]))
    await two.pull()
    two.edits.unlink(ROOT, "a", directory=False)
    await two.flush()
    with server.db.write() as conn:
        conn.execute(delete(idempotency))
        purge.drop_files(conn, None, [create.file], 1)
    await one.flush()
    await both_have_the_same(one, two)
    assert names(two) == ["a"]


async def test_bytes_whose_version_has_an_id_that_is_taken_go_as_another_version(
    server: Server, one: Device, two: Device
) -> None:
    ino = await save(one, "a", b"one")
    (create,) = one.journal
    await one.uploader.prepare(create)
    with server.db.write() as conn:
        theirs = {"status": "uploaded", "file": "f" * 32}
        conn.execute(update(versions).where(versions.c.id == create.version).values(**theirs))
    taken = create.version
    await one.flush()
    assert one.tree.node(ino).version not in (None, taken)
    await both_have_the_same(one, two)


@pytest.mark.parametrize("way", ["create", "rename"])
@pytest.mark.parametrize("crossed", ["moved", "taken"])
async def test_a_name_that_is_not_to_be_taken_back_is_that_of_a_new_file(
    server: Server, one: Device, two: Device, way: str, crossed: str
) -> None:
    """Another device has moved the backup, or has made another file of that name meanwhile."""
    await save(one, "a", b"old")
    await one.flush()
    await two.pull()
    one.edits.rename(ROOT, "a", ROOT, "a~")
    await one.flush()
    await two.pull()
    if way == "create":
        await save(one, "a", b"new bytes")
    else:
        await save(one, "tmp", b"new bytes")
        one.edits.rename(ROOT, "tmp", ROOT, "a")
    assert any(op.kind == "retake" for op in one.journal)
    if crossed == "moved":
        two.edits.rename(ROOT, "a~", ROOT, "z")
    else:
        await save(two, "a", b"theirs")
    await two.flush()
    await one.flush()
    await both_have_the_same(one, two)
    found = {one.tree.child(ROOT, name).ino: name for name in names(one)}  # type: ignore[union-attr]  # listed
    held = {name: await one.read_all(ino) for ino, name in found.items()}
    if crossed == "moved":
        assert held == {"a": b"new bytes", "z": b"old"}
    else:
        assert held.pop("a~") == b"old"
        assert held.pop("a") == b"theirs"
        assert list(held.values()) == [b"new bytes"]
    assert server.complaints() == []


@pytest.mark.parametrize("known", ["nothing", "the new file", "the exchange"])
async def test_an_exchange_and_a_deletion_make_a_version(
    server: Server, one: Device, two: Device, known: str
) -> None:
    """The file of the name has what was saved, wherever sending stood. Nothing is in the trash: all
    that was deleted is in its history."""
    await save(one, "a", b"old")
    await one.flush()
    file = file_at(one, "a")
    await save(one, "tmp", b"new bytes")
    if known == "the new file":
        await one.flush()
    one.edits.exchange(ROOT, "tmp", ROOT, "a")
    if known == "the exchange":
        await one.flush()
        await two.pull()
    one.edits.unlink(ROOT, "tmp", directory=False)
    await one.flush()
    await both_have_the_same(one, two)
    assert names(two) == ["a"]
    assert file_at(one, "a") == file_at(two, "a") == file
    assert server.complaints() == []
    assert history(server, file) == [b"old", b"new bytes"]
    assert listed_in_trash(server) == []


@pytest.mark.parametrize("crossed", ["moved", "written", "deleted", "moved the new", "both"])
@pytest.mark.parametrize("known", ["nothing", "the new file", "the exchange"][:: amount(1, 3)])
async def test_an_exchange_and_a_deletion_cross_what_another_device_does(
    server: Server, one: Device, two: Device, known: str, crossed: str
) -> None:
    """They agree in the end, and what was saved is in some file's history."""
    await save(one, "a", b"old")
    await one.flush()
    await save(one, "tmp", b"new bytes")
    if known == "the new file":
        await one.flush()
    if known == "the exchange":
        one.edits.exchange(ROOT, "tmp", ROOT, "a")
        await one.flush()
    await two.pull()
    if crossed in ("moved", "both"):
        two.edits.rename(ROOT, "a", ROOT, "z")
    elif crossed == "written":
        await save(two, "a", b"theirs")
    elif crossed == "deleted":
        two.edits.unlink(ROOT, "a", directory=False)
    if crossed in ("moved the new", "both") and known != "nothing":
        two.edits.rename(ROOT, "tmp", ROOT, "y")
    await two.flush()
    if known != "the exchange":
        one.edits.exchange(ROOT, "tmp", ROOT, "a")
    one.edits.unlink(ROOT, "tmp", directory=False)
    await one.flush()
    await both_have_the_same(one, two)
    assert server.complaints() == []
    assert {b"old", b"new bytes"} <= server.history()


def file_at(device: Device, name: str) -> str:
    node = device.tree.child(ROOT, name)
    assert node is not None
    return node.file


def history(server: Server, file: str) -> list[bytes]:
    """The contents of its versions, the oldest first."""
    query = select(versions.c.id).where(versions.c.file == file).order_by(versions.c.created_ns)
    with server.db.read() as conn:
        ids = list(conn.execute(query).scalars())
    held = server.versions()
    return [held[id] for id in ids]


def listed_in_trash(server: Server) -> list[str]:
    token = server.token("whoever asks")
    with server.db.read() as conn:
        found = trash.page(conn, server.caller(conn, token), 0, None, None, 100)
    return [item.name for item in found.items]


@pytest.mark.parametrize("then", ["nothing", "deleted", "replaced", "left again"])
@pytest.mark.parametrize("way", ["backup", "handed on"])
async def test_what_was_written_before_a_name_was_filled_again_is_kept(
    server: Server, one: Device, two: Device, way: str, then: str
) -> None:
    """The fate of the new file is not the end of what the old one holds elsewhere."""
    await save(one, "a", b"first")
    await save(one, "other", b"other")
    await one.flush()
    await save(one, "a", b"second")
    kept = "a~" if way == "backup" else "other"
    one.edits.rename(ROOT, "a", ROOT, kept)
    await save(one, "tmp", b"third")
    one.edits.rename(ROOT, "tmp", ROOT, "a")
    if then == "deleted":
        one.edits.unlink(ROOT, "a", directory=False)
    elif then == "replaced":
        await save(one, "tmp", b"fourth")
        one.edits.rename(ROOT, "tmp", ROOT, "a")
    elif then == "left again":
        one.edits.rename(ROOT, "a", ROOT, "b")
        await save(one, "a", b"fourth")
    here = await one.everything()
    await one.flush()
    await both_have_the_same(one, two)
    found = {name: node for name in names(one) if (node := one.tree.child(ROOT, name)) is not None}
    held = {name: await two.read_all((await two.resolve(name)).ino) for name in found}
    assert held[kept] == b"second"
    assert held.get("a") == {"nothing": b"third", "deleted": None}.get(then, b"fourth")
    assert held.keys() == {path.strip("/") for path in here}
    assert server.complaints() == []


async def test_what_was_written_before_and_after_a_name_was_filled_again_outlives_a_removal(
    server: Server, one: Device, two: Device
) -> None:
    """Another device has removed the file: the backup and what took its place are new files."""
    await save(one, "a", b"first")
    await one.flush()
    await two.pull()
    await save(one, "a", b"second")
    one.edits.rename(ROOT, "a", ROOT, "a~")
    await save(one, "a", b"third")
    two.edits.unlink(ROOT, "a", directory=False)
    await two.flush()
    await one.flush()
    await both_have_the_same(one, two)
    assert await two.read_all((await two.resolve("a")).ino) == b"third"
    assert await two.read_all((await two.resolve("a~")).ino) == b"second"
    assert list(one.journal) == []
