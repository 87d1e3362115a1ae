"""Operations refused for good: a change that a person makes to the file is made to the operation,
and it is tried again. Otherwise nothing could ever be sent that stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from cache.metadata.operations import Body, Op, stuck, waiting_behind
from cache.metadata.tree import ROOT, Node
from cache.namespace.edits import AGAIN_SECONDS
from remote.protocol import messages
from remote.protocol.codec import Encoded
from remote.protocol.errors import Forbidden
from remote.transfer.upload import Upload
from tests.cache.state import State
from tests.clocks import patient_clock
from tests.model.device import Device
from tests.model.server import Server


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def on_server(state: State, name: str, **fields: Any) -> Node:
    state.born(name, state.merge.seq("e" * 32) + 1, **fields)
    return state.tree.node(state.listing()[name])


def refuse(state: State, **fields: object) -> Op:
    """The server refuses what is last in the journal."""
    op = list(state.journal)[-1]
    with state.db.transaction():
        state.journal.rewrite(op, refused="bad_name: no", **fields)
    return op


def refused(state: State) -> list[str]:
    return [f"{op.kind} {op.body.name}" for op in state.journal.refused()]


# --- another name ---------------------------------------------------------------------------------


async def test_a_refused_file_that_is_renamed_is_tried_under_its_new_name(state: State) -> None:
    await state.save("bad", b"bytes")
    refuse(state)
    state.edits.rename(ROOT, "bad", ROOT, "good")
    assert state.ops() == ["create good"]
    assert refused(state) == []


async def test_also_with_what_was_written_since(state: State) -> None:
    node = await state.save("bad", b"bytes")
    layer = state.contents.freeze(node.ino, "9" * 32)
    assert layer is not None
    refuse(state, version="9" * 32)
    await state.contents.write(node.ino, 0, b"more")
    assert state.ops() == ["create bad", "write"]
    state.edits.rename(ROOT, "bad", ROOT, "good")
    assert state.ops() == ["create good", "write"]
    assert refused(state) == []


def test_a_refused_directory_is_renamed_before_what_is_in_it(state: State) -> None:
    directory = state.make("bad", "directory")
    refuse(state)
    state.make("x", parent=directory.ino)
    elsewhere = on_server(state, "elsewhere", kind="directory")
    with state.db.transaction():
        state.tree.update(elsewhere.ino, listed=1)
    state.edits.rename(ROOT, "bad", elsewhere.ino, "good")
    assert state.ops() == ["create good", "create x"]
    assert next(iter(state.journal)).body.parent == elsewhere.file
    assert stuck(state.journal) == set()


def test_not_into_a_directory_that_is_made_later(state: State) -> None:
    """Its creation comes after: the order must stay, and it is tried by `retry` only."""
    directory = state.make("bad", "directory")
    refuse(state)
    state.make("x", parent=directory.ino)
    later = state.make("later", "directory")
    state.edits.rename(ROOT, "bad", later.ino, "good")
    assert state.ops() == ["create bad", "create x", "create later", "rename bad good"]
    assert refused(state) == ["create bad"]


def test_not_under_a_name_that_an_earlier_change_must_free(state: State) -> None:
    on_server(state, "taken")
    directory = state.make("bad", "directory")
    refuse(state)
    state.make("x", parent=directory.ino)
    state.unlink("taken")
    state.edits.rename(ROOT, "bad", ROOT, "taken")
    assert state.ops() == ["create bad", "create x", "unlink taken", "rename bad taken"]


def test_a_refused_rename_goes_to_another_name_or_back(state: State) -> None:
    on_server(state, "a")
    state.edits.rename(ROOT, "a", ROOT, "bad")
    refuse(state)
    state.edits.rename(ROOT, "bad", ROOT, "good")
    assert state.ops() == ["rename a good"]
    assert refused(state) == []
    refuse(state)
    state.edits.rename(ROOT, "good", ROOT, "a")
    assert state.ops() == []
    assert set(state.listing()) == {"a"}


def test_a_refused_rename_over_another_file_is_left_in_order(state: State) -> None:
    """The file that it replaces goes with it: that cannot be said of another name."""
    on_server(state, "a", links=2)
    on_server(state, "b")
    state.edits.rename(ROOT, "a", ROOT, "b")
    refuse(state)
    state.edits.rename(ROOT, "b", ROOT, "c")
    assert state.ops() == ["rename a b", "rename b c"]


def test_a_refused_link_takes_another_name(state: State) -> None:
    node = on_server(state, "a")
    state.edits.link(node.ino, ROOT, "bad")
    refuse(state)
    state.edits.rename(ROOT, "bad", ROOT, "good")
    assert state.ops() == ["link good"]
    assert refused(state) == []


# --- gone -----------------------------------------------------------------------------------------


async def test_a_refused_file_that_is_deleted_leaves_nothing(state: State) -> None:
    node = await state.save("bad", b"bytes")
    state.contents.freeze(node.ino, "9" * 32)
    refuse(state, version="9" * 32)
    await state.contents.write(node.ino, 0, b"more")
    state.unlink("bad")
    state.collector.collect()
    assert state.ops() == []
    assert state.contents.dirty_bytes == 0


async def test_and_so_when_another_is_renamed_over_it(state: State) -> None:
    node = await state.save("bad", b"bytes")
    state.contents.freeze(node.ino, "9" * 32)
    refuse(state, version="9" * 32)
    await state.contents.write(node.ino, 0, b"more")
    on_server(state, "a")
    state.edits.rename(ROOT, "a", ROOT, "bad")
    assert state.ops() == ["rename a bad"]


def test_a_refused_rename_that_is_deleted_deletes_what_the_server_has(state: State) -> None:
    on_server(state, "a")
    state.edits.rename(ROOT, "a", ROOT, "bad")
    refuse(state)
    state.unlink("bad")
    assert state.ops() == ["unlink a"]
    assert refused(state) == []


def test_a_refused_link_that_is_deleted_was_never_there(state: State) -> None:
    node = on_server(state, "a")
    state.edits.link(node.ino, ROOT, "bad")
    refuse(state)
    state.unlink("bad")
    assert state.ops() == []
    assert set(state.listing()) == {"a"}


def test_what_replaced_a_file_of_the_server_is_not_folded_away(state: State) -> None:
    """`b` of the server is to go, though the file that took its place is deleted as well."""
    node = state.make("a")
    on_server(state, "b", links=2)
    state.edits.rename(ROOT, "a", ROOT, "b")
    assert state.tree.node(state.listing()["b"]).ino == node.ino
    state.unlink("b")
    assert state.ops() == ["create a", "rename a b", "unlink b"]


# --- other bytes, other attributes ----------------------------------------------------------------


def test_other_attributes_are_another_question(state: State) -> None:
    node = state.make("a")
    for change in (
        lambda: state.edits.set_attributes(node.ino, {"mode": 0o600}),
        lambda: state.edits.set_xattr(node.ino, "user.x", b"1"),
        lambda: state.edits.set_xattr(node.ino, "user.x", None),
    ):
        refuse(state)
        change()
        assert refused(state) == []


def test_an_attribute_that_is_too_large_is_made_smaller(state: State) -> None:
    node = on_server(state, "a")
    state.edits.set_xattr(node.ino, "user.x", b"much")
    refuse(state)
    state.edits.set_xattr(node.ino, "user.x", b"")
    assert (state.ops(), refused(state)) == (["setxattr"], [])


async def test_writing_tries_again_but_not_with_every_write(state: State) -> None:
    node = on_server(state, "a")
    await state.contents.write(node.ino, 0, b"1")
    op = refuse(state)
    await state.contents.write(node.ino, 0, b"2")
    assert refused(state) == ["write "]
    op.refused_at -= AGAIN_SECONDS
    await state.contents.write(node.ino, 0, b"3")
    assert refused(state) == []


def test_what_may_have_reached_the_server_keeps_its_key(state: State) -> None:
    state.make("a")
    op = refuse(state, sent=True)
    key = op.key
    with state.db.transaction():
        state.journal.try_again([op])
    assert (op.key, op.sent, op.refused) == (key, True, None)


# --- what waits behind ----------------------------------------------------------------------------


def op(seq: int, kind: str, file: str, parent: str = "", name: str = "", no: bool = False) -> Op:
    body = Body(parent=parent, name=name)
    why = "no" if no else None
    return Op(seq=seq, key=str(seq), kind=kind, ino=seq, file=file, body=body, refused=why)


def test_how_many_wait_behind_each_refusal() -> None:
    ops = [
        op(1, "create", "d", "root", "d", no=True),
        op(2, "create", "e", "root", "e", no=True),
        op(3, "create", "x", "d", "x"),
        op(4, "setattr", "x"),
        op(5, "link", "x", "e", "y"),
        op(6, "create", "z", "root", "z"),
    ]
    assert waiting_behind(ops) == {"1": 3, "2": 1}
    assert waiting_behind(ops[5:]) == {}
    alone = [op(1, "write", "f", no=True)]
    assert waiting_behind(alone) == {"1": 0}


# --- with the server's own transactions -----------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[trio.testing.MockClock]:
    with patient_clock() as clock:
        yield clock


@pytest.fixture
async def device(tmp_path: Path, clock: object) -> Any:
    server = Server(tmp_path)
    device = Device(server, tmp_path / "device", "device", server.token("device"))
    await device.start()
    await device.ensure_listed(ROOT)
    yield device
    device.close()
    server.close()


def forbid(device: Device, forbidden: Callable[[messages.Op], bool]) -> Callable[[], None]:
    """The server answers what `forbidden` picks with a refusal, and remembers that by the key, as
    it does; what is returned ends it."""
    plain, answered = device.port.apply, dict[str, Forbidden]()
    now = [forbidden]

    async def apply(request: messages.ApplyRequest) -> messages.ApplyReply:
        for keyed in request.ops:
            if now[0](keyed.op):
                answered[keyed.key] = Forbidden(message="no")
        rest = [keyed for keyed in request.ops if keyed.key not in answered]
        results = iter((await plain(messages.ApplyRequest(ops=rest))).results if rest else [])
        return messages.ApplyReply(
            results=[answered.get(keyed.key) or next(results) for keyed in request.ops]
        )

    device.port.apply = apply  # type: ignore[method-assign]

    def end() -> None:
        now[0] = lambda op: False

    return end


def is_named(name: str) -> Callable[[messages.Op], bool]:
    return lambda op: getattr(op, "name", "") == name


async def test_tried_again_it_is_another_question_to_the_server(device: Device) -> None:
    """The refusal is the answer to its key for ever."""
    node = device.edits.create(ROOT, "a", "file", 0o644, 0, 0)
    await device.contents.write(node.ino, 0, b"bytes")
    allow = forbid(device, is_named("a"))
    await device.flush()
    assert [op.refused for op in device.journal] == ["forbidden: no"]
    allow()
    await device.flush()
    assert [op.refused for op in device.journal] == ["forbidden: no"]
    with device.db.transaction():
        device.journal.try_again(device.journal.refused())
    await device.flush()
    assert list(device.journal) == []
    reply = await device.port.file(node.file)
    assert reply.file.size == len(b"bytes")


@pytest.mark.slow
async def test_a_fault_in_an_acknowledgement_is_no_reason_to_make_it_twice(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = device.edits.create(ROOT, "a", "file", 0o644, 0, 0)
    await device.contents.write(node.ino, 0, b"bytes")

    def stumble(*args: Any) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(device.merge, "acknowledge", stumble)
    await device.flush()
    assert [op.sent for op in device.journal.refused()] == [True]
    device.crash()
    with device.db.transaction():
        device.journal.try_again(device.journal.refused())
    await device.flush()
    assert list(device.journal) == []
    assert list(await device.everything()) == ["/a"]
    assert await device.read_all(device.tree.child(ROOT, "a").ino) == b"bytes"  # type: ignore[union-attr]  # it is there


@pytest.mark.slow
async def test_a_fault_in_an_upload_puts_aside_that_file_only(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other files go on, and it goes on itself when it is asked to."""
    bad = device.edits.create(ROOT, "bad", "file", 0o644, 0, 0)
    await device.contents.write(bad.ino, 0, b"bytes of the one")
    good = device.edits.create(ROOT, "good", "file", 0o644, 0, 0)
    await device.contents.write(good.ino, 0, b"bytes")
    store = device.uploader.store

    async def stumble(upload: Upload, encoded: Encoded, plain: memoryview, op: Op) -> None:
        if op.ino == bad.ino:
            raise KeyError("a fault of ours")
        await store(upload, encoded, plain, op)

    monkeypatch.setattr(device.uploader, "store", stumble)
    await device.flush()
    assert [op.ino for op in device.journal.refused()] == [bad.ino]
    assert (await device.port.file(good.file)).file.size == len(b"bytes")
    monkeypatch.undo()
    with device.db.transaction():
        device.journal.try_again(device.journal.refused())
    await device.flush()
    assert list(device.journal) == []
    assert (await device.port.file(bad.file)).file.size == len(b"bytes of the one")


async def test_renamed_after_the_refusal_everything_behind_it_goes_too(device: Device) -> None:
    directory = device.edits.create(ROOT, "bad", "directory", 0o755, 0, 0)
    forbid(device, is_named("bad"))
    inner = device.edits.create(directory.ino, "x", "file", 0o644, 0, 0)
    await device.contents.write(inner.ino, 0, b"bytes")
    await device.flush()
    assert waiting_behind(device.journal) == {device.journal.refused()[0].key: 1}
    device.edits.rename(ROOT, "bad", ROOT, "good")
    await device.flush()
    assert list(device.journal) == []
    assert (await device.port.file(inner.file)).file.size == len(b"bytes")


@pytest.mark.slow
async def test_what_another_attribute_makes_room_for_is_tried_after_that(device: Device) -> None:
    """The server takes 1 MiB of attributes of a file."""
    node = device.edits.create(ROOT, "dir", "directory", 0o755, 0, 0)
    await device.flush()
    for number in range(17):
        device.edits.set_xattr(node.ino, f"user.{number}", bytes(64 << 10))
    await device.flush()
    assert [op.body.xattr for op in device.journal.refused()] == ["user.16"]
    device.edits.set_xattr(node.ino, "user.0", None)
    assert [op.body.xattr for op in device.journal] == ["user.0", "user.16"]
    await device.flush()
    assert list(device.journal) == []
