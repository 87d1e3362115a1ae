"""All that can be read of a damaged state is saved, and the drive gets every dirty byte.

More seeds: NEARLINE_DAMAGE_SEEDS. A failure names its kind of damage, its file and its seed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from cache.metadata.damage import mark
from cache.metadata.tree import ROOT, Node
from cache.recovery import quarantine
from cache.recovery.opening import open_database
from cache.recovery.row_checks import TABLES
from cache.recovery.sqlite_pages import PAGE, Image
from remote.protocol.errors import NearlineError
from tests.amounts import amount
from tests.cache import damage
from tests.cache.damage import Damageable
from tests.model.device import Device
from tests.model.test_devices import check_tables

SEEDS = range(int(os.environ.get("NEARLINE_DAMAGE_SEEDS", "1")))
LOSSES = [  # each table with its root page or without; in a long run with both
    (table, with_root)
    for number, table in enumerate(TABLES)
    for with_root in (True, False)
    if len(SEEDS) > 1 or with_root == bool(number % 2)
]
LOSSES = LOSSES[: amount(len(LOSSES), 1)]
FILES = ("tree.sqlite", "tree.sqlite-wal")


@contextmanager
def built(directory: Path, *, is_moved: bool) -> Iterator[Damageable]:
    async def build() -> Damageable:
        return await damage.build(directory, is_moved=is_moved)

    made = trio.run(build)
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def in_the_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damageable]:
    with built(tmp_path_factory.mktemp("made"), is_moved=False) as found:
        yield found


@pytest.fixture(scope="module")
def in_the_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damageable]:
    with built(tmp_path_factory.mktemp("made"), is_moved=True) as found:
        yield found


@pytest.fixture(params=["in_the_log", "in_the_database"])
def made(request: pytest.FixtureRequest) -> Damageable:
    """For who leaves the server as it is."""
    found: Damageable = request.getfixturevalue(request.param)
    return found


def salvage(state: Path) -> quarantine.Report | None:
    """The report of damage that opening makes, after checking that the quarantine has
    everything."""
    before = {name: (state / name).read_bytes() for name in FILES}
    spool = {path.name: path.read_bytes() for path in (state / "spool").iterdir()}
    open_database(state / "tree.sqlite", state / "spool").close()
    found = list(quarantine.reports(state))
    if not found:
        return None
    [(directory, report)] = found
    assert before == {name: (directory / name).read_bytes() for name in FILES}
    kept = {path.name: path.read_bytes() for path in (directory / "spool").iterdir()}
    assert spool == kept
    return report


@asynccontextmanager
async def opened(made: Damageable, state: Path, *, online: bool) -> AsyncIterator[Device]:
    device = made.device(state)
    try:
        device.network.up = online
        if online or device.tree.find(ROOT) is not None:
            await device.start()
            check_tables(device)
            yield device
    finally:
        device.close()


def find(device: Device, path: str) -> Node | None:
    node: Node | None = device.tree.node(ROOT)
    for name in path.split("/"):
        node = device.tree.child(node.ino, name) if node is not None else None
    return node


async def contents(device: Device) -> dict[int, bytes]:
    """The bytes of every live file, where it can be read."""
    found = {}
    rows = device.db.all("SELECT ino FROM node WHERE live AND kind = 'file'")
    for ino in [row["ino"] for row in rows]:
        try:
            found[ino] = await device.read_all(ino)
        except (OSError, NearlineError):
            continue
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("file", FILES)
async def test_no_damage_keeps_a_state_from_being_opened(
    made: Damageable, tmp_path: Path, file: str, kind: str, seed: int
) -> None:
    """Offline. What can be read is what somebody wrote, and no dirty bytes are out of sight; but
    where the end of the log is gone, files are what they were before that."""
    state = made.copy(tmp_path / "state")
    damage.spoil(state / file, kind, seed)
    report = salvage(state)
    is_cut = report is not None and "lacks its end" in report.why
    async with opened(made, state, online=False) as device:
        read = await contents(device)
        for path, dirty in made.dirty.items():
            node = find(device, path)
            if node is not None and node.ino in read:
                number = int(path.split()[-1])
                older = damage.words(number, 300 + number)
                allowed = {dirty, older, b""} if is_cut else {dirty}
                assert read[node.ino] in allowed, path
            if not is_cut:
                assert dirty in read.values(), path


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("file", FILES)
async def test_whatever_is_damaged_the_server_gets_every_dirty_byte(
    request: pytest.FixtureRequest, tmp_path: Path, file: str, kind: str, seed: int
) -> None:
    built: Damageable = request.getfixturevalue("in_the_log" if seed % 2 else "in_the_database")
    made = built.again(tmp_path)
    state = made.copy(tmp_path / "state")
    damage.spoil(state / file, kind, seed)
    report = salvage(state)
    await everything_arrives(made, state, report)


async def everything_arrives(
    made: Damageable, state: Path, report: quarantine.Report | None
) -> None:
    async with opened(made, state, online=True) as device:
        with trio.fail_after(60):
            await device.sync()
            await device.sync()
        check_tables(device)
        seen = {path[1:]: file[4] for path, file in (await device.everything()).items()}
        history, held = made.server.history(), [op.refused for op in device.journal]
    for path, content in made.clean.items():
        assert content in seen.values(), path
    missing = [path for path, content in made.dirty.items() if content not in seen.values()]
    if report is not None and "lacks its end" in report.why:
        assert len(missing) <= 1  # what was being written when the log was cut: in whole pages
    else:
        assert not missing
        assert set(made.dirty.values()) <= history
        assert not held
    made.server.close()


def lose_table(state: Path, name: str, *, with_root: bool) -> None:
    """Fill every page of a table with rubbish."""
    with sqlite3.connect(state / "tree.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = db.execute(query, (name,)).fetchone()
    db.close()
    data = bytearray((state / "tree.sqlite").read_bytes())
    pages = {page.number for page in Image(bytes(data)).walk(root) if page is not None}
    for page in pages if with_root or len(pages) == 1 else pages - {root}:
        data[(page - 1) * PAGE : page * PAGE] = b"\xee" * PAGE
    (state / "tree.sqlite").write_bytes(data)
    (state / "tree.sqlite-wal").write_bytes(b"")


@pytest.mark.parametrize(("table", "with_root"), LOSSES)
async def test_a_whole_table_can_be_lost(
    in_the_database: Damageable, tmp_path: Path, table: str, with_root: bool
) -> None:
    made = in_the_database.again(tmp_path)
    state = made.copy(tmp_path / "state")
    lose_table(state, table, with_root=with_root)
    report = salvage(state)
    assert report is not None
    assert report.torn == [table]
    await everything_arrives(made, state, report)


async def test_interior_pages_cost_nothing(made: Damageable, tmp_path: Path) -> None:
    """The rows are in the leaves, and each leaf is read for itself."""
    state = made.copy(tmp_path / "state")
    with sqlite3.connect(state / "tree.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        roots = dict(db.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'"))
        rows = {name: db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in TABLES}
    db.close()
    data = bytearray((state / "tree.sqlite").read_bytes())
    image = Image(bytes(data))
    spoiled = []
    for name in ("node", "entry", "op"):  # tables with rowids have no rows in interior pages
        for page in image.walk(roots[name]):
            if page is not None and page.is_interior:
                data[(page.number - 1) * PAGE : page.number * PAGE] = bytes(PAGE)
                spoiled.append(name)
    assert "node" in spoiled
    (state / "tree.sqlite").write_bytes(data)
    (state / "tree.sqlite-wal").write_bytes(b"")
    report = salvage(state)
    assert report is not None
    assert {name: report.rows.get(name, 0) for name in TABLES} == rows


async def test_numbers_are_not_given_twice(made: Damageable, tmp_path: Path) -> None:
    state = made.copy(tmp_path / "state")
    with sqlite3.connect(state / "tree.sqlite") as db:
        given = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
    db.close()
    state = made.copy(tmp_path / "again")
    mark(state, "for this test")
    assert salvage(state) is not None
    with sqlite3.connect(state / "tree.sqlite") as db:
        now = dict(db.execute("SELECT name, seq FROM sqlite_sequence"))
    db.close()
    assert all(now[name] >= given[name] for name in given)


async def test_a_state_that_is_whole_comes_through_salvaging_as_it_was(
    made: Damageable, tmp_path: Path
) -> None:
    """Every name and every byte; only what the server has said is not believed any more."""
    state = made.copy(tmp_path / "state")
    mark(state, "for this test")
    report = salvage(state)
    assert report is not None
    assert (report.torn, report.recovered, report.lost, report.kept) == ([], [], [], [])
    async with opened(made, state, online=False) as device:
        for path, content in made.dirty.items():
            node = find(device, path)
            assert node is not None
            assert await device.read_all(node.ino) == content
        was = made.device(made.copy(tmp_path / "was"))
        ops = [(op.kind, op.key, op.file, op.body) for op in was.journal]
        assert [(op.kind, op.key, op.file, op.body) for op in device.journal] == ops
        assert Counter(kind for kind, *_ in ops)["rename"] > 0
        was.close()


async def test_spool_files_that_are_gone_are_errors_never_zeros(
    made: Damageable, tmp_path: Path
) -> None:
    state = made.copy(tmp_path / "state")
    layers = sorted((state / "spool").iterdir())
    layers[0].unlink()
    layers[1].write_bytes(layers[1].read_bytes()[:10])
    async with opened(made, state, online=False) as device:
        failed = 0
        for path, content in made.dirty.items():
            node = find(device, path)
            assert node is not None
            try:
                assert await device.read_all(node.ino) == content
            except OSError:
                failed += 1
        assert failed == 2


def test_a_salvaged_state_is_not_salvaged_again(made: Damageable, tmp_path: Path) -> None:
    state = made.copy(tmp_path / "state")
    shutil.rmtree(state / "spool")
    damage.spoil(state / "tree.sqlite-wal", "nonsense", 1)
    for _ in range(2):
        open_database(state / "tree.sqlite", state / "spool").close()
    assert len(list(quarantine.reports(state))) == 1
