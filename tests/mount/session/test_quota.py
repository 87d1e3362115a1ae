"""mount/session/quota.py: when the account is asked about again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mount.session.quota import FRESH_SECONDS, AccountWatch


class Journal:
    """Only its event."""

    def __init__(self) -> None:
        self.changed = trio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Site:
    """A watch, and the times at which it asked."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.journal, self.contents = Journal(), SimpleNamespace(dirty_bytes=100)
        parts: Any = (self.journal, self.contents)
        self.watch = AccountWatch(self.refresh, *parts)

    async def refresh(self) -> None:
        self.times.append(trio.current_time())

    async def after(self, seconds: float) -> None:
        """The clock of the tests moves by itself while everybody waits."""
        await trio.sleep(seconds)
        await wait_all_tasks_blocked()


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    site = Site()
    nursery.start_soon(site.watch.run)
    await wait_all_tasks_blocked()
    return site


async def test_it_asks_at_the_start_and_then_only_when_somebody_looks(
    site: Site, autojump_clock: MockClock
) -> None:
    await site.after(1000)
    assert len(site.times) == 1
    site.watch.asked()
    await wait_all_tasks_blocked()
    assert len(site.times) == 2


async def test_a_fresh_answer_is_good_enough(site: Site, autojump_clock: MockClock) -> None:
    await site.after(FRESH_SECONDS / 2)
    site.watch.asked()
    await site.after(1000)
    assert len(site.times) == 1


async def test_many_looks_are_one_question(site: Site, autojump_clock: MockClock) -> None:
    await site.after(1000)
    for _ in range(5):
        site.watch.asked()
        await wait_all_tasks_blocked()
    assert len(site.times) == 2


async def test_an_upload_is_a_reason_but_not_each_of_many(
    site: Site, autojump_clock: MockClock
) -> None:
    for dirty in range(99, 0, -1):
        site.contents.dirty_bytes = dirty
        site.journal.change()
        await wait_all_tasks_blocked()
    await site.after(1000)
    assert site.times == [site.times[0], site.times[0] + FRESH_SECONDS]


async def test_other_changes_are_none(site: Site, autojump_clock: MockClock) -> None:
    site.contents.dirty_bytes = 200
    site.journal.change()
    await site.after(1000)
    assert len(site.times) == 1
