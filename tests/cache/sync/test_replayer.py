"""The journal meets the real server's transactions: lost answers, crashes, and every conflict.

Each test is two devices of one drive (`tests.model`), without HTTP; time is trio's mock clock, so
no backoff is waited out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import update

from cache.metadata.tree import ROOT
from cache.sync.replayer import BURST_NS, FEW, UPLOADS, UPLOADS_WHEN_BUSY
from remote.protocol import messages
from remote.protocol.errors import (
    BadRequest,
    ChunksMissing,
    NameTooLong,
    Refused,
    TooLarge,
    Unavailable,
)
from server.metadata.schema import accounts
from tests.clocks import patient_clock
from tests.model.device import Device
from tests.model.server import Server

COPY = re.compile(r" \(conflicted copy, \w+ [-0-9]+\)")


@pytest.fixture
def clock() -> Iterator[trio.testing.MockClock]:
    """pytest-trio runs the test under it."""
    with patient_clock() as clock:
        yield clock


@pytest.fixture
async def one(server: Server, tmp_path: Path, clock: object) -> Any:
    device = Device(server, tmp_path / "one", "one", server.token("one"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


@pytest.fixture
async def two(server: Server, tmp_path: Path, clock: object) -> Any:
    device = Device(server, tmp_path / "two", "two", server.token("two"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()


async def save(device: Device, path: str, data: bytes) -> int:
    parent, name = await device.place(path)
    node = device.tree.child(parent, name)
    node = node or device.edits.create(parent, name, "file", 0o644, 0, 0)
    device.contents.truncate(node.ino, 0)
    await device.contents.write(node.ino, 0, data)
    return node.ino


async def mkdir(device: Device, path: str) -> int:
    parent, name = await device.place(path)
    return device.edits.create(parent, name, "directory", 0o755, 0, 0).ino


async def rename(device: Device, old: str, new: str) -> None:
    device.edits.rename(*await device.place(old), *await device.place(new))


async def remove(device: Device, path: str) -> None:
    node = await device.resolve(path)
    await device.ensure_listed(node.ino)
    device.edits.unlink(*await device.place(path), directory=node.is_directory)
    device.collector.collect()


async def files(device: Device) -> dict[str, bytes | None]:
    """Paths and bytes; the day and device of a conflicted copy left out."""
    await device.pull()
    return {COPY.sub("*", path): seen[4] for path, seen in (await device.everything()).items()}  # type: ignore[misc]  # [4] is bytes or None


# --- what must not stop it ------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 3])
async def test_lost_answers_are_asked_for_again(one: Device, two: Device, lost: int) -> None:
    await save(one, "a", b"1")
    await mkdir(one, "d")
    one.network.lose_replies = lost
    await one.flush()
    assert await files(two) == {"/a": b"1", "/d": None}


async def test_a_crash_between_apply_and_its_answer(one: Device, two: Device) -> None:
    """The upload is committed, and announced again by a process that has forgotten."""
    await save(one, "a", b"1")

    async def lose(request: messages.ApplyRequest) -> messages.ApplyReply:
        await plain(request)
        raise KeyboardInterrupt

    plain, one.port.apply = one.port.apply, lose  # type: ignore[method-assign]
    with pytest.raises(BaseExceptionGroup):
        await one.flush()
    one.crash()
    assert [op.sent for op in one.journal] == [True]
    await one.flush()
    assert list(one.journal) == []
    assert await files(one) == await files(two) == {"/a": b"1"}


async def test_a_missing_chunk_is_sent_again_and_not_in_a_hot_loop(
    one: Device, two: Device, clock: trio.testing.MockClock
) -> None:
    await save(one, "a", b"1")
    answers = [ChunksMissing(chunks=[]), Unavailable(), ChunksMissing(chunks=[])]

    async def refuse(request: messages.ApplyRequest) -> messages.ApplyReply:
        if answers:
            return messages.ApplyReply(results=[answers.pop()])
        return await plain(request)

    plain, one.port.apply = one.port.apply, refuse  # type: ignore[method-assign]
    began = clock.current_time()
    await one.flush()
    assert clock.current_time() > began
    assert await files(two) == {"/a": b"1"}


@pytest.mark.parametrize("problem", [BadRequest(message="no"), TooLarge(message="no")])
async def test_one_that_refuses_the_whole_batch_is_found(
    one: Device, two: Device, problem: Any
) -> None:
    """A message that the server does not take is not sent again for ever."""
    for name in "abcdefg":
        await save(one, name, name.encode())
    sizes = []

    async def refuse(request: messages.ApplyRequest) -> messages.ApplyReply:
        sizes.append(len(request.ops))
        if any(getattr(keyed.op, "name", "") == "e" for keyed in request.ops):
            raise Refused(problem)
        return await plain(request)

    plain, one.port.apply = one.port.apply, refuse  # type: ignore[method-assign]
    await one.flush()
    assert [op.refused for op in one.journal] == [f"{type(problem).__struct_config__.tag}: no"]
    assert await files(two) == {f"/{name}": name.encode() for name in "abcdfg"}
    assert max(sizes) > 1
    assert len(sizes) < 15


async def test_batches_that_are_too_large_together_go_in_parts(one: Device, two: Device) -> None:
    for name in "abcdefg":
        await save(one, name, name.encode())

    async def refuse(request: messages.ApplyRequest) -> messages.ApplyReply:
        if len(request.ops) > 2:
            raise Refused(TooLarge(message="no"))
        return await plain(request)

    plain, one.port.apply = one.port.apply, refuse  # type: ignore[method-assign]
    await one.flush()
    assert list(one.journal) == []
    assert await files(two) == {f"/{name}": name.encode() for name in "abcdefg"}


async def test_the_rest_of_a_batch_goes_on_at_once(
    one: Device, two: Device, clock: trio.testing.MockClock
) -> None:
    """A server that others wait for answers a part of each batch, and they have had their turn."""
    for name in "abcdefg":
        await mkdir(one, name)
    seen: list[float] = []

    async def answer_two(request: messages.ApplyRequest) -> messages.ApplyReply:
        seen.append(clock.current_time())
        reply = await plain(messages.ApplyRequest(ops=request.ops[:2]))
        later = [Unavailable() for _ in request.ops[2:]]
        return messages.ApplyReply(results=[*reply.results, *later])

    plain, one.port.apply = one.port.apply, answer_two  # type: ignore[method-assign]
    await one.flush()
    assert len(seen) == 4
    assert max(seen) - min(seen) < 0.01  # of a clock that only waiting moves
    assert await files(two) == {f"/{name}": None for name in "abcdefg"}


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


async def test_two_contents_of_one_inode_are_sent_in_order(one: Device, two: Device) -> None:
    """Edited, renamed over another, edited again before any of it was sent."""
    for name in ("a", "b"):
        await save(one, name, name.encode())
    await one.flush()
    await save(one, "a", b"first")
    await rename(one, "a", "b")
    await save(one, "b", b"second")
    await one.flush()
    assert await files(one) == await files(two) == {"/b": b"second"}


async def test_a_snapshot_on_its_way_survives_a_rename_over(one: Device, two: Device) -> None:
    """Its upload was begun for a new file; now it is a version of the old one."""
    await save(one, "a", b"old")
    await one.flush()
    await save(one, "a.tmp", b"new")
    (op,) = one.journal
    await one.uploader.prepare(op)
    await rename(one, "a.tmp", "a")
    before = one.tree.node(one.tree.child(ROOT, "a").ino).file  # type: ignore[union-attr]
    await one.flush()
    assert await files(two) == {"/a": b"new"}
    assert (await two.resolve("a")).file == before


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


async def test_a_burst_has_the_mount_for_itself_and_a_few_files_never_wait(one: Device) -> None:
    replayer = one.replayer
    await save(one, "first", b"0")
    assert replayer._most_uploads() == UPLOADS, "nobody asks anything"
    replayer.last_request = trio.current_time()
    assert replayer._most_uploads() == UPLOADS_WHEN_BUSY, "one saved file does not wait"
    for number in range(FEW):
        await save(one, f"f{number}", b"0")
    replayer.last_request = trio.current_time()
    assert replayer._most_uploads() == 0, "a burst"
    oldest = next(iter(one.journal))
    oldest.made_ns -= BURST_NS
    assert replayer._most_uploads() == UPLOADS_WHEN_BUSY, "it goes on"


# --- no room ------------------------------------------------------------------------------------


async def test_what_does_not_fit_waits_and_holds_up_nothing_else(
    server: Server, one: Device, two: Device
) -> None:
    with server.db.write() as conn:
        conn.execute(update(accounts).values(quota_bytes=10_000))
    for number in range(3):
        await save(one, f"big {number}", noise(300_000, number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        await until(lambda: one.replayer.room.is_short, lambda: one.replayer.room.changed)
        await mkdir(one, "directory")
        await save(one, "small", noise(5_000, 9))
        one.replayer.wake()
        big = {f"big {number}" for number in range(3)}
        await until(
            lambda: {op.body.name for op in one.journal} == big, lambda: one.journal.changed
        )
        assert not one.replayer.waiting_because or "10,000" in one.replayer.waiting_because
        assert (await files(two)).keys() == {"/directory", "/small"}
        assert all(op.refused is None for op in one.journal)
        with server.db.write() as conn:
            conn.execute(update(accounts).values(quota_bytes=None))
        one.replayer.retry_now()
        await until(lambda: not len(one.journal), lambda: one.journal.changed)
        assert not one.replayer.room.is_short
        assert one.replayer.waiting_because is None
        nursery.cancel_scope.cancel()
    assert (await files(two))["/big 1"] == noise(300_000, 1)


async def test_what_did_not_fit_and_is_deleted_leaves_no_full_drive_behind(
    server: Server, one: Device
) -> None:
    """Nor a look at the journal every millisecond, for what might fit now."""
    with server.db.write() as conn:
        conn.execute(update(accounts).values(quota_bytes=10_000))
    await save(one, "big", noise(300_000, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.replayer.run)
        await until(lambda: one.replayer.room.is_short, lambda: one.replayer.room.changed)
        await remove(one, "big")
        await until(lambda: not one.replayer.room.is_short, lambda: one.replayer.room.changed)
        nursery.cancel_scope.cancel()
    assert one.replayer.room.next_try() is None


async def until(condition: Callable[[], bool], changed: Callable[[], trio.Event]) -> None:
    """Wait through as many changes as it takes; the mock clock makes an hour cost nothing."""
    with trio.fail_after(3600):
        while not condition():
            await changed().wait()


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)
