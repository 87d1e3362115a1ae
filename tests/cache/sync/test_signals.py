"""Signals: those who are told, and when."""

from __future__ import annotations

from cache.sync.signals import Contact, Wake


def test_contact_tells_of_changes_only_and_not_of_a_loss() -> None:
    """Whoever says that it is lost knows."""
    told: list[bool] = []
    contact = Contact(lambda: told.append(contact.reachable))
    contact.failed()
    assert told == []
    contact.arrived()
    contact.arrived()
    assert told == [True]
    contact.lost()
    assert (told, contact.reachable) == ([True], False)
    contact.failed()
    contact.arrived()
    assert told == [True, True]
    contact.failed()
    assert told == [True, True, False]


def test_a_wake_before_the_sleep_is_of_the_look_before() -> None:
    wake = Wake()
    wake()
    first = wake.sleep()
    assert not first.is_set()
    wake()
    wake()
    assert first.is_set()
    assert not wake.sleep().is_set()
