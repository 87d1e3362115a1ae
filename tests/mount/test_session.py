"""Waiting for room for dirty bytes: whoever waits learns of whatever ends the wait."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cache.room import Room
from mount.session import Session


class Full:
    """What `Session.wait_for_room` looks at, with more dirty bytes than may be."""

    def __init__(self) -> None:
        operation = SimpleNamespace(refused=None)
        self.config = SimpleNamespace(dirty_limit=10)
        self.contents = SimpleNamespace(dirty_bytes=10)
        self.subscriber = SimpleNamespace(known_offline=False)
        self.journal: Any = _Journal([operation])
        self.replayer = SimpleNamespace(room=Room())
        self._weather = trio.Event()


class _Journal(list[Any]):
    changed = trio.Event()


async def waited(full: Full, change: Any) -> int | None:
    """The errno that a waiting writer gets once `change` has been made."""
    found: list[int | None] = []

    async def wait() -> None:
        try:
            await Session.wait_for_room(full)  # type: ignore[arg-type]  # as much as it needs
        except OSError as refused:
            found.append(refused.errno)
        else:
            found.append(None)

    full.journal.changed = trio.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            change()
    return found[0]


async def test_a_writer_who_waits_learns_that_a_drive_is_full() -> None:
    full = Full()
    assert await waited(full, lambda: full.replayer.room.refused("their", 0, 0.5)) == errno.EDQUOT


async def test_a_writer_who_waits_learns_that_the_server_is_not_to_be_had() -> None:
    full = Full()

    def offline() -> None:
        full.subscriber.known_offline = True
        full._weather.set()

    assert await waited(full, offline) == errno.ENOSPC


async def test_a_writer_who_waits_goes_on_when_bytes_were_sent() -> None:
    full = Full()

    def sent() -> None:
        full.contents.dirty_bytes = 0
        full.journal.changed.set()

    assert await waited(full, sent) is None


@pytest.mark.parametrize("offline", [True, False])
async def test_what_cannot_end_is_not_waited_for(offline: bool) -> None:
    full = Full()
    full.subscriber.known_offline = offline
    full.journal[:] = [] if not offline else full.journal
    with pytest.raises(OSError, match="wait for the server") as refused:
        await Session.wait_for_room(full)  # type: ignore[arg-type]  # as much as it needs
    assert refused.value.errno == errno.ENOSPC
