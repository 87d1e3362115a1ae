"""Rows are read out of SQLite's file as SQLite reads them; damage costs the rows of its page."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.recovery.sqlite_pages import PAGE, Broken, Image, Values, lost_of_log
from tests.amounts import amount

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 127, 128, 2**15, 2**23, 2**31, 2**47, -(2**47)]),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=40),
    st.integers(0, 40_000).map(lambda size: b"\xa5" * size),
)


def table(path: Path, rows: list[tuple[object, ...]], *, rowid: bool = True) -> Image:
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    if rowid:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
        db.executemany("INSERT INTO t (a, b) VALUES (?, ?)", rows)
    else:
        db.execute("CREATE TABLE t (id INTEGER, a, b, PRIMARY KEY (id)) WITHOUT ROWID")
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, *row) for i, row in enumerate(rows)])
    db.commit()
    db.close()
    return Image(path.read_bytes())


def read(image: Image, root: int = 2) -> tuple[list[Values], int]:
    """Rows, and how many parts are damaged."""
    rows: list[Values] = []
    broken = 0
    for page in image.walk(root):
        if page is None:
            broken += 1
            continue
        rows += [cell.values for cell in page.cells if cell.values is not None]
    return rows, broken


@settings(max_examples=amount(40, 10), deadline=None)
@given(rows=st.lists(st.tuples(VALUES, VALUES), max_size=60), rowid=st.booleans())
def test_every_row_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, ...]], rowid: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "pages.sqlite"
    found, broken = read(table(path, rows, rowid=rowid))
    assert [row[1:] for row in found] == rows
    assert broken == 0


def test_a_damaged_page_costs_its_own_rows_only(tmp_path: Path) -> None:
    image = table(tmp_path / "t", [(number, "x" * 100) for number in range(2000)])
    leaves = [page for page in image.walk(2) if page is not None and not page.is_interior]
    data = bytearray((tmp_path / "t").read_bytes())
    gone = leaves[len(leaves) // 2]
    data[(gone.number - 1) * PAGE : gone.number * PAGE] = bytes(PAGE)
    found, broken = read(Image(bytes(data)))
    assert broken == 1
    assert len(found) == 2000 - len(gone.cells)


def test_pages_that_were_given_back_are_known(tmp_path: Path) -> None:
    path = tmp_path / "t"
    table(path, [(number, "x" * 100) for number in range(2000)])
    db = sqlite3.connect(path)
    db.execute("DELETE FROM t WHERE id > 100")
    db.commit()
    db.close()
    image = Image(path.read_bytes())
    free = image.free_pages()
    used = {page.number for page in image.walk(2) if page is not None}
    assert free
    assert free | used | {1} == set(range(1, image.page_count + 1))
    data = bytearray(path.read_bytes())
    data[36:40] = b"\0\0\0\1"
    assert Image(bytes(data)).free_pages() is None


def logged(tmp_path: Path) -> tuple[bytes, bytes]:
    """A database, and a log of three transactions after it."""
    path = tmp_path / "t"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(3):
        db.execute("INSERT INTO t (a) VALUES (?)", (number,))
    files = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    db.close()
    return files


def test_the_log_lies_over_the_database(tmp_path: Path) -> None:
    data, log = logged(tmp_path)
    assert [row[1] for row in read(Image(data, log))[0]] == [0, 1, 2]
    assert [row[1] for row in read(Image(data, log[: 32 + 2 * (24 + PAGE)]))[0]] == [0, 1]


def test_a_log_that_says_less_than_was_written_is_noticed(tmp_path: Path) -> None:
    _, log = logged(tmp_path)
    assert not lost_of_log(log, 3)
    assert lost_of_log(log, 1)  # the second transaction is wrong: the third was finished
    assert not lost_of_log(log, 2)  # the last may have been on its way
    assert lost_of_log(b"\xff" + log[1:], 0)
    assert not lost_of_log(b"", 0)
    began_anew = log[:16] + b"newsalts" + log[24:]
    assert lost_of_log(began_anew, 0), "its checksum is not right"


@pytest.mark.parametrize("number", [0, 99])
def test_there_are_no_other_pages(tmp_path: Path, number: int) -> None:
    with pytest.raises(Broken):
        table(tmp_path / "t", [(1, 2)]).bytes(number)


@settings(max_examples=amount(60, 12), deadline=None)
@given(seed=st.randoms(use_true_random=False))
def test_no_damage_makes_reading_fail(
    tmp_path_factory: pytest.TempPathFactory, seed: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "damage.sqlite"
    if not path.exists():
        table(path, [(number, "x" * (number * 7 % 9000)) for number in range(200)])
    data = bytearray(path.read_bytes())
    for _ in range(seed.choice([1, 10, 300])):  # type: ignore[attr-defined]  # a Random
        data[seed.randrange(len(data))] = seed.randrange(256)  # type: ignore[attr-defined]
    image = Image(bytes(data))
    for root in range(1, image.page_count + 1):
        read(image, root)
    image.free_pages()
