"""The kernel is told of names that are gone for good, so that programs which watch them hear of
it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cache.metadata.invalidation import Invalidation
from cache.metadata.tree import ROOT
from remote.protocol.messages import FileRecord
from tests.cache.state import Kernel, State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


def later(record: FileRecord, **fields: object) -> FileRecord:
    return msgspec.structs.replace(record, **fields)


def test_a_file_that_was_deleted_or_replaced_is_gone(state: State) -> None:
    first, second = state.born("a", 1), state.born("b", 2)
    a, b = state.listing()["a"], state.listing()["b"]
    state.remote(3, [later(first, links=0, rev=3)], [state.entry("a", None, 3)])
    assert state.kernel.gone == [a]
    state.remote(4, [later(second, version="9" * 32, size=7, rev=4)], [])
    assert state.kernel.gone == [a, b]
    assert (ROOT, "b") in state.kernel.entries


def test_a_file_that_has_another_name_is_not(state: State) -> None:
    record = state.born("a", 1)
    names = [state.entry("a", None, 2), state.entry("b", record.id, 2)]
    state.remote(2, [later(record, rev=2)], names)
    state.remote(3, [later(record, links=2, rev=3)], [state.entry("c", record.id, 3)])
    state.remote(4, [later(record, rev=4)], [state.entry("c", None, 4)])
    state.remote(5, [later(record, mode=0o600, rev=5)], [])
    assert state.kernel.gone == []


def test_what_follows_decides(state: State) -> None:
    """The kernel knows it under its old name; that it is gone came with its new one, at once."""
    record = state.born("a", 1)
    ino = state.listing()["a"]
    moved = [state.entry("a", None, 2), state.entry("b", record.id, 2)]
    changes = [
        state.change(2, [later(record, rev=2)], moved),
        state.change(3, [later(record, links=0, rev=3)], [state.entry("b", None, 3)]),
    ]
    state.merge.apply(changes, "3", 3, None)
    assert state.kernel.gone == [ino, ino]


def test_what_is_undone_is_not_told(state: State) -> None:
    kernel = Kernel()
    told = Invalidation(state.db, kernel, lambda ino: True)

    def fails() -> None:
        with state.db.transaction():
            told.forget_entry(ROOT, "a", 5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    told.tell()
    assert (kernel.entries, kernel.gone) == ([], [])
