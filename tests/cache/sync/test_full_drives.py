"""Which drives are full, and when they are tried again."""

from __future__ import annotations

from cache.sync.full_drives import FullDrives


def test_a_full_drive_is_tried_later_and_later() -> None:
    full = FullDrives()
    assert full.may_try("d", 0)
    waits = []
    now = 100.0
    for _ in range(12):
        full.refused("d", now, 0.99)
        found = full.next_try(now)
        assert found is not None
        assert not full.may_try("d", found - 0.01)
        assert full.may_try("d", found)
        waits.append(round(found - now, 6))
        now = found
    assert waits == sorted(waits)
    assert waits[0] < 2 < waits[-1] < 600


def test_drives_are_full_each_for_itself() -> None:
    full = FullDrives()
    full.refused("a", 0, 0.5)
    assert full.is_full("a")
    assert not full.is_full("b")
    assert full.may_try("b", 0)
    full.refused("b", 0, 0.5)
    full.fitted("a")
    assert full.is_short
    full.fitted("b")
    assert not full.is_short
    assert full.next_try(0) is None


def test_a_drive_to_which_nothing_is_to_be_sent_is_not_known_to_be_full() -> None:
    full = FullDrives()
    full.refused("a", 0, 0.5)
    full.refused("b", 0, 0.5)
    told = full.changed
    full.only({"b", "c"})
    assert told.is_set()
    assert not full.is_full("a")
    assert full.is_full("b")


def test_who_waits_is_told_of_changes_only() -> None:
    full = FullDrives()
    first = full.changed
    full.refused("a", 0, 0.5)
    assert first.is_set()
    second = full.changed
    full.refused("a", 5, 0.5, "still full")
    full.fitted("b")
    assert full.reason == "still full"
    assert not second.is_set()
    full.fitted("a")
    assert second.is_set()
    assert full.reason is None


def test_a_person_need_not_wait() -> None:
    full = FullDrives()
    for _ in range(9):
        full.refused("a", 50.0, 0.9)
    full.retry_now()
    assert full.may_try("a", 0.0)
    assert full.is_full("a")
