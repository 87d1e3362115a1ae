"""A share ends, or comes back, while what a guest changed in it waits, is under way, or is being
resolved: with the server's own rules, and real operations on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cache.metadata.tree import ROOT
from cache.namespace.shares import Shares
from remote.protocol import messages
from remote.protocol.messages import Role
from tests.cache.sync.steps import mkdir, remove, rename, save
from tests.model.device import Device
from tests.model.people import WAYS, Person
from tests.model.server import Server

BIG = bytes(range(256)) * 1200


@dataclass
class Two:
    """Anna, who shares `d` with ben, who edits there; `d/a` is in it."""

    server: Server
    tokens: dict[str, str]
    anna: Device
    ben: Device

    async def file(self, path: str) -> str:
        return (await self.anna.resolve(path)).file

    async def give(self, path: str = "d", role: Role = "editor") -> None:
        self.server.share(self.tokens["anna"], await self.file(path), "ben", role)

    async def take(self, path: str = "d") -> None:
        self.server.unshare(self.tokens["anna"], await self.file(path), "ben")

    async def synchronize(self) -> dict[str, object]:
        """Until nothing is under way; what ben sees then, which is what a new device would."""
        for device in (self.ben, self.anna, self.ben):
            await device.pull()
            await device.flush()
        await self.ben.pull()
        assert list(self.ben.journal) == []
        seen = await shown(self.ben)
        token = self.server.token("new", "ben")
        fresh = Device(self.server, self.ben._directory / "new", "new", token)
        await fresh.start()
        await fresh.pull()
        assert seen == await shown(fresh)
        fresh.close()
        return seen


async def shown(device: Device) -> dict[str, object]:
    return {path: what[4] for path, what in (await device.everything()).items()}


@pytest.fixture
async def two(tmp_path: Path) -> Iterator[Two]:
    server = Server(tmp_path, ("anna", "ben"))
    tokens = {name: server.token(name, name) for name in ("anna", "ben")}
    anna, ben = (Device(server, tmp_path / name, name, tokens[name]) for name in ("anna", "ben"))
    found = Two(server, tokens, anna, ben)
    for device in (anna, ben):
        await device.start()
    await mkdir(anna, "d")
    await save(anna, "d/a", b"first")
    await anna.flush()
    await found.give()
    await ben.pull()
    assert await shown(ben) == top({"d": None, "d/a": b"first"})
    yield found
    for device in (anna, ben):
        device.close()
    server.close()


def top(below: dict[str, object]) -> dict[str, object]:
    """The view of these paths in anna's share."""
    above: dict[str, object] = {"/Shared": None, "/Shared/anna": None}
    return above | {f"/Shared/anna/{path}": what for path, what in below.items()}


# --- it comes back ------------------------------------------------------------------------------


async def test_given_again_before_the_change_was_sent_it_goes_home(two: Two) -> None:
    await save(two.ben, "Shared/anna/d/a", b"ben's")
    await save(two.ben, "Shared/anna/d/new", b"new")
    await two.take()
    await two.ben.pull()
    assert set(await shown(two.ben)) == {"/a (no longer shared)", "/new (no longer shared)"}
    two.ben.crash()  # the names are as they were, also for another process
    await two.ben.start()
    await two.give()
    assert await two.synchronize() == top({"d": None, "d/a": b"ben's", "d/new": b"new"})


async def test_a_share_that_ended_and_came_back_unseen_is_looked_at_anew(two: Two) -> None:
    await two.take()
    await save(two.anna, "d/while away", b"1")
    await remove(two.anna, "d/a")
    await two.anna.flush()
    await two.give()
    assert await two.synchronize() == top({"d": None, "d/while away": b"1"})


async def test_another_role_is_not_another_share(two: Two) -> None:
    await two.give(role="viewer")
    await two.ben.pull()
    node = await two.ben.resolve("Shared/anna/d")
    assert node.listed is not None
    assert not two.ben.shares.is_writable(node)


async def test_what_was_refused_for_a_weak_role_is_sent_when_it_is_strong_again(two: Two) -> None:
    await save(two.ben, "Shared/anna/d/a", b"ben's")
    await two.give(role="viewer")
    await two.ben.flush()
    assert [op.refused is not None for op in two.ben.journal] == [True]
    await two.ben.pull()
    await two.give(role="editor")
    assert await two.synchronize() == top({"d": None, "d/a": b"ben's"})


async def test_a_refused_change_comes_home_when_the_share_ends(two: Two) -> None:
    await save(two.ben, "Shared/anna/d/a", b"ben's")
    await two.give(role="viewer")
    await two.ben.flush()
    await two.take()
    assert await two.synchronize() == {"/a (no longer shared)": b"ben's"}


async def test_a_refusal_that_is_ahead_of_the_feed(two: Two) -> None:
    """The server says that a file is not there, before the feed says that its share has ended;
    and it is shared again by then."""
    await two.give("d/a")
    await two.take()
    await two.ben.pull()
    await save(two.ben, "Shared/anna/a", b"ben's")
    await two.take("d/a")
    await two.ben.flush()
    await two.give("d/a")
    seen = await two.synchronize()
    assert seen == {"/a (no longer shared)": b"ben's"} | top({"a": b"first"})


# --- it ends while something is under way -------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "new"])
async def test_taken_back_after_the_server_took_it_and_before_the_answer(
    two: Two, name: str
) -> None:
    await save(two.ben, f"Shared/anna/d/{name}", b"ben's")
    lost = two.ben.port.apply
    arrived = trio.Event()

    async def lose(request: messages.ApplyRequest) -> messages.ApplyReply:
        await lost(request)
        arrived.set()
        await trio.sleep_forever()
        raise AssertionError

    two.ben.port.apply = lose  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.ben.flush)
        await arrived.wait()
        nursery.cancel_scope.cancel()
    two.ben.port.apply = lost  # type: ignore[method-assign]
    await two.take()
    await two.ben.pull()
    assert await two.synchronize() == {}  # nothing of it is ben's, and nothing is left of it
    assert (await shown(two.anna))[f"/d/{name}"] == b"ben's"


async def test_an_upload_that_had_begun_in_the_other_drive_begins_anew(two: Two) -> None:
    await save(two.ben, "Shared/anna/d/big", BIG)
    put = two.ben.port.put_chunk

    async def end(ticket: messages.PresignedPut, body: bytes | memoryview) -> None:
        await put(ticket, body)
        two.ben.port.put_chunk = put  # type: ignore[method-assign]
        await two.take()
        await two.ben.pull()

    two.ben.port.put_chunk = end  # type: ignore[method-assign]
    await two.ben.flush()
    assert await two.synchronize() == {"/big (no longer shared)": BIG}


async def test_chunks_go_to_the_drive_the_file_is_made_in(two: Two) -> None:
    """Kept at the top, and its directory shared again: the creation still speaks of that."""
    await save(two.ben, "Shared/anna/d/big", BIG)
    await two.take()
    await two.ben.pull()
    await two.give()
    two.ben.network.requests = 4900  # some more, and it never ends
    assert await two.synchronize() == top({"d": None, "d/a": b"first", "d/big": BIG})


async def test_a_listing_of_the_top_does_not_take_what_is_kept(two: Two) -> None:
    directory = await mkdir(two.ben, "Shared/anna/d/made")
    await two.ben.contents.write(
        two.ben.edits.create(directory, "in it", "file", 0o644, 0, 0).ino, 0, b"deep"
    )
    await two.take()
    await two.ben.pull()
    with two.ben.db.transaction():
        two.ben.tree.update(ROOT, listed=None)
    await two.ben.ensure_listed(ROOT)
    kept = {"/made (no longer shared)": None, "/made (no longer shared)/in it": b"deep"}
    assert await shown(two.ben) == kept
    assert await two.synchronize() == kept


async def test_a_name_moved_between_what_is_kept_and_what_is_shared(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations that would take names from one drive into another are not meant any more. (The
    move is from before it was refused here.)"""
    monkeypatch.setattr(Shares, "check_reach", lambda *_: None)
    await mkdir(two.anna, "e")
    await two.anna.flush()
    await two.give("e")
    await two.ben.pull()
    await save(two.ben, "Shared/anna/d/new", b"new")
    made = next(iter(two.ben.journal))
    with two.ben.db.transaction():
        two.ben.journal.rewrite(made, sent=True)  # it may be on the server: it is not changed
    await rename(two.ben, "Shared/anna/d/new", "Shared/anna/e/new")
    await two.take()
    seen = await two.synchronize()
    assert [what for path, what in seen.items() if "new" in path] == [b"new"]
    assert list(two.ben.journal) == []


async def test_made_then_saved_over_and_neither_is_answered(two: Two) -> None:
    """The creation takes its bytes from an inode that has no name any more."""
    await save(two.ben, "Shared/anna/d/new", b"one")
    made = next(iter(two.ben.journal))
    with two.ben.db.transaction():
        two.ben.journal.rewrite(made, sent=True)
    await save(two.ben, "Shared/anna/d/.tmp", b"two")
    await rename(two.ben, "Shared/anna/d/.tmp", "Shared/anna/d/new")
    await two.take()
    assert await two.synchronize() == {"/new (no longer shared)": b"two"}


async def test_all_of_a_file_written_anew_needs_nothing_of_what_was_there(two: Two) -> None:
    """Never read here: its manifest is not at hand, and is not given any more."""
    await save(two.anna, "d/unread", BIG)
    await two.anna.flush()
    await two.ben.pull()
    await save(two.ben, "Shared/anna/d/unread", b"all mine")
    await two.take()
    assert await two.synchronize() == {"/unread (no longer shared)": b"all mine"}


# --- found beside -------------------------------------------------------------------------------


async def test_deleted_elsewhere_then_renamed_over_another_and_written_again(two: Two) -> None:
    """The bytes of the deleted file go on as the other one's, in order."""
    await save(two.anna, "one", b"1")
    await save(two.anna, "two", b"2")
    await two.anna.flush()
    other = Device(two.server, two.anna._directory / "x", "x", two.server.token("x"))
    await other.start()
    await other.pull()
    await other.ensure_listed(ROOT)
    await save(other, "one", b"changed")
    await rename(other, "one", "two")
    await save(other, "two", b"and again")
    await remove(two.anna, "one")
    await two.anna.flush()
    await other.flush()
    await two.anna.pull()
    assert (await shown(two.anna))["/two"] == b"and again"
    assert "/one" not in await shown(two.anna)
    other.close()


async def test_what_a_listing_took_while_its_mode_was_changed_is_gone(two: Two) -> None:
    node = await two.ben.resolve("Shared/anna/d/a")
    two.ben.edits.set_attributes(node.ino, {"mode": 0o600})
    await remove(two.anna, "d/a")
    await two.anna.flush()
    two.server.forget_feed()
    await two.ben.pull()
    await shown(two.ben)
    await two.ben.flush()
    assert two.ben.tree.live(node.file) is None


async def test_who_watches_what_was_shared_is_told_that_it_is_gone(two: Two) -> None:
    gone = {(await two.ben.resolve(f"Shared/anna/{path}")).ino for path in ("d", "d/a")}
    await two.take()
    await two.ben.pull()
    assert gone <= set(two.ben.kernel.gone)


# --- a name that was left and filled again --------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_who_edits_in_a_share_saves_the_document_that_was_given_out(
    two: Two, way: str
) -> None:
    document = await two.file("d/a")
    await Person(two.ben).save_with_backup("Shared/anna/d/a", b"ben's", way)
    seen = await two.synchronize()
    is_deleted = way == "exchange"  # the old version
    backup = {} if is_deleted else {"d/a~": b"first"}
    assert seen == top({"d": None, "d/a": b"ben's"} | backup)
    assert await two.file("d/a") == document
    assert is_deleted or await two.file("d/a~") != document


@pytest.mark.slow
@pytest.mark.parametrize("is_told_between", [True, False])
async def test_a_name_that_cannot_be_taken_back_leaves_the_file_that_is_given_by_itself(
    two: Two, is_told_between: bool
) -> None:
    """The content that was written here goes on as a file of its own; the one that is shared by
    itself by now is the file as it is on the server."""
    await Person(two.ben).save_with_backup("Shared/anna/d/a", b"ben's", "create")
    await two.take()
    if is_told_between:
        await two.ben.pull()
    await two.give("d/a")
    seen = await two.synchronize()
    assert seen == top({"a": b"first"}) | {"/a (no longer shared)": b"ben's"}


@pytest.mark.slow
async def test_what_was_refused_beside_a_file_given_by_itself_is_apart_from_it(two: Two) -> None:
    """The same where the folder is still shared: the owner was first with that name."""
    await two.give("d/a")
    await two.ben.pull()
    await Person(two.ben).save_with_backup("Shared/anna/d/a", b"ben's", "create")
    await rename(two.anna, "d/a", "d/elsewhere")
    await save(two.anna, "d/a", b"anna's")
    await two.anna.flush()
    await two.synchronize()
    assert await two.anna.read_all((await two.anna.resolve("d/elsewhere")).ino) == b"first"
    assert b"ben's" in (await shown(two.anna)).values()
