"""Which drives are full, and when they are tried again."""

from __future__ import annotations

from cache.sync.full_drives import FullDrives


def test_a_full_drive_is_tried_later_and_later() -> None:
    room = FullDrives()
    assert room.may_try("d", 0)
    waits = []
    now = 100.0
    for _ in range(12):
        room.refused("d", now, 0.99)
        found = room.next_try(now)
        assert found is not None
        assert not room.may_try("d", found - 0.01)
        assert room.may_try("d", found)
        waits.append(round(found - now, 6))
        now = found
    assert waits == sorted(waits)
    assert waits[0] < 2 < waits[-1] < 600


def test_drives_are_full_each_for_itself() -> None:
    room = FullDrives()
    room.refused("a", 0, 0.5)
    assert room.is_full("a")
    assert not room.is_full("b")
    assert room.may_try("b", 0)
    room.refused("b", 0, 0.5)
    room.fitted("a")
    assert room.is_short
    room.fitted("b")
    assert not room.is_short
    assert room.next_try(0) is None


def test_a_drive_to_which_nothing_is_to_be_sent_is_not_known_to_be_full() -> None:
    room = FullDrives()
    room.refused("a", 0, 0.5)
    room.refused("b", 0, 0.5)
    told = room.changed
    room.only({"b", "c"})
    assert told.is_set()
    assert not room.is_full("a")
    assert room.is_full("b")


def test_who_waits_is_told_of_changes_only() -> None:
    room = FullDrives()
    first = room.changed
    room.refused("a", 0, 0.5)
    assert first.is_set()
    second = room.changed
    room.refused("a", 5, 0.5, "still full")
    room.fitted("b")
    assert room.reason == "still full"
    assert not second.is_set()
    room.fitted("a")
    assert second.is_set()
    assert room.reason is None


def test_a_person_need_not_wait() -> None:
    room = FullDrives()
    for _ in range(9):
        room.refused("a", 50.0, 0.9)
    room.retry_now()
    assert room.may_try("a", 0.0)
    assert room.is_full("a")
