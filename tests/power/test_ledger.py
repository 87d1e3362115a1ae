"""The rules of the ledger accept what power loss may leave, and nothing else."""

from __future__ import annotations

import pytest

from tests.power.ledger import SECTOR, Act, Ledger, Seen, explain, stamped

OLD, NEW = stamped(1, 1, 0, 4 * SECTOR), stamped(1, 2, 0, 4 * SECTOR)


def ledger(*acts: Act) -> Ledger:
    """Act number n begins at 10n and ends at 10n + 5."""
    found = Ledger()
    for number, act in enumerate(acts):
        found.begin(act, 10 * number).end = 10 * number + 5
    return found


def seen(**bodies: bytes) -> dict[str, Seen]:
    return {name: Seen(0o644, (), body) for name, body in bodies.items()}


MADE = (
    Act("create", "a", 1, mode=0o644),
    Act("write", "a", 1, data=OLD),
    Act("fsync", "a", 1),
    Act("create", "b", 2, mode=0o644),
)


def test_what_was_not_synced_may_be_there_or_not() -> None:
    one = ledger(*MADE)
    assert one.complaint({}, 24) is None
    assert one.complaint(seen(a=b""), 24) is None
    assert one.complaint(seen(a=OLD), 24) is None


def test_what_was_synced_is_there_whole() -> None:
    one = ledger(*MADE)
    assert one.complaint(seen(a=OLD), 25) is None
    for wrong in ({}, seen(a=b""), seen(a=OLD[:-1]), seen(a=NEW), seen(a=OLD, b=b"")):
        assert one.complaint(wrong, 25) is not None


def test_names_are_those_of_one_moment() -> None:
    one = ledger(
        *MADE,
        Act("rename", "a", 1, to="c"),
        Act("chmod", "c", 1, mode=0o600),
        Act("mkdir", "d", mode=0o755),
    )
    assert one.complaint(seen(a=OLD), 99) is None
    assert one.complaint(seen(c=OLD, b=b""), 99) is None
    assert one.complaint(seen(a=OLD, b=b"", c=OLD), 99) is not None
    assert one.complaint(seen(c=OLD), 99) is not None
    directory = {"d": Seen(0o755, (), None)}
    assert one.complaint(seen(c=OLD, b=b"") | directory, 99) is not None  # before the chmod
    private = {"c": Seen(0o600, (), OLD)}
    assert one.complaint(seen(b=b"") | directory | private, 99) is None


def test_what_is_in_a_directory_moves_with_it() -> None:
    one = ledger(
        Act("mkdir", "d", mode=0o755),
        Act("create", "d/a", 1, mode=0o644),
        Act("rename", "d", to="e"),
    )
    assert set(one.now) == {"e", "e/a"}


def test_a_renamed_over_file_is_whole_if_the_rename_is_there() -> None:
    one = ledger(
        *MADE[:3],
        Act("create", "t", 2, mode=0o644),
        Act("write", "t", 2, data=NEW),
        Act("rename", "t", 2, to="a"),
    )
    assert one.complaint(seen(a=OLD), 99) is None
    assert one.complaint(seen(a=OLD, t=b""), 99) is None
    assert one.complaint(seen(a=NEW), 99) is None
    assert one.complaint(seen(a=NEW[:SECTOR]), 99) is not None
    assert one.complaint(seen(a=b""), 99) is not None


def test_an_overwritten_file_is_old_or_new_sector_by_sector() -> None:
    moments = [(2, OLD), (4, NEW)]
    assert explain(OLD[:SECTOR] + NEW[SECTOR:], moments, 3) is None
    assert explain(OLD[: SECTOR + 16] + NEW[SECTOR + 16 :], moments, 3) is not None
    assert explain(OLD, moments, 4) is not None  # older than promised
    assert explain(OLD[:SECTOR] + bytes(SECTOR) + NEW[2 * SECTOR :], moments, 3) is not None


def test_zeros_are_where_the_file_held_zeros() -> None:
    hole = bytes(SECTOR) + NEW[SECTOR:]
    assert explain(hole, [(1, b""), (2, hole)], 0) is None
    assert explain(bytes(SECTOR), [(1, b""), (2, NEW)], 0) is not None


@pytest.mark.parametrize("size", [0, SECTOR, 2 * SECTOR])
def test_a_file_written_anew_is_the_old_one_or_the_new_one(size: int) -> None:
    moments = [(1, OLD), (2, b""), (3, NEW)]
    assert explain(OLD, moments, 1) is None
    assert explain(NEW[:size], moments, 1) is None
    assert explain(NEW[:SECTOR] + OLD[SECTOR:], moments, 1) is not None
    assert explain(OLD[:SECTOR], moments, 1) is not None


def test_stamps_are_the_same_however_they_are_cut() -> None:
    assert stamped(1, 2, 37, 100) == stamped(1, 2, 0, 400)[37:137]
