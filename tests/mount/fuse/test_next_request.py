"""pyfuse3's tasks, which share one descriptor, over a socket instead of the kernel's device."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from mount.fuse import next_request
from mount.fuse.next_request import IN_A_ROW

TASKS = 5


class Device:
    """Reads requests of one byte, as `_session_loop` in pyfuse3 does."""

    def __init__(self, handle: Callable[[int], Awaitable[None]]) -> None:
        self._handle = handle
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._trio: Any = pyfuse3.trio  # type: ignore[attr-defined]  # as that module has it
        self._lock = self._trio.Lock()
        self.ended = 0

    def close(self) -> None:
        self.kernel.close()
        self._ours.close()

    def ask(self, *requests: int) -> None:
        for number in requests:
            self.kernel.send(bytes([number]))

    async def task(self) -> None:
        try:
            while True:
                async with self._lock:
                    await self._trio.lowlevel.wait_readable(self._ours.fileno())
                request = self._ours.recv(1)
                if not request:  # unmounted
                    return
                await self._handle(request[0])
        finally:
            self.ended += 1


@pytest.fixture
def at_once() -> Iterator[None]:
    """Inside the trio run of a test: pytest-trio makes asynchronous fixtures only."""
    before = pyfuse3.trio  # type: ignore[attr-defined]  # as that module has it
    yield
    assert pyfuse3.trio is before  # type: ignore[attr-defined]


async def with_tasks(device: Device, script: Callable[[], Awaitable[None]]) -> None:
    try:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(device.task)
                await trio.testing.wait_all_tasks_blocked()
                await script()
                nursery.cancel_scope.cancel()
    finally:
        device.close()


async def test_who_waits_in_a_request_keeps_no_other_from_being_read(at_once: None) -> None:
    going_on, done = trio.Event(), list[int]()

    async def handle(request: int) -> None:
        if request < 3:
            await going_on.wait()
        done.append(request)

    with next_request.read_at_once():
        device = Device(handle)

        async def script() -> None:
            device.ask(0, 1, 2, 3, 4)
            await trio.testing.wait_all_tasks_blocked()
            assert done == [3, 4]
            going_on.set()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(done) == [0, 1, 2, 3, 4]
            device.ask(5)
            await trio.testing.wait_all_tasks_blocked()
            assert done[-1] == 5

        await with_tasks(device, script)


async def test_all_end_when_there_is_nothing_to_read_any_more(at_once: None) -> None:
    async def handle(request: int) -> None:
        pass

    with next_request.read_at_once():
        device = Device(handle)

        async def script() -> None:
            device.ask(0)
            device.kernel.shutdown(socket.SHUT_RDWR)
            await trio.testing.wait_all_tasks_blocked()
            assert device.ended == TASKS

        await with_tasks(device, script)


async def test_others_run_while_there_is_always_something_to_read(at_once: None) -> None:
    # One comes after a real wait. Tasks run in any order, so two rounds may follow each other.
    most, done, seen = 2 * (IN_A_ROW + 1), list[int](), list[int]()

    async def handle(request: int) -> None:
        done.append(request)

    with next_request.read_at_once():
        device = Device(handle)

        async def other() -> None:
            while True:
                seen.append(len(done))
                await trio.lowlevel.checkpoint()

        async def script() -> None:
            async with trio.open_nursery() as nursery:
                device.ask(*range(4 * IN_A_ROW))
                nursery.start_soon(other)
                while len(done) < 4 * IN_A_ROW:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            gaps = [later - earlier for earlier, later in itertools.pairwise(seen)]
            assert 2 < max(gaps) <= most  # what is there already is not waited for

        await with_tasks(device, script)


async def test_what_is_there_already_is_read_by_the_same_task(at_once: None) -> None:
    who = list[str]()

    async def handle(request: int) -> None:
        who.append(repr(trio.lowlevel.current_task()))

    with next_request.read_at_once():
        device = Device(handle)

        async def script() -> None:
            device.ask(*range(IN_A_ROW))
            await trio.testing.wait_all_tasks_blocked()
            assert len(who) == IN_A_ROW
            assert len({*who}) == 1

        await with_tasks(device, script)


async def test_a_task_that_is_cancelled_hands_on(at_once: None) -> None:
    done = list[int]()

    async def handle(request: int) -> None:
        done.append(request)

    with next_request.read_at_once():
        device = Device(handle)
        first = trio.CancelScope()

        async def cancelled() -> None:
            with first:
                await device.task()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            await trio.testing.wait_all_tasks_blocked()

            async def script() -> None:
                first.cancel()
                await trio.testing.wait_all_tasks_blocked()
                device.ask(7)
                await trio.testing.wait_all_tasks_blocked()
                assert done == [7]

            await with_tasks(device, script)
