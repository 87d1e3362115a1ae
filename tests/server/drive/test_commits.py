"""Batches and idempotency: each operation happens once, whatever happens to its answer."""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import pytest
from sqlalchemy import func, insert, select

from remote.protocol import errors, messages
from server.accounts import tokens
from server.drive import commits
from server.metadata.schema import changes, files, idempotency
from tests.server.harness import (
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
    until,
)
from tests.server.lookups import steps_of


def test_a_batch_is_answered_in_order_and_goes_on_after_a_refusal(anna: Client) -> None:
    inside = new_id()
    results = anna.batch(
        anna.create("d", kind="directory", file=inside),
        anna.create("d"),
        anna.create("x", parent=inside),
    )
    assert [type(r) for r in results] == [messages.Applied, errors.Exists, messages.Applied]
    assert [r.change.seq for r in results if isinstance(r, messages.Applied)] == [1, 2]
    assert anna.refresh().seq == 2


def test_a_batch_costs_the_same_however_many_files_the_drive_has(
    server: Running, anna: Client
) -> None:
    """All others wait for it. What somebody sees a part of is found without going through them."""
    folder, root = anna.mkdir("folder"), anna.me.root
    row = {"drive": anna.me.drive, "kind": "fifo", "mode": 0o644, "uid": 0, "gid": 0, "links": 0}
    row |= {"size": 0, "rdev": 0, "rev": 0} | dict.fromkeys(("mtime_ns", "ctime_ns"), 1)
    taken = []
    for name in ("few", "many"):
        file = anna.make(name)
        op = messages.Rename(file=file, parent=root, name=name, new_parent=folder, new_name=name)
        with server.app.service.db.write() as conn:
            who = tokens.authenticate(conn, anna.token, 1)
            ops = [messages.Keyed(key=new_id(), op=op)]
            taken.append(steps_of(conn, partial(commits.apply, conn, who, ops, 2)))
            conn.execute(
                insert(files), [row | {"id": new_id(), "trashed_ns": 1} for _ in range(2000)]
            )
    assert taken[1] <= taken[0] + 20


def test_the_same_key_always_gets_the_same_answer(anna: Client) -> None:
    key, op = new_id(), anna.create("a")
    first = anna.batch(op, keys=[key])
    assert anna.batch(op, keys=[key]) == first
    assert anna.refresh().seq == 1
    refused = new_id()
    taken = anna.create("a")
    assert isinstance(anna.batch(taken, keys=[refused])[0], errors.Exists)
    anna.do(messages.Unlink(file=op.file, parent=anna.me.root, name="a"))
    assert isinstance(anna.batch(taken, keys=[refused])[0], errors.Exists)
    assert anna.children() == {}


def test_a_key_twice_in_one_batch_is_done_once(anna: Client) -> None:
    key, op = new_id(), anna.create("a")
    one, other = anna.batch(op, op, keys=[key, key])
    assert one == other
    assert isinstance(one, messages.Applied)


def test_keys_are_the_devices_own(server: Running, anna: Client) -> None:
    phone = server.device(anna.me.account, "phone")
    key = new_id()
    anna.batch(anna.create("a"), keys=[key])
    assert isinstance(phone.batch(phone.create("b"), keys=[key])[0], messages.Applied)
    assert set(anna.children()) == {"a", "b"}


@pytest.mark.slow
def test_a_crash_before_the_commit_leaves_nothing(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, op = new_id(), anna.create("a")

    def crash(_batch: object) -> list[object]:
        raise RuntimeError("power loss")

    with monkeypatch.context() as patched:
        patched.setattr(commits._Batch, "finish", crash)
        with pytest.raises(Failed) as failed:
            anna.batch(op, keys=[key])
    assert failed.value.status == 500
    assert "power loss" not in failed.value.problem.message
    assert anna.children() == {}
    assert isinstance(anna.batch(op, keys=[key])[0], messages.Applied)
    assert anna.refresh().seq == 1


def test_an_answer_that_was_lost_is_given_again_after_a_restart(server: Running) -> None:
    anna = server.account("anna")
    key, op = new_id(), anna.create("a")
    keyed = messages.ApplyRequest(ops=[messages.Keyed(key=key, op=op)])
    with server.app.service.db.write() as conn:
        caller = tokens.authenticate(conn, anna.token, 0)
        lost, _ = commits.apply(conn, caller, keyed.ops, 12345)
    assert anna.batch(op, keys=[key]) == lost


def test_a_new_login_is_given_the_answers_of_the_device_before(server: Running) -> None:
    """Of devices of the same account, if it says that it was one; to nobody else."""
    anna, ben = server.account("anna"), server.account("ben")
    key, op = new_id(), anna.create("a")
    given = anna.batch(op, keys=[key])
    before, again = anna.refresh().device_id, server.device(anna.me.account)

    def asked(who: Client, sent_as: list[str]) -> messages.Applied | errors.AnyProblem:
        wanted = messages.ApplyRequest([messages.Keyed(key=key, op=op)], sent_as=sent_as)
        reply = who.request("POST", "/v1/changes/apply", messages.ApplyReply, wanted)
        answer: messages.Applied | errors.AnyProblem = reply.results[0]
        return answer

    assert asked(again, [new_id(), before]) == given[0]
    assert not isinstance(asked(ben, [before]), messages.Applied)
    assert isinstance(asked(again, []), errors.Exists)


def test_missing_chunks_are_not_a_final_answer(anna: Client) -> None:
    chunk, key, file, version = make_chunk(noise(100, "late")), new_id(), new_id(), new_id()
    content = messages.Content(version=version, manifest=manifest_of(chunk))
    create = anna.create("a", file=file, content=content)
    mode = messages.SetAttr(file=file, mode=0o600)
    keys = [key, new_id(), new_id()]
    ops = (create, mode, anna.create("other"))
    first = anna.batch(*ops, keys=keys)
    assert isinstance(first[0], errors.ChunksMissing)
    assert first[0].chunks == [chunk.id]
    assert isinstance(first[1], errors.Unavailable)  # it will be possible once the file is there
    assert isinstance(first[2], messages.Applied)
    anna.upload(version, file, chunk)
    again = anna.batch(*ops, keys=keys)
    assert [type(r) for r in again] == [messages.Applied] * 3
    assert again[2] == first[2]
    assert anna.children()["a"].mode == 0o600


@pytest.mark.slow
def test_sequence_numbers_have_no_gaps_under_concurrency(server: Running, anna: Client) -> None:
    devices = [server.device(anna.me.account, f"d{n}") for n in range(4)]

    def work(device: Client) -> list[int]:
        done = []
        for number in range(6):
            applied = device.do(device.create(f"{device.me.device_id}-{number}"))
            done.append(applied.change.seq)
        return done

    with ThreadPoolExecutor(4) as pool:
        seen = [seq for part in pool.map(work, devices) for seq in part]
    assert sorted(seen) == list(range(1, 25))
    page = anna.changes(anna.me.cursor)
    assert [change.seq for change in page.changes] == list(range(1, 25))


def test_a_refusal_rolls_back_all_it_did(anna: Client, server: Running) -> None:
    _, version = anna.store("a", make_chunk(b"x"))
    again = anna.create("b", content=messages.Content(version=version, manifest=manifest_of()))
    assert isinstance(anna.refused(again), errors.Exists)
    with server.app.service.db.read() as conn:
        drive = changes.c.drive == anna.me.drive
        assert conn.execute(select(func.count()).select_from(changes).where(drive)).scalar() == 1
        mine = idempotency.c.device == anna.me.device_id
        stored = conn.execute(select(idempotency.c.result).where(mine)).scalars().all()
    kinds = {type(msgspec.msgpack.decode(r, type=commits.Result)) for r in stored}
    assert kinds == {messages.Applied, errors.Exists}


def test_batches_are_limited(anna: Client) -> None:
    with pytest.raises(Failed) as failed:
        anna.batch(*[anna.create(str(n), kind="fifo") for n in range(1001)])
    assert failed.value.status == 400
    with pytest.raises(Failed):
        anna.batch()


# --- one batch does not take everything ---------------------------------------------------------


def heavy(client: Client) -> str:
    """A file whose every change is about a megabyte."""
    return client.make("heavy", xattrs={f"user.{n}": bytes(65_000) for n in range(15)})


@pytest.mark.slow
def test_a_batch_that_makes_too_much_is_answered_in_part(anna: Client) -> None:
    file = heavy(anna)
    ops = [messages.SetAttr(file=file, mode=n) for n in range(40)]
    keys = [new_id() for _ in ops]
    rounds = 0
    waiting = list(zip(ops, keys, strict=True))
    while waiting:
        results = anna.batch(*(op for op, _ in waiting), keys=[key for _, key in waiting])
        done = [isinstance(item, messages.Applied) for item in results]
        assert done[0]
        assert sorted(done, reverse=True) == done
        left = [item for item in results if not isinstance(item, messages.Applied)]
        assert all(isinstance(item, errors.Unavailable) for item in left)
        assert len(msgspec.msgpack.encode(results)) < commits.MAX_BYTES
        waiting, rounds = waiting[done.count(True) :], rounds + 1
    assert 1 < rounds <= 10
    assert anna.file(file).file.mode == 39


@pytest.mark.slow
def test_answers_that_are_too_much_are_given_in_part_too(anna: Client) -> None:
    file = heavy(anna)
    ops = [messages.SetAttr(file=file, mode=n) for n in range(20)]
    keys = [new_id() for _ in ops]
    for at in range(0, 20, 5):
        results = anna.batch(*ops[at : at + 5], keys=keys[at : at + 5])
        assert all(isinstance(item, messages.Applied) for item in results)
    again = anna.batch(*ops, keys=keys)
    assert len(msgspec.msgpack.encode(again)) < commits.MAX_BYTES + (1 << 20)
    done = [isinstance(item, messages.Applied) for item in again]
    assert 10 < done.count(True) < 20
    rest = done.index(False)
    more = anna.batch(*ops[rest:], keys=keys[rest:])
    assert [item.change.seq for item in more] == list(range(2 + rest, 22))


def test_a_batch_that_takes_too_long_is_answered_in_part(
    anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "MAX_SECONDS", -1.0)
    ops = [anna.create(name) for name in "abc"]
    results = anna.batch(*ops)
    assert [type(item) for item in results] == [messages.Applied] + 2 * [errors.Unavailable]
    assert [type(item) for item in anna.batch(*ops[1:])] == [messages.Applied, errors.Unavailable]
    assert set(anna.children()) == {"a", "b"}


def test_on_a_machine_that_is_too_slow_for_any_batch_all_of_it_comes_to_an_end(
    anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long one operation takes: whoever sends the rest again is done after as many."""
    monkeypatch.setattr(commits, "MAX_SECONDS", -1.0)
    ops = [anna.create(f"{number}") for number in range(12)]
    keys = [new_id() for _ in ops]
    for done in range(1, 13):
        results = anna.batch(*ops, keys=keys)  # also what was answered before
        assert [_is_applied(item) for item in results] == [True] * done + [False] * (12 - done)
    assert len(anna.children()) == 12


def test_a_batch_makes_way_for_others(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time here is what the operations say they take: each of anna's takes a fortieth of a second
    of write time, so she may do two before ben, who came later and asks for one, has his turn."""
    service = server.app.service
    gate, ticks = threading.Event(), itertools.count()
    monkeypatch.setattr(service.writes, "_clock", lambda: next(ticks) / 40)
    service.writes.submit(gate.wait, 20)
    loop = service.fanout._loop
    assert loop is not None
    applied = []
    for client, names in ((anna, "abcdefgh"), (ben, "x")):
        ops = [messages.Keyed(key=new_id(), op=client.create(name)) for name in names]
        asked = asyncio.run_coroutine_threadsafe(service.apply(client.token, ops), loop)
        applied.append(asked)
        until(lambda: service.writes.waiting == 1 + len(applied))
    gate.set()
    first, second = (item.result(20) for item in applied)
    done = [isinstance(item, messages.Applied) for item in first]
    assert 1 <= done.count(True) < 8
    assert done == sorted(done, reverse=True)
    assert all(isinstance(item, errors.Unavailable) for item in first if not _is_applied(item))
    assert _is_applied(second[0])


def _is_applied(result: object) -> bool:
    return isinstance(result, messages.Applied)


def test_who_has_no_token_does_not_get_into_the_queue(server: Running, anna: Client) -> None:
    """Refused while the writers' queue stands still: it was never in it."""
    gate = threading.Event()
    held = server.app.service.writes.submit(gate.wait, 20)
    try:
        stranger = server.client()
        stranger.token = "no such token"
        with pytest.raises(Failed) as failed:
            stranger.batch(anna.create("a"))
        assert failed.value.status == 401
        with pytest.raises(Failed) as failed:
            stranger.request("POST", "/v1/devices/rotate", messages.Me)
        assert failed.value.status == 401
        assert not held.done()
    finally:
        gate.set()
        held.result(20)
