"""From a snapshot to a manifest: what is cut, what is sent, and files that grow meanwhile."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cache.metadata.manifests import Manifests
from cache.metadata.operations import Op
from cache.metadata.tree import ROOT
from cache.sync import uploader
from cache.sync.prepared import Prepared
from cache.sync.uploader import Uploader
from remote.protocol.chunking import check_cut, is_well_cut
from remote.protocol.codec import Encoded
from remote.protocol.content import HOLE, Manifest, Piece, block_hash, check_manifest
from remote.protocol.errors import Unreachable
from remote.protocol.ids import FileId, VersionId
from remote.transfer.upload import Upload
from tests.cache.state import State

MIB = 1 << 20


class Drive:
    """A `Sender` that keeps plain bytes by chunk id."""

    def __init__(self) -> None:
        self.window = 12 * MIB
        self.plain: dict[bytes, bytes] = {}
        self.sent: list[bytes] = []
        self.uploads: set[str] = set()
        self.fail_after: int | None = None
        self.on_store: Callable[[], None] = lambda: None
        self.held: trio.Event | None = None
        self.waiting = 0
        self.fail_early = False  # what was waiting first

    async def store(self, upload: Upload, chunk: Encoded) -> int:
        await trio.lowlevel.checkpoint()
        self.on_store()
        self.waiting += 1
        is_first = self.waiting == 1
        if self.held is not None:
            await self.held.wait()
        if self.fail_early and is_first:
            raise Unreachable("down")
        self.uploads.add(upload.version)
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise Unreachable("down")
        if chunk.descriptor.id in self.sent:
            return 0
        self.sent.append(chunk.descriptor.id)
        return len(chunk.body)

    async def keep(self, chunk: bytes, plain: memoryview) -> None:
        self.plain[chunk] = bytes(plain)

    def content(self, manifest: Manifest) -> bytes:
        check_manifest(manifest)
        parts = [
            bytes(piece.length) if piece.id == HOLE else self.plain[piece.id]
            for piece in manifest.pieces
        ]
        return b"".join(parts)


class Bench:
    def __init__(self, directory: Path) -> None:
        self.state = State(directory, on_rekey=self._rekeyed, on_change=self._written)
        self.drive = Drive()
        self.assemble()

    def _rekeyed(self, old: str, new: str) -> None:
        self.prepared.rekeyed(old, new)

    def _written(self, ino: int, start: int, stop: int) -> None:
        self.uploader.note_write(ino, start, stop)

    def assemble(self) -> None:
        state, self.manifests = self.state, Manifests(self.state.db)
        self.prepared, self.told = Prepared(), list[Op]()
        self.uploader = Uploader(
            state.db,
            state.tree,
            state.journal,
            state.contents,
            self.drive,  # type: ignore[arg-type]  # the part of Sender that is used
            self._manifest_of,
            self.manifests.keep_manifest,
            self.drive.keep,
            self.prepared,
            on_ready=self.told.append,
            on_arrival=lambda: None,
        )

    async def _manifest_of(self, file: FileId, version: VersionId) -> Manifest:
        found = self.manifests.manifest(version)
        assert found is not None
        return found

    async def finish(self, op: Op) -> Manifest:
        """Prepare it, and let the server take it."""
        await self.uploader.prepare(op)
        content = self.uploader.ready[op.key]
        self.state.versions.bytes[content.version] = self.drive.content(content.manifest)
        with self.state.db.transaction():
            self.state.contents.commit(op.ino, op.file, content.version, content.manifest.size)
            self.state.journal.remove(op)
        self.state.contents.sweep()
        self.uploader.forget(op)
        return content.manifest


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.state.close()


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def test_a_file_and_a_change_in_its_middle(bench: Bench) -> None:
    state, data = bench.state, bytearray(noise(9 * MIB))
    node = await state.save("a", bytes(data))
    first = await bench.finish(next(iter(state.journal)))
    assert bench.drive.content(first) == data
    sent = len(bench.drive.sent)
    await state.contents.write(node.ino, 4 * MIB, b"changed")
    data[4 * MIB : 4 * MIB + 7] = b"changed"
    second = await bench.finish(next(iter(state.journal)))
    assert bench.drive.content(second) == data
    assert len(bench.drive.sent) - sent <= 2  # the neighbourhood only
    assert second.average == first.average


async def test_what_another_program_cut_too_finely_is_cut_anew(bench: Bench) -> None:
    """The server would refuse it again as it is; its holes stay holes."""
    state, data = bench.state, noise(200_000)
    node = await state.save("a", data)
    state.contents.truncate(node.ino, 10 * MIB)
    (op,) = state.journal
    await bench.uploader.prepare(op)
    version = bench.uploader.ready[op.key].version
    await bench.finish(op)
    fine = [Piece(block_hash(data[at : at + 100]), 100) for at in range(0, len(data), 100)]
    manifest = Manifest(10 * MIB, MIB, [*fine, Piece(HOLE, 10 * MIB - len(data))])
    assert not is_well_cut(manifest)
    with state.db.transaction():
        bench.manifests.keep_manifest(version, manifest)
    await state.contents.write(node.ino, 199_000, b"changed")
    await bench.uploader.prepare(next(iter(state.journal)))
    again = next(iter(bench.uploader.ready.values())).manifest
    check_cut(again, few=0)
    first, hole = again.pieces
    assert bench.drive.plain[first.id] == data[:199_000] + b"changed" + data[199_007:]
    assert hole.id == HOLE


async def test_holes_are_not_stored(bench: Bench) -> None:
    state = bench.state
    node = await state.save("a", b"start")
    state.contents.truncate(node.ino, 10**13)
    await state.contents.write(node.ino, 10**13, b"end")
    (op,) = state.journal
    await bench.uploader.prepare(op)
    manifest = bench.uploader.ready[op.key].manifest
    check_manifest(manifest)
    assert manifest.size == 10**13 + 3
    assert len(bench.drive.sent) == 2


async def test_an_empty_file_has_an_empty_manifest(bench: Bench) -> None:
    bench.state.make("a")
    manifest = await bench.finish(next(iter(bench.state.journal)))
    assert (manifest.size, manifest.pieces, bench.drive.sent) == (0, [], [])


async def test_writes_during_the_upload_are_the_next_version(bench: Bench) -> None:
    state, data = bench.state, noise(3 * MIB)
    node = await state.save("a", data)
    (op,) = state.journal
    written = trio.Event()

    async def write() -> None:
        await state.contents.write(node.ino, 0, b"later")
        written.set()

    async with trio.open_nursery() as nursery:

        def once() -> None:
            bench.drive.on_store = lambda: None
            nursery.start_soon(write)

        bench.drive.on_store = once
        first = await bench.finish(op)
        await written.wait()
    assert bench.drive.content(first) == data
    second = await bench.finish(next(iter(state.journal)))
    assert bench.drive.content(second) == b"later" + data[5:]


async def test_it_goes_on_where_it_stopped(bench: Bench) -> None:
    data = noise(6 * MIB)
    await bench.state.save("a", data)
    (op,) = bench.state.journal
    bench.drive.fail_after = 2
    with pytest.raises((Unreachable, BaseExceptionGroup)):
        await bench.uploader.prepare(op)
    version, bench.drive.fail_after = op.version, None
    bench.state.reopen()
    bench.assemble()
    (op,) = bench.state.journal
    assert op.version == version
    assert bench.drive.content(await bench.finish(op)) == data
    assert len(bench.drive.sent) == len(set(bench.drive.sent))


async def test_a_growing_file_is_sent_while_it_grows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what was sent early is written again, and when it is cut off."""
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    state, data = bench.state, bytearray(noise(11 * MIB))
    node = await state.save("a", bytes(data[: 9 * MIB]))
    (op,) = state.journal
    assert bench.uploader.wants_early(node.ino)
    await bench.uploader.send_early(op)
    assert not bench.uploader.wants_early(node.ino)
    early = set(bench.drive.sent)
    assert early
    await state.contents.write(node.ino, 9 * MIB, bytes(data[9 * MIB :]))
    await state.contents.write(node.ino, 100, b"again")
    data[100:105] = b"again"
    state.contents.truncate(node.ino, 10 * MIB)
    manifest = await bench.finish(op)
    assert bench.drive.content(manifest) == data[: 10 * MIB]
    kept = early & {piece.id for piece in manifest.pieces}
    assert kept  # what was sent early was of use
    assert len(bench.drive.uploads) == 1


async def test_a_snapshot_does_not_wait_for_what_is_under_way_early(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own chunks are sent meanwhile, and what was under way is in it once."""
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    data = noise(14 * MIB)
    await bench.state.save("a", data)
    (op,) = bench.state.journal
    bench.drive.held = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.uploader.send_early, op)
        await trio.testing.wait_all_tasks_blocked(0.05)
        early = bench.drive.waiting
        assert early
        nursery.start_soon(bench.uploader.prepare, op)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert bench.drive.waiting > early, "it goes on"
        assert not bench.uploader.ready, "but is not done"
        bench.drive.held.set()
    assert bench.drive.content(await bench.finish(op)) == data
    assert len(bench.drive.sent) == len(set(bench.drive.sent))


async def test_a_snapshot_that_relied_on_what_did_not_arrive_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    data = noise(14 * MIB)
    await bench.state.save("a", data)
    (op,) = bench.state.journal
    bench.drive.held = trio.Event()
    failed: list[bool] = []

    async def expect_failure(work: Callable[[Op], Awaitable[None]]) -> None:
        with pytest.raises((Unreachable, BaseExceptionGroup)):
            await work(op)
        failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_failure, bench.uploader.send_early)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.start_soon(expect_failure, bench.uploader.prepare)
        await trio.testing.wait_all_tasks_blocked(0.05)
        bench.drive.fail_early = True
        bench.drive.held.set()
    assert failed == [True, True]
    assert not bench.uploader.ready
    bench.drive.fail_early = False
    assert bench.drive.content(await bench.finish(op)) == data


async def test_an_early_file_that_shrank_below_what_was_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    state, data = bench.state, noise(9 * MIB)
    node = await state.save("a", data)
    (op,) = state.journal
    await bench.uploader.send_early(op)
    state.contents.truncate(node.ino, MIB)
    assert bench.drive.content(await bench.finish(op)) == data[:MIB]


async def test_an_early_step_that_failed_counts_for_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    state, data = bench.state, noise(9 * MIB)
    await state.save("a", data)
    (op,) = state.journal
    bench.drive.fail_after = 5
    with pytest.raises((Unreachable, BaseExceptionGroup)):
        await bench.uploader.send_early(op)
    bench.drive.fail_after = None
    assert bench.drive.content(await bench.finish(op)) == data


async def test_progress_is_of_the_file_and_follows_a_new_key(bench: Bench) -> None:
    state = bench.state
    await state.save("a", noise(3 * MIB))
    (op,) = state.journal
    seen: list[tuple[str, int, int]] = []

    def look() -> None:
        with state.db.transaction():
            state.journal.rewrite(op, key=f"{len(seen) + 1:032x}")
        progress = bench.uploader.progress[op.key]
        seen.append((progress.path, progress.bytes_done, progress.bytes_total))

    bench.drive.on_store = look
    await bench.finish(op)
    assert seen
    assert {(path, total) for path, _, total in seen} == {("a", 3 * MIB)}
    assert bench.uploader.progress == bench.uploader.ready == {}


async def test_what_was_folded_away_while_its_snapshot_waited_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that is still being written to disk is renamed over another: its creation
    is an operation no more."""
    state = bench.state
    node = await state.save("a")
    (op,) = state.journal

    async def meanwhile() -> None:
        await trio.lowlevel.checkpoint()
        monkeypatch.undo()
        state.unlink("a")

    monkeypatch.setattr(state.contents, "freeze", lambda ino, version: None)
    monkeypatch.setattr(state.contents, "wait_idle", meanwhile)
    await bench.uploader.prepare(op)
    assert list(state.journal) == []
    assert bench.uploader.ready == {}
    assert not state.tree.node(node.ino).live


async def test_what_was_folded_away_before_the_first_step_is_left_alone(bench: Bench) -> None:
    """An editor saves again at the very moment when the upload of its last save is begun: that
    save's operation, whose snapshot was to become the next version, is no more."""
    state = bench.state
    await state.save("letter", b"0")
    await bench.finish(*state.journal)
    await state.save("temporary", noise(1000, 1))
    assert bench.uploader.snapshot(*state.journal)
    state.edits.rename(ROOT, "temporary", ROOT, "letter")
    (op,) = (item for item in state.journal if item.body.renew)
    await state.save("temporary", noise(1000, 2))
    state.edits.rename(ROOT, "temporary", ROOT, "letter")
    assert op not in list(state.journal)
    await bench.uploader.prepare(op)
    assert bench.uploader.ready == bench.uploader.progress == {}


async def test_nothing_is_kept_of_what_was_folded_away_when_its_bytes_were_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    state = bench.state
    await state.save("a", noise(9 * MIB))
    (op,) = state.journal
    await bench.uploader.send_early(op)
    await bench.uploader.prepare(op)
    bench.uploader.tidy(())
    assert list(bench.uploader.ready) == [op.key]
    state.unlink("a")
    bench.uploader.tidy(())
    assert bench.uploader.ready == bench.uploader._early == {}


async def test_a_growing_file_that_is_gone_before_the_first_step_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "EARLY_STEP", 4 * MIB)
    state = bench.state
    node = await state.save("a", noise(9 * MIB))
    (op,) = state.journal
    assert bench.uploader.wants_early(node.ino)
    state.unlink("a")
    state.collector.collect()
    await bench.uploader.send_early(op)
    assert bench.drive.sent == []
