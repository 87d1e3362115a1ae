"""Batches that fail as a whole or in part, and answers that are lost."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from cache.metadata.operations import Op
from cache.sync.batches import TAKEN_AT_ONCE
from remote.protocol import messages
from remote.protocol.errors import BadRequest, ChunksMissing, Refused, TooLarge, Unavailable
from tests.cache.sync.steps import files, mkdir, remove, save
from tests.model.device import Device


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


async def test_on_a_full_disk_answers_are_noted_as_the_journal_has_room(
    one: Device, two: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has more answers than the journal has room for until its log is moved."""
    names = [f"d{number}" for number in range(40)]
    for name in names:
        await mkdir(one, name)
    room = depth = 0

    async def make_room() -> None:
        nonlocal room
        room = 3

    @contextlib.contextmanager
    def transaction() -> Iterator[None]:
        nonlocal room, depth
        if not depth and not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room, depth = room - (not depth), depth + 1
        try:
            with plain():
                yield
        finally:
            depth -= 1

    plain = one.db.transaction
    monkeypatch.setattr(one.db, "make_room", make_room)
    monkeypatch.setattr(one.db, "transaction", transaction)
    with capture_logs() as logs:
        await one.flush()
    assert logs == []
    assert await files(two) == {f"/{name}": None for name in names}


async def test_what_is_deleted_while_the_journal_waits_for_room_is_not_sent(
    one: Device, two: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is folded away with its creation: nothing would delete it on the server."""
    await mkdir(one, "d")
    deleted = False

    async def make_room() -> None:
        nonlocal deleted
        await trio.lowlevel.checkpoint()
        if not deleted:
            deleted = True
            await remove(one, "d")

    monkeypatch.setattr(one.db, "make_room", make_room)
    await one.flush()
    await mkdir(one, "e")
    await one.flush()
    assert deleted
    assert await files(one) == await files(two) == {"/e": None}


async def test_on_a_full_disk_what_nothing_holds_back_any_more_waits(
    one: Device, two: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made here and there, and deleted here before it was sent: theirs appears."""
    await mkdir(one, "d")
    await mkdir(two, "d")
    await two.flush()
    await one.pull()
    await remove(one, "d")
    failed: list[str] = []

    def full(key: str) -> None:
        if key in one.merge._shadows:
            failed.append(key)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(one.merge, "_release_key", full)
        await mkdir(one, "e")
        await one.flush()
    assert failed
    await mkdir(one, "f")
    await one.flush()
    assert await files(one) == await files(two) == {"/d": None, "/e": None, "/f": None}


async def test_answers_that_need_nothing_else_are_taken_together(one: Device, two: Device) -> None:
    names = [f"d{number:02}" for number in range(2 * TAKEN_AT_ONCE + 1)]
    for name in names:
        await mkdir(one, name)
    commits = list[int]()
    plain = one.merge.acknowledge

    def acknowledge(op: Op, change: messages.Change) -> None:
        commits.append(one.db.commits)
        plain(op, change)

    one.merge.acknowledge = acknowledge  # type: ignore[method-assign]
    await one.flush()
    assert len(commits) == len(names)
    assert len({*commits}) == 3
    assert await files(two) == {f"/{name}": None for name in names}


async def test_one_that_cannot_be_taken_takes_no_other_along(one: Device, two: Device) -> None:
    for name in ("a", "b", "c"):
        await mkdir(one, name)
    plain = one.merge.acknowledge

    def acknowledge(op: Op, change: messages.Change) -> None:
        plain(op, change)
        if op.body.name == "b":
            raise RuntimeError("a fault of ours")

    one.merge.acknowledge = acknowledge  # type: ignore[method-assign]
    await one.flush()
    assert [(op.body.name, bool(op.refused)) for op in one.journal] == [("b", True)]
    assert await files(two) == {"/a": None, "/b": None, "/c": None}
