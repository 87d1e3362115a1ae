"""Which names were left a moment ago, given a second one, or exchanged: memory alone, no tree."""

from __future__ import annotations

import pytest

from cache.namespace import vacancies
from cache.namespace.vacancies import (
    NEW_SECONDS,
    WINDOW,
    Exchanged,
    Place,
    Vacancies,
    Vacancy,
    is_new,
)
from remote.protocol.ids import uuid7

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
DOC: Place = (1, "doc")
BACKUP: Place = (1, "doc~")
OTHER: Place = (1, "other")
NOW = 1000.0


def left(file: str, place: Place, at: float = NOW, *, ino: int = 7) -> Vacancy:
    return Vacancy(file, ino, place, at)


def test_a_name_that_was_left_is_found_for_as_long_as_the_window() -> None:
    known = Vacancies()
    assert known.find(DOC, NOW) is None
    known.left(left(A, DOC))
    assert known.find(DOC, NOW + WINDOW) == left(A, DOC)
    assert known.find(DOC, NOW + WINDOW + 0.001) is None
    assert known.find((2, "doc"), NOW) is known.find(BACKUP, NOW) is None


def test_a_name_that_is_filled_is_not_vacant() -> None:
    known = Vacancies()
    known.left(left(A, DOC))
    known.filled(OTHER)
    assert known.find(DOC, NOW) is not None
    known.filled(DOC)
    known.filled(DOC)
    assert known.find(DOC, NOW) is None
    known.left(left(A, OTHER, NOW + 1))  # nothing is left of the first
    assert known.find(OTHER, NOW + 1) == left(A, OTHER, NOW + 1)


def test_a_file_that_moves_on_has_left_the_first_name() -> None:
    """Its name in between was given to nobody. When it was left stays too, or a chain of renames
    would never end."""
    known = Vacancies()
    known.left(left(A, DOC))
    known.left(left(A, BACKUP, NOW + 10, ino=8)._replace(gone_on=True))
    assert known.find(BACKUP, NOW + 10) is None
    assert known.find(DOC, NOW + 10) == left(A, DOC, ino=8)._replace(gone_on=True)
    assert known.find(DOC, NOW + WINDOW + 1) is None


def test_after_the_window_it_is_the_next_name_that_was_left() -> None:
    known = Vacancies()
    known.left(left(A, DOC))
    later = NOW + WINDOW + 1
    known.left(left(A, BACKUP, later))
    assert known.find(DOC, later) is None
    assert known.find(BACKUP, later) == left(A, BACKUP, later)


def test_the_last_who_left_a_name_is_the_one() -> None:
    known = Vacancies()
    known.left(left(A, DOC))
    known.left(left(B, DOC, NOW + 1))
    assert known.find(DOC, NOW + 1) == left(B, DOC, NOW + 1)
    known.left(left(A, OTHER, NOW + 2))  # the first has left none any more
    assert known.find(OTHER, NOW + 2) == left(A, OTHER, NOW + 2)
    assert known.find(DOC, NOW + 2) == left(B, DOC, NOW + 1)


def test_the_last_second_name_is_the_backup() -> None:
    known = Vacancies()
    known.linked(A, BACKUP, NOW)
    known.linked(A, OTHER, NOW + 1)
    assert known.backup_of(A, NOW + 1 + WINDOW) == OTHER
    assert known.backup_of(A, NOW + 1.001 + WINDOW) is None
    assert known.backup_of(B, NOW) is None


def test_what_was_exchanged_is_known_of_both() -> None:
    known = Vacancies()
    known.exchanged(A, OTHER, B, DOC, NOW)
    assert known.exchange_of(A, NOW + WINDOW) == Exchanged(OTHER, B, DOC, NOW)
    assert known.exchange_of(B, NOW + WINDOW) == Exchanged(DOC, A, OTHER, NOW)
    assert known.exchange_of(A, NOW + WINDOW + 0.001) is known.exchange_of(C, NOW) is None
    known.exchanged(B, BACKUP, C, DOC, NOW + 1)
    assert known.exchange_of(B, NOW + 1) == Exchanged(BACKUP, C, DOC, NOW + 1)
    assert known.exchange_of(A, NOW + 1) == Exchanged(OTHER, B, DOC, NOW)


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_exchanged_back_was_never_exchanged(turned: bool) -> None:
    known = Vacancies()
    known.exchanged(A, OTHER, B, DOC, NOW)
    back = (B, OTHER, A, DOC) if turned else (A, DOC, B, OTHER)
    known.exchanged(*back, NOW + 1)
    assert known.exchange_of(A, NOW + 1) is known.exchange_of(B, NOW + 1) is None
    known.exchanged(A, OTHER, B, DOC, NOW + 2)
    assert known.exchange_of(A, NOW + 2) == Exchanged(OTHER, B, DOC, NOW + 2)
    later = NOW + 3 + WINDOW  # what is that old was forgotten: this is another exchange
    known.exchanged(A, DOC, B, OTHER, later)
    assert known.exchange_of(A, later) == Exchanged(DOC, B, OTHER, later)


def test_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacancies, "MOST", 2)
    known = Vacancies()
    for file in (A, B, A, C):
        known.left(left(file, (1, file)))
        known.linked(file, BACKUP, NOW)
    assert [known.backup_of(file, NOW) is not None for file in (A, B, C)] == [True, False, True]
    assert known.find((1, B), NOW) is None
    assert known.find((1, C), NOW) == left(C, (1, C))
    known.exchanged(A, DOC, B, OTHER, NOW)
    known.exchanged(C, DOC, "d" * 32, OTHER, NOW)
    assert known.exchange_of(A, NOW) is known.exchange_of(B, NOW) is None
    assert known.exchange_of(C, NOW) == Exchanged(DOC, "d" * 32, OTHER, NOW)


def test_an_id_tells_how_old_a_file_is() -> None:
    made_ns = 1_795_000_000_000_000_000
    file, limit = uuid7(made_ns, b"x" * 10), int(NEW_SECONDS * 1e9)
    assert is_new(file, made_ns)
    assert is_new(file, made_ns + limit)
    assert not is_new(file, made_ns + limit + 1_000_000)
    assert is_new(file, made_ns - limit)  # made by a clock that is ahead of this one
