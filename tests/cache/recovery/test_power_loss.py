"""Power loss, with a disk that has the whole database and of unsynced bytes what it likes.

(The order of things on a real mount's disk is `tests/power`'s matter.)
"""

from __future__ import annotations

import errno
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.files.contents import Contents
from cache.metadata.tree import ROOT
from cache.recovery.power_loss import HELD, Losses
from tests.amounts import amount
from tests.cache.state import State

SIZE = 40
OLD = b"\xff" * 30
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE), st.integers(1, 20)),
        st.tuples(st.just("truncate"), st.sampled_from((0, 0, 7, 25)), st.just(0)),
        st.tuples(st.sampled_from(("freeze", "sync", "reopen")), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def forget(state: State, dice: random.Random | None = None) -> int:
    """Take from the disk what it need not have: unsynced parts become garbage; all of them, or by
    chance."""
    gone = 0
    for layer, start, stop, told in map(tuple, state.db.all("SELECT * FROM unsettled")):
        is_lost = dice is None or dice.random() < 0.5
        gone += is_lost or not told  # one that was written over in part has no proof
        if is_lost:
            with (state.directory / "spool" / f"{layer}.layer").open("r+b") as file:
                file.seek(start)
                file.write(b"\xee" * (stop - start))
    return gone


async def content(state: State, name: str) -> bytes:
    node = state.tree.child(ROOT, name)
    assert node is not None
    return bytes(await state.contents.read(node.ino, 0, 1 << 20, None))


@settings(max_examples=amount(100, 20), deadline=None)
@given(steps, st.randoms(use_true_random=False))
def test_a_file_is_never_what_it_never_was(
    steps: list[tuple[str, int, int]], dice: random.Random
) -> None:
    """Each byte is one that was there since the last sync, and none is missing in between."""

    async def run(state: State) -> None:
        record = state.born("a", 1, size=len(OLD))
        assert record.version is not None
        state.versions.bytes[record.version] = OLD
        ino, marks = state.listing()["a"], itertools.count(1)
        states = [OLD]  # since everything was synced
        for name, at, length in steps:
            now = states[-1]
            if name == "write":
                data = bytes([next(marks)]) * length
                await state.contents.write(ino, at, data)
                states.append(now.ljust(at, b"\0")[:at] + data + now[at + length :])
            elif name == "truncate":
                state.contents.truncate(ino, at)
                states.append(now[:at].ljust(at, b"\0"))
            elif name == "freeze":
                if state.contents.stack(ino) and state.contents.frozen(ino) is None:
                    state.contents.freeze(ino, f"{next(marks):032x}")
            elif name == "sync":
                await state.contents.sync_all()
                states = [now]
            else:
                state.reopen()
        lost = forget(state, dice)
        state.lose_power()
        found = await content(state, "a")
        node = state.tree.node(ino)
        assert node.size == len(found)
        assert state.db.all("SELECT * FROM unsettled") == []
        check_layers(state.contents, ino)
        if not lost:
            assert found == states[-1]
        for at, byte in enumerate(found):
            assert byte in {item[at] for item in states if at < len(item)}, (at, found, states)

    with tempfile.TemporaryDirectory() as directory:
        state = State(Path(directory))
        trio.run(run, state)
        state.close()


def check_layers(contents: Contents, ino: int) -> None:
    stack = contents.stack(ino)
    for upper, lower in itertools.pairwise(stack):
        assert upper.below <= lower.size
    for layer in stack:
        assert layer.safe <= layer.size
        assert layer.below <= layer.size
        assert not list(layer.extents) or list(layer.extents)[-1][1] <= layer.size


async def test_without_a_loss_of_power_nothing_is_asked(state: State) -> None:
    await state.save("a", b"bytes")
    forget(state)  # the page cache has them, whatever the disk has: nobody looks
    state.reopen()
    assert not state.db.lost_power
    assert len(await content(state, "a")) == 5


async def test_an_orderly_end_is_no_loss_of_power(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.contents.close()
    state.db.close(clean=True)
    state.boot = "another"
    state.open()
    assert not state.db.lost_power
    assert bytes(await state.contents.read(node.ino, 0, 9, None)) == b"bytes"
    state.reopen()
    state.boot = "a third"
    state.reopen()
    assert state.db.lost_power  # the second life had no orderly end


async def test_what_the_disk_got_in_time_is_kept(state: State) -> None:
    await state.save("a", b"bytes")
    losses = state.lose_power()
    assert losses == Losses()
    assert await content(state, "a") == b"bytes"


async def test_what_was_synced_is_kept_and_what_came_after_is_cut_off(state: State) -> None:
    node = await state.save("a", b"synced")
    await state.contents.sync(node.ino)
    await state.contents.write(node.ino, 6, b" and not")
    forget(state)
    losses = state.lose_power()
    assert losses.shortened == {node.ino}
    assert await content(state, "a") == b"synced"


async def test_a_file_that_was_written_anew_is_the_old_one(state: State) -> None:
    node = await state.save("a", b"the old one")
    await state.contents.sync(node.ino)
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"new")
    forget(state)
    losses = state.lose_power()
    assert losses.gone_back == {node.ino}
    assert await content(state, "a") == b"the old one"


async def test_what_was_written_over_a_snapshot_that_is_gone_goes_with_it(state: State) -> None:
    node = await state.save("a", b"the old one")
    await state.contents.sync(node.ino)
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"the new one, and longer")
    state.contents.freeze(node.ino, f"{7:032x}")
    state.contents.truncate(node.ino, 500)
    forget(state)
    losses = state.lose_power()
    assert losses.gone_back == {node.ino}
    assert await content(state, "a") == b"the old one"
    assert state.tree.node(node.ino).size == len(b"the old one")


async def test_what_was_written_anew_again_does_not_go_with_the_snapshot_below(
    state: State,
) -> None:
    node = await state.save("a", b"the old one")
    await state.contents.sync(node.ino)
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"the new one")
    state.contents.freeze(node.ino, f"{7:032x}")
    forget(state)
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"the newest")
    state.lose_power()
    assert await content(state, "a") == b"the newest"


async def test_what_comes_back_over_a_snapshot_that_is_gone_is_cut_too(state: State) -> None:
    node = await state.save("a", b"never synced")
    state.contents.freeze(node.ino, f"{7:032x}")
    await state.contents.write(node.ino, 3, b"er, n")
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"written anew")
    forget(state)
    losses = state.lose_power()
    assert losses.held == {node.ino}
    assert await content(state, "a") == b""


async def test_a_file_that_was_written_anew_and_synced_is_the_new_one(state: State) -> None:
    node = await state.save("a", b"the old one")
    await state.contents.sync(node.ino)
    state.contents.truncate(node.ino, 0)
    await state.contents.write(node.ino, 0, b"new")
    await state.contents.sync_all()
    assert state.spool_files() == ["2.layer"]
    assert state.contents.dirty_bytes == 3
    forget(state)
    state.lose_power()
    assert await content(state, "a") == b"new"


async def test_a_file_that_was_emptied_on_purpose_stays_empty(state: State) -> None:
    node = await state.save("a", b"the old one")
    await state.contents.sync(node.ino)
    state.contents.truncate(node.ino, 0)
    state.lose_power()
    assert await content(state, "a") == b""
    await state.contents.sync_all()
    state.lose_power()
    assert await content(state, "a") == b""


async def test_a_new_file_of_which_nothing_is_left_does_not_travel(state: State) -> None:
    node = await state.save("a", b"bytes")
    forget(state)
    losses = state.lose_power()
    assert losses.held == {node.ino}
    [op] = state.journal
    assert (op.kind, op.refused, op.sent) == ("create", HELD, False)
    assert await content(state, "a") == b""


async def test_every_operation_may_have_reached_the_server(state: State) -> None:
    state.make("a")
    state.lose_power()
    [op] = state.journal
    assert op.sent
    state.edits.rename(ROOT, "a", ROOT, "b")  # and is not changed any more
    assert state.ops() == ["create a", "rename a b"]


async def test_a_torn_snapshot_is_another_version(state: State) -> None:
    node = await state.save("a", b"bytes")
    state.contents.freeze(node.ino, "8" * 32)
    [op] = state.journal
    with state.db.transaction():
        state.journal.rewrite(op, version="8" * 32)
    await state.contents.sync_bytes(node.ino)
    state.lose_power()
    assert state.journal.of_file(node.file)[0].version == "8" * 32
    await state.contents.write(node.ino, 5, b" more")
    forget(state)
    state.lose_power()  # the snapshot is whole
    assert await content(state, "a") == b"bytes"


async def test_a_spool_file_goes_only_after_the_journal_is_on_the_disk(state: State) -> None:
    """The database may come back as it was before the layer was dropped."""
    node = await state.save("a", b"precious")
    await state.contents.sync(node.ino)
    saved = {path: path.read_bytes() for path in state.directory.glob("tree.sqlite*")}
    state.unlink("a")
    state.collector.collect()
    assert state.spool_files() == ["1.layer"]
    state.db.close()
    for path, data in saved.items():
        path.write_bytes(data)
    state.open()
    assert await content(state, "a") == b"precious"


async def until(condition: Callable[[], bool]) -> None:
    """For what a task does that tells nobody; the clock jumps."""
    for _second in range(100_000):
        if condition():
            return
        await trio.sleep(1)
    raise AssertionError("never")


async def test_a_disk_that_fails_is_tried_again(
    state: State, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, failures = state.db.sync, 2

    async def fail_at_first() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(errno.EIO, "the disk")
        await plain()

    monkeypatch.setattr(state.db, "sync", fail_at_first)
    await state.save("a", b"bytes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.contents.sync_in_background)
        await until(lambda: failures < 0 and not state.db.changed.is_set())
        nursery.cancel_scope.cancel()


async def test_a_background_syncs_everything(state: State, autojump_clock: object) -> None:
    node = await state.save("a", b"bytes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.contents.sync_in_background)
        await until(lambda: not state.db.changed.is_set())
        assert state.db.all("SELECT * FROM unsettled") == []
        await state.contents.write(node.ino, 5, b" more")
        assert state.db.all("SELECT * FROM unsettled") != []
        await state.db.sync()  # somebody else's fsync does not put it off
        await until(lambda: not state.db.all("SELECT * FROM unsettled"))
        state.unlink("a")
        state.collector.collect()
        await until(lambda: not state.spool_files())
        nursery.cancel_scope.cancel()
