"""The journal meets the real server's transactions: lost answers, crashes, and every conflict.

Each test is two devices of one drive (`tests.model`), without HTTP; time is trio's mock clock, so
no backoff is waited out.
"""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from cache.metadata.tree import ROOT
from remote.protocol import messages
from remote.protocol.errors import (
    NameTooLong,
    TooLarge,
)
from tests.cache.sync.steps import files, mkdir, remove, rename, save
from tests.model.device import Device
from tests.model.server import Server

# --- what must not stop it ------------------------------------------------------------------------


async def test_a_place_that_only_the_server_knows_to_be_too_deep_loses_nothing(
    one: Device, two: Device
) -> None:
    """It stays, is shown, and goes on once it is moved to where it fits."""
    await mkdir(one, "deep")
    await save(one, "deep/a", b"1")
    await save(one, "beside", b"2")

    async def refuse(request: messages.ApplyRequest) -> messages.ApplyReply:
        if any(getattr(keyed.op, "name", "") == "deep" for keyed in request.ops):
            rest = [keyed for keyed in request.ops if getattr(keyed.op, "name", "") == "beside"]
            done = (await plain(messages.ApplyRequest(ops=rest))).results if rest else []
            results = [
                done[0] if keyed in rest else NameTooLong(message="too deep")
                for keyed in request.ops
            ]
            return messages.ApplyReply(results=results)
        return await plain(request)

    plain, one.port.apply = one.port.apply, refuse  # type: ignore[method-assign]
    await one.flush()
    assert [op.refused for op in one.journal if op.refused] == ["name_too_long: too deep"]
    assert (await files(one)).keys() == {"/deep", "/deep/a", "/beside"}
    assert await files(two) == {"/beside": b"2"}
    await rename(one, "deep", "shallow")
    await one.flush()
    assert list(one.journal) == []
    assert await files(two) == {"/beside": b"2", "/shallow": None, "/shallow/a": b"1"}


async def test_a_refresh_that_fails_does_not_end_it(one: Device, two: Device) -> None:
    """Both rename one file; the loser lists its directories anew, and cannot."""
    await save(one, "a", b"1")
    await one.flush()
    await files(two)
    await rename(one, "a", "x")
    await one.flush()
    await rename(two, "a", "y")
    plain = two.port.children

    async def fail(*args: Any) -> messages.ChildrenPage:
        two.network.up = False
        return await plain(*args)

    two.port.children = fail  # type: ignore[method-assign]
    await two.flush()
    assert list(two.journal) == []
    two.network.up, two.port.children = True, plain  # type: ignore[method-assign]
    assert await files(two) == {"/x": b"1"}


async def test_flush_ends_when_the_rest_is_refused_for_good(one: Device, two: Device) -> None:
    await mkdir(one, "d")
    await save(one, "d/x", b"1")
    await save(one, "free", b"2")
    plain = one.port.apply

    async def refuse(request: messages.ApplyRequest) -> messages.ApplyReply:
        refused = [keyed for keyed in request.ops if getattr(keyed.op, "name", "") == "d"]
        rest = [keyed for keyed in request.ops if keyed not in refused]
        done = iter((await plain(messages.ApplyRequest(ops=rest))).results if rest else [])
        problem = TooLarge(message="full")
        return messages.ApplyReply(
            results=[problem if k in refused else next(done) for k in request.ops]
        )

    one.port.apply = refuse  # type: ignore[method-assign]
    await one.flush()
    assert [(op.kind, op.refused) for op in one.journal] == [
        ("create", "too_large: full"),
        ("create", None),
    ]
    assert await files(two) == {"/free": b"2"}
    assert (await files(one))["/d/x"] == b"1"


# --- conflicts ------------------------------------------------------------------------------------


async def test_one_name_for_two_new_files(one: Device, two: Device) -> None:
    await save(one, "a.txt", b"1")
    await save(two, "a.txt", b"2")
    await one.flush()
    await two.flush()
    await two.pull()
    assert await files(one) == await files(two) == {"/a.txt": b"1", "/a*.txt": b"2"}


async def test_what_follows_a_conflicted_creation_follows_its_name(
    one: Device, two: Device
) -> None:
    """Created, linked and renamed offline; the first name is taken by then."""
    await save(one, "a", b"1")
    await one.flush()
    ino = await save(two, "a", b"2")
    two.edits.link(ino, ROOT, "l")
    await rename(two, "a", "b")
    await two.flush()
    assert list(two.journal) == []
    assert await files(one) == await files(two) == {"/a": b"1", "/b": b"2", "/l": b"2"}


async def test_one_name_for_two_new_directories_is_one_directory(one: Device, two: Device) -> None:
    """With what is in both, however deep, in the batch that learns of it."""
    await mkdir(one, "d")
    await save(one, "d/one", b"1")
    await mkdir(two, "d")
    await mkdir(two, "d/e")
    await save(two, "d/two", b"2")
    await save(two, "d/e/deep", b"3")
    two.edits.set_attributes((await two.resolve("d")).ino, {"mode": 0o700})
    await one.flush()
    await two.flush()
    assert [op.refused for op in two.journal] == []
    expected = {"/d": None, "/d/e": None, "/d/e/deep": b"3", "/d/one": b"1", "/d/two": b"2"}
    assert await files(one) == await files(two) == expected
    assert (await one.everything()) == (await two.everything())


async def test_saved_into_a_directory_that_was_deleted_elsewhere(one: Device, two: Device) -> None:
    await mkdir(one, "d")
    await one.flush()
    await files(two)
    await mkdir(two, "d/e")
    await save(two, "d/e/deep", b"2")
    await save(two, "d/a", b"1")
    await remove(one, "d")
    await one.flush()
    await two.pull()
    await two.flush()
    assert list(two.journal) == []
    expected = {"/d": None, "/d/a": b"1", "/d/e": None, "/d/e/deep": b"2"}
    assert await files(one) == await files(two) == expected


async def test_an_edit_of_what_was_deleted_elsewhere_brings_it_back(
    one: Device, two: Device, server: Server
) -> None:
    await save(one, "a", b"1")
    await one.flush()
    await files(two)
    await save(two, "a", b"precious")
    await remove(one, "a")
    await one.flush()
    await two.pull()
    await two.flush()
    assert await files(one) == await files(two) == {"/a": b"precious"}
    assert b"precious" in server.history()
    assert two.contents.dirty_bytes == 0


async def test_the_last_writer_wins_and_both_are_kept(
    one: Device, two: Device, server: Server
) -> None:
    await save(one, "a", b"0")
    await one.flush()
    await files(two)
    await save(one, "a", b"1")
    await save(two, "a", b"2")
    await two.flush()
    await one.flush()
    assert await files(one) == await files(two) == {"/a": b"1"}
    assert {b"0", b"1", b"2"} <= server.history()


async def test_the_overtaken_version_gets_a_name_if_asked_to(one: Device, two: Device) -> None:
    one.resolver._keep_copies = True
    await save(one, "a.txt", b"0")
    await one.flush()
    await files(two)
    await save(one, "a.txt", b"1")
    await save(two, "a.txt", b"2")
    await two.flush()
    await one.flush()
    assert await files(one) == await files(two) == {"/a.txt": b"1", "/a*.txt": b"2"}


async def test_saving_by_rename_again_and_again_overtakes_nobody(one: Device) -> None:
    """Also while the version before is on its way."""
    one.resolver._keep_copies = True
    await save(one, "a", b"0")
    await one.flush()
    one.network.lose_replies = 1
    for number in range(1, 6):
        await save(one, "tmp", b"%d" % number)
        await rename(one, "tmp", "a")
        if number == 3:
            with trio.move_on_after(0.01):
                await one.flush()
    await one.flush()
    assert await files(one) == {"/a": b"5"}


async def test_a_version_that_a_replace_overtook_gets_a_name_if_asked_to(
    one: Device, two: Device
) -> None:
    one.resolver._keep_copies = True
    await save(one, "a.txt", b"0")
    await save(one, "b", b"1")
    await one.flush()
    await files(two)
    await rename(one, "b", "a.txt")
    await save(two, "a.txt", b"2")
    await two.flush()
    await one.flush()
    assert await files(one) == await files(two) == {"/a.txt": b"1", "/a*.txt": b"2"}


async def test_a_copy_that_is_in_conflict_again_has_one_mark(one: Device, two: Device) -> None:
    """Both kept the same loser, under the same name."""
    for device in (one, two):
        await save(device, "a (conflicted copy, one 2026-01-02).txt", device.name.encode())
    await one.flush()
    await two.flush()
    await one.pull()
    found = await one.everything()
    await two.pull()
    assert found == await two.everything()
    assert sorted(seen[4] for seen in found.values()) == [b"one", b"two"]  # type: ignore[type-var]  # [4] is bytes
    assert [name.count("conflicted") for name in found] == [1, 1]


async def test_an_edit_whose_name_went_to_another_file_comes_back_beside_it(
    one: Device, two: Device
) -> None:
    await mkdir(one, "d")
    await save(one, "d/a.txt", b"1")
    await one.flush()
    await files(two)
    await save(two, "d/a.txt", b"precious")
    await remove(one, "d/a.txt")
    await save(one, "d/a.txt", b"other")
    await one.flush()
    await two.pull()
    await two.flush()
    expected = {"/d": None, "/d/a.txt": b"other", "/d/a*.txt": b"precious"}
    assert await files(one) == await files(two) == expected


async def test_what_both_made_keeps_the_attributes_of_both(one: Device, two: Device) -> None:
    """A directory; those that went with its creation, and those that were set while that was
    under way."""
    one_made, two_made = await mkdir(one, "d"), await mkdir(two, "d")
    one.edits.set_xattr(one_made, "user.one", b"1")
    two.edits.set_xattr(two_made, "user.two", b"2")
    await one.flush()
    with two.db.transaction():
        for op in two.journal:
            two.journal.rewrite(op, sent=True)
    two.edits.set_attributes(two_made, {"mode": 0o700})
    two.edits.set_xattr(two_made, "user.late", b"3")
    await two.flush()
    assert [op.refused for op in two.journal] == []
    await files(one)
    node = await one.resolve("d")
    assert node.mode == 0o700
    assert one.tree.xattrs(node.ino) == {"user.one": b"1", "user.two": b"2", "user.late": b"3"}
    assert await one.everything() == await two.everything()


async def test_what_both_made_goes_where_one_of_them_moved_it(one: Device, two: Device) -> None:
    await mkdir(one, "d")
    await save(one, "d/one", b"1")
    made = await mkdir(two, "d")
    await save(two, "d/two", b"2")
    await one.flush()
    with two.db.transaction():
        for op in two.journal.of_file(two.tree.node(made).file):
            two.journal.rewrite(op, sent=True)
    await rename(two, "d", "e")
    await two.flush()
    await two.pull()
    expected = {"/e": None, "/e/one": b"1", "/e/two": b"2"}
    assert await files(one) == await files(two) == expected


async def test_attributes_set_through_a_handle_that_a_remote_version_passed_by(
    one: Device, two: Device
) -> None:
    await save(one, "a", b"1")
    await one.flush()
    await files(two)
    ino = (await two.resolve("a")).ino
    two.handles.add(ino)
    await save(one, "a", b"2")
    await one.flush()
    await two.pull()
    two.edits.set_attributes(ino, {"mode": 0o600})
    two.edits.set_xattr(ino, "user.x", b"1")
    await two.flush()
    await files(one)
    node = await one.resolve("a")
    assert (node.mode, one.tree.xattrs(node.ino)) == (0o600, {"user.x": b"1"})
    assert await files(one) == await files(two) == {"/a": b"2"}


async def test_a_replace_that_lost_believes_the_server_again(one: Device, two: Device) -> None:
    """The name was given to another file meanwhile: both files' contents stay."""
    for name in ("a", "b"):
        await save(one, name, name.encode())
    await one.flush()
    await files(two)
    await rename(two, "b", "a")
    await remove(one, "a")
    await save(one, "a", b"other")
    await one.flush()
    await two.flush()
    assert await files(one) == await files(two) == {"/a": b"other", "/b": b"b"}


async def test_a_directory_filled_elsewhere_is_not_removed(one: Device, two: Device) -> None:
    await mkdir(one, "d")
    await one.flush()
    await files(two)
    await save(one, "d/a", b"1")
    await one.flush()
    await remove(two, "d")
    await two.flush()
    assert await files(two) == {"/d": None, "/d/a": b"1"}


async def test_written_through_a_handle_that_a_remote_version_passed_by(
    one: Device, two: Device, server: Server
) -> None:
    await save(one, "a", b"1")
    await one.flush()
    await files(two)
    ino = (await two.resolve("a")).ino
    two.handles.add(ino)
    await save(one, "a", b"2")
    await one.flush()
    await two.pull()
    await two.contents.write(ino, 0, b"3")
    two.handles.clear()
    two.collector.unused(ino)
    await two.flush()
    assert await files(one) == await files(two) == {"/a": b"3"}
    assert b"2" in server.history()


async def test_a_replace_brings_the_version_that_the_file_had_on_the_server(
    one: Device, two: Device
) -> None:
    """Renamed over another here while it was edited elsewhere: the edit wins, here too."""
    for name in ("a", "b"):
        await save(one, name, name.encode())
    await one.flush()
    await files(two)
    assert await two.read_all((await two.resolve("a")).ino) == b"a"
    await rename(two, "a", "b")
    await save(one, "a", b"edited")
    await one.flush()
    await two.flush()
    assert await files(one) == await files(two) == {"/b": b"edited"}


async def test_a_directorys_attributes_are_not_lost_when_an_answer_overtakes_the_feed(
    one: Device, two: Device
) -> None:
    await mkdir(one, "d")
    await one.flush()
    await files(two)
    directory = (await one.resolve("d")).ino
    one.edits.set_xattr(directory, "user.x", b"1")
    one.edits.set_attributes(directory, {"mode": 0o700})
    await one.flush()
    await save(two, "d/a", b"1")
    await two.flush()
    await two.pull()
    node = await two.resolve("d")
    assert (node.mode, two.tree.xattrs(node.ino)) == (0o700, {"user.x": b"1"})


async def test_a_conflict_in_a_directory_that_was_removed_here(one: Device, two: Device) -> None:
    """Moved in, deleted there, the directory deleted; elsewhere the name was taken meanwhile."""
    await mkdir(one, "d")
    await save(one, "b", b"b")
    await one.flush()
    await files(two)
    await rename(two, "b", "d/a")
    await remove(two, "d/a")
    await remove(two, "d")
    await save(one, "d/a", b"1")
    await one.flush()
    await two.flush()
    assert list(two.journal) == []
    assert await files(one) == await files(two) == {"/d": None, "/d/a": b"1"}


async def test_what_comes_back_brings_its_next_version_along(one: Device, two: Device) -> None:
    await save(one, "a", b"1")
    await one.flush()
    await files(two)
    await remove(one, "a")
    await one.flush()
    await save(two, "a", b"first")
    (op,) = two.journal
    await two.uploader.prepare(op)
    await save(two, "a", b"second")
    await two.flush()
    assert list(two.journal) == []
    assert await files(one) == await files(two) == {"/a": b"second"}
