"""The subscriber against a model of a server, on a clock that jumps: no real time passes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from remote.feed.subscriber import (
    BREAK_CAP_SECONDS,
    FeedApi,
    Subscriber,
)
from remote.http.api import ApiClient, NoWebSocket
from remote.protocol.errors import (
    BadRequest,
    NearlineError,
    OutOfStep,
    Refused,
    Unauthorized,
    Unreachable,
)
from remote.protocol.messages import Change, ChangesPage, Hint, Me, SharedRoot

PAGE_SIZE = 10


def change(seq: int) -> Change:
    return Change(drive="d" * 32, seq=seq, at_ns=seq, device="other", files=[], entries=[])


class Server:
    """A drive with a feed: `commit` adds a change and hints it to every socket. It can be made to
    fail, to refuse, to keep no sockets, and to forget its epoch. `calls` says what was asked when.
    """

    def __init__(self) -> None:
        self.head, self.epoch = 0, 1
        self.failure: NearlineError | None = None
        self.has_websocket = self.hints_are_sent = self.hints_carry_changes = True
        self.slow_pull: trio.Event | None = None
        self.distort: Callable[[Hint], list[Hint]] = lambda hint: [hint]
        self.sockets: list[trio.MemorySendChannel[Hint]] = []
        self.calls: list[tuple[str, float]] = []
        self.committed = trio.Event()

    def cursor(self, seq: int) -> str:
        return f"{self.epoch}:{seq}"

    def commit(self, count: int = 1) -> None:
        for _ in range(count):
            self.head += 1
            changes = [change(self.head)] if self.hints_carry_changes else []
            hint = Hint(
                since=self.cursor(self.head - 1),
                cursor=self.cursor(self.head),
                seq=self.head,
                changes=changes,
            )
            seen = self.distort(hint) if self.hints_are_sent else []
            for socket, each in itertools.product(self.sockets, seen):
                socket.send_nowait(each)
        self.committed.set()
        self.committed = trio.Event()

    def cut(self) -> None:
        """Every socket breaks."""
        for socket in self.sockets:
            socket.close()
        self.sockets.clear()

    def called(self, name: str) -> list[float]:
        return [at for called, at in self.calls if called == name]

    async def answer(self, name: str) -> None:
        self.calls.append((name, trio.current_time()))
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure

    # --- FeedApi

    async def me(self) -> Me:
        await self.answer("me")
        return Me(
            account="a",
            device_id="f" * 32,
            drive="d" * 32,
            root="e" * 32,
            cursor=self.cursor(self.head),
            seq=self.head,
            used_bytes=0,
            quota_bytes=None,
            now_ns=0,
        )

    async def changes(self, cursor: str | None) -> ChangesPage:
        await self.answer("changes")
        page = self.page(cursor)
        if self.slow_pull is not None:
            await self.slow_pull.wait()
        return page

    async def wait(self, cursor: str, timeout_s: float) -> ChangesPage:
        await self.answer("wait")
        if cursor == self.cursor(self.head):
            with trio.move_on_after(timeout_s):
                await self.committed.wait()
        return self.page(cursor)

    @asynccontextmanager
    async def live(self, cursor: str) -> AsyncIterator[AsyncIterator[Hint]]:
        await self.answer("live")
        if not self.has_websocket:
            raise NoWebSocket("no upgrade")
        send, receive = trio.open_memory_channel[Hint](1000)
        self.sockets.append(send)
        seq = self.head
        send.send_nowait(Hint(since=self.cursor(seq), cursor=self.cursor(seq), seq=seq))
        with receive:
            yield Hints(receive)

    def page(self, cursor: str | None) -> ChangesPage:
        epoch, _, position = (cursor or "0:0").partition(":")
        if not position:
            raise Refused(BadRequest(message="not a cursor"))
        if int(epoch) != self.epoch:
            return ChangesPage(cursor=self.cursor(self.head), seq=self.head, changes=[], reset=True)
        until = min(self.head, int(position) + PAGE_SIZE)
        changes = [change(seq) for seq in range(int(position) + 1, until + 1)]
        return ChangesPage(
            cursor=self.cursor(until), seq=until, changes=changes, more=until < self.head
        )


class Hints:
    def __init__(self, receive: trio.MemoryReceiveChannel[Hint]) -> None:
        self.receive = receive

    def __aiter__(self) -> Hints:
        return self

    async def __anext__(self) -> Hint:
        try:
            return await self.receive.receive()
        except trio.EndOfChannel:
            raise Unreachable("the socket broke") from None


class FakeTree:
    """A `FeedSink` that insists on seeing every change once, in order."""

    def __init__(self, cursor: str | None = "1:0") -> None:
        self.at = cursor
        self.applied: list[int] = []
        self.resets: list[tuple[str, int]] = []
        self.news = trio.Event()

    def cursor(self) -> str | None:
        return self.at

    async def take(
        self, changes: list[Change], cursor: str, seq: int, shared: list[SharedRoot] | None
    ) -> None:
        self.applied += [item.seq for item in changes]
        assert seq == self.applied[-1]
        self.at = cursor
        self.tell()

    async def reset(self, cursor: str, seq: int, shared: list[SharedRoot] | None) -> None:
        self.resets.append((cursor, seq))
        self.at = cursor
        self.tell()

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def reaches(self, cursor: str) -> None:
        while self.at != cursor:
            await self.news.wait()


class World:
    """A server, a tree and the running subscriber between them, and every mode it went through."""

    def __init__(self, cursor: str | None = "1:0", quiet_after: float = 600.0) -> None:
        self.server, self.tree = Server(), FakeTree(cursor)
        self.modes: list[str] = []
        self.changed = trio.Event()
        self.subscriber = Subscriber(
            self.server,
            self.tree,
            on_change=self.on_change,
            quiet_after=quiet_after,
            jitter=lambda: 0.5,
        )

    def on_change(self) -> None:
        self.modes.append(self.subscriber.mode)
        self.changed.set()
        self.changed = trio.Event()

    async def becomes(self, mode: str) -> None:
        while self.subscriber.mode != mode:
            await self.changed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.subscriber.run)
            with trio.fail_after(100_000):  # of the jumping clock
                yield
            nursery.cancel_scope.cancel()


# --- push ---------------------------------------------------------------------------------------


async def test_it_pulls_first_and_is_then_pushed_to(autojump_clock: MockClock) -> None:
    world = World()
    world.server.commit(25)
    async with world.running():
        await world.becomes("push")
        assert world.tree.applied == list(range(1, 26))
        pulls = len(world.server.called("changes"))
        world.server.commit(3)
        await world.tree.reaches("1:28")
        assert world.tree.applied == list(range(1, 29))
        assert len(world.server.called("changes")) == pulls
        assert world.subscriber.online
        assert world.subscriber.lag_seconds == 0
        assert world.modes == ["poll", "push"]


async def test_a_hint_without_changes_is_pulled(autojump_clock: MockClock) -> None:
    world = World()
    world.server.hints_carry_changes = False
    async with world.running():
        await world.becomes("push")
        world.server.commit(30)
        await world.tree.reaches("1:30")
        assert world.tree.applied == list(range(1, 31))
        assert trio.current_time() == 0  # not by a poll, minutes later


async def test_a_lost_hint_is_made_good_by_the_next(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.hints_are_sent = False
        world.server.commit(5)
        world.server.hints_are_sent = True
        world.server.commit()
        await world.tree.reaches("1:6")
        assert world.tree.applied == list(range(1, 7))
        assert trio.current_time() == 0  # not by a poll, minutes later


async def test_a_change_between_pull_and_socket_is_not_lost(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        world.server.slow_pull = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        world.server.commit()
        world.server.slow_pull.set()
        await world.tree.reaches("1:1")
        assert world.tree.applied == [1]


async def test_hints_that_a_pull_overtook_change_nothing(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.slow_pull = trio.Event()
        world.subscriber.poke()
        await trio.testing.wait_all_tasks_blocked()
        world.server.commit(5)
        world.server.slow_pull.set()
        await world.tree.reaches("1:5")
        world.server.commit()
        await world.tree.reaches("1:6")
        assert world.tree.applied == list(range(1, 7))
        assert trio.current_time() == 0  # not by a poll, minutes later


async def test_more_hints_than_can_wait_become_one_pull(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.slow_pull = trio.Event()
        world.subscriber.poke()
        await trio.testing.wait_all_tasks_blocked()
        world.server.commit(500)
        await trio.testing.wait_all_tasks_blocked()
        world.server.slow_pull.set()
        await world.tree.reaches("1:500")
        assert world.tree.applied == list(range(1, 501))
        assert trio.current_time() == 0  # not by a poll, minutes later


async def test_a_steady_socket_that_breaks_is_replaced_without_going_offline(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        await trio.sleep(100)
        world.server.cut()
        broke_at = trio.current_time()
        world.server.commit()
        await world.tree.reaches("1:1")
        await world.becomes("push")
        assert trio.current_time() == broke_at
        assert "down" not in world.modes


async def test_sockets_that_break_at_once_are_backed_off_from(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        for _ in range(20):
            await world.becomes("push")
            world.server.cut()
            await world.becomes("poll")
        opened = world.server.called("live")
        gaps = [b - a for a, b in itertools.pairwise(opened)]
        assert gaps[0] == 0.25
        assert gaps[-1] == BREAK_CAP_SECONDS / 2
        assert "down" not in world.modes
        broke_at = trio.current_time()
        world.server.commit()
        await world.tree.reaches("1:1")
        assert trio.current_time() - broke_at <= BREAK_CAP_SECONDS  # in use, and no minute behind


# --- quiet --------------------------------------------------------------------------------------


async def test_a_quiet_mount_polls_at_a_growing_interval_and_wakes_on_use(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        await world.becomes("poll")
        assert trio.current_time() >= 600
        before = len(world.server.called("changes"))
        await trio.sleep(600)
        polls = world.server.called("changes")[before - 1 :]
        gaps = [round(b - a) for a, b in itertools.pairwise(polls)]
        assert gaps[:6] == [5, 10, 20, 40, 60, 60]
        assert len(world.server.called("live")) == 1
        world.subscriber.active()
        used_at = trio.current_time()
        await world.becomes("push")
        assert trio.current_time() == used_at


async def test_use_keeps_the_socket(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        for _ in range(50):
            await trio.sleep(500)
            world.subscriber.active()
        assert world.subscriber.mode == "push"
        assert len(world.server.called("live")) == 1


async def test_a_poll_that_finds_something_makes_the_interval_short_again(
    autojump_clock: MockClock,
) -> None:
    world = World(quiet_after=0.0)
    async with world.running():
        await trio.sleep(300)
        world.server.commit()
        await world.tree.reaches("1:1")
        found_at = trio.current_time()
        await trio.sleep(30)
        since = [round(at - found_at) for at in world.server.called("changes")]
        assert [at for at in since if at > 0] == [5, 15]
        assert 0 <= world.subscriber.lag_seconds <= 60


# --- no WebSocket -------------------------------------------------------------------------------


async def test_without_websockets_it_polls_long_and_asks_again_later(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.server.has_websocket = False
    async with world.running():
        await world.becomes("poll")
        await trio.sleep(1)
        world.server.commit()
        committed_at = trio.current_time()
        await world.tree.reaches("1:1")
        assert trio.current_time() == committed_at
        assert world.subscriber.online
        world.server.has_websocket = True
        await world.becomes("push")
        assert trio.current_time() < 400


async def test_a_poke_interrupts_a_long_poll(autojump_clock: MockClock) -> None:
    world = World()
    world.server.has_websocket = False
    async with world.running():
        await trio.sleep(10)
        await world.subscriber.sync()
        assert trio.current_time() == 10


async def test_a_poke_interrupts_the_asking_and_not_the_applying(
    autojump_clock: MockClock,
) -> None:
    """A page is applied in pieces: half of it would have to be told again."""
    world = World()
    world.server.has_websocket = False
    plain, in_hand, begun = world.tree.take, trio.Event(), list[str]()

    async def slow(*page: Any) -> None:
        begun.append(page[1])
        in_hand.set()
        await trio.sleep(1)
        await plain(*page)

    world.tree.take = slow  # type: ignore[method-assign]
    async with world.running():
        await trio.sleep(10)
        world.server.commit()
        await in_hand.wait()
        world.subscriber.poke()
        await world.tree.reaches("1:1")
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["1:1"]


# --- sync ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet_after", [0.0, 600.0])
async def test_sync_returns_after_a_pull_that_began_later(
    autojump_clock: MockClock, quiet_after: float
) -> None:
    world = World(quiet_after=quiet_after)
    world.server.hints_are_sent = False
    async with world.running():
        await trio.sleep(2)
        world.server.commit()
        await world.subscriber.sync()
        assert world.tree.applied == [1]
        assert trio.current_time() == 2


async def test_sync_does_not_count_a_pull_that_was_under_way(autojump_clock: MockClock) -> None:
    world = World()
    world.server.hints_are_sent = False
    async with world.running():
        await world.becomes("push")
        world.server.slow_pull = trio.Event()
        world.subscriber.poke()
        await trio.testing.wait_all_tasks_blocked()
        world.server.commit()  # the pull under way has read the feed already
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.subscriber.sync)
            await trio.testing.wait_all_tasks_blocked()
            world.server.slow_pull.set()
        assert world.tree.applied == [1]


async def test_sync_fails_fast_when_the_server_is_away(autojump_clock: MockClock) -> None:
    world = World()
    world.server.failure = Unreachable("no route")
    async with world.running():
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unreachable, match="no route"):
            await world.subscriber.sync()


async def test_sync_fails_when_the_subscriber_stops(autojump_clock: MockClock) -> None:
    world = World()
    world.server.slow_pull = trio.Event()
    caught: list[str] = []

    async def waits() -> None:
        try:
            await world.subscriber.sync()
        except Unreachable as error:
            caught.append(str(error))

    async with trio.open_nursery() as nursery, world.running():
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Unreachable, match="stopped"):
        await world.subscriber.sync()
    assert caught == ["the change subscriber has stopped"]


# --- failures -----------------------------------------------------------------------------------


async def test_it_goes_down_and_comes_back(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        await trio.sleep(100)
        world.server.failure = Unreachable("no route to host")
        world.server.cut()
        await world.becomes("down")
        assert not world.subscriber.online
        assert world.subscriber.reason == "no route to host"
        await trio.sleep(1000)
        assert world.subscriber.lag_seconds == pytest.approx(1000)
        tries = world.server.called("changes")
        assert max(b - a for a, b in zip(tries[-5:], tries[-4:], strict=False)) == 30.0
        world.server.failure = None
        world.subscriber.active()
        world.server.commit()
        await world.tree.reaches("1:1")
        await world.becomes("push")
        assert world.subscriber.reason is None


async def test_that_the_first_contact_failed_is_told(autojump_clock: MockClock) -> None:
    """The mode is "down" before and after; who waits for the server must hear of it."""
    world = World()
    world.server.failure = Unreachable("no route")
    told = world.changed
    async with world.running():
        assert not world.subscriber.is_offline
        await told.wait()
        assert world.subscriber.is_offline
        assert world.modes == ["down"]


async def test_who_catches_up_after_an_outage_is_not_offline(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page's changes are seen before the last one has come: they can be asked for,
    too."""
    world = World()
    world.server.failure = Unreachable("no route")
    told, plain = world.changed, world.tree.take
    offline: list[tuple[str, bool]] = []

    async def note(*args: Any) -> None:
        await plain(*args)
        offline.append((world.subscriber.mode, world.subscriber.is_offline))

    monkeypatch.setattr(world.tree, "take", note)
    async with world.running():
        await told.wait()
        assert world.subscriber.is_offline
        world.server.commit(2 * PAGE_SIZE)
        world.server.failure = None
        await world.tree.reaches(f"1:{2 * PAGE_SIZE}")
    assert offline == [("down", False)] * 2


async def test_a_page_of_the_past_does_not_make_it_offline(autojump_clock: MockClock) -> None:
    """The server answers: nobody who wants something else of it is told that it does not."""
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.failure = OutOfStep("an old answer")
        world.subscriber.poke()
        await world.becomes("down")
        assert not world.subscriber.is_offline
        world.server.failure = Unreachable("no route")
        told = world.changed
        await told.wait()
        assert world.subscriber.is_offline
        world.server.failure = None
        await world.becomes("push")


@pytest.mark.parametrize("seen", [lambda hint: [hint, hint], lambda hint: [hint, hint, hint]])
async def test_hints_that_come_twice_are_applied_once(
    autojump_clock: MockClock, seen: Callable[[Hint], list[Hint]]
) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.distort = seen
        world.server.commit(5)
        await world.tree.reaches("1:5")
        await trio.testing.wait_all_tasks_blocked()
        assert world.tree.applied == [1, 2, 3, 4, 5]


async def test_hints_out_of_order_lose_nothing(autojump_clock: MockClock) -> None:
    """Each is held back until the next has gone before it."""
    held: list[Hint] = []

    def swap(hint: Hint) -> list[Hint]:
        held.append(hint)
        return [held.pop(), held.pop()] if len(held) == 2 else []

    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.distort = swap
        world.server.commit(6)
        await world.tree.reaches("1:6")
        assert world.tree.applied == [1, 2, 3, 4, 5, 6]


async def test_a_poke_tries_again_at_once(autojump_clock: MockClock) -> None:
    world = World()
    world.server.failure = Unreachable("no route")
    async with world.running():
        await trio.sleep(500)
        world.server.failure = None
        await world.subscriber.sync()
        assert trio.current_time() == 500
        assert world.subscriber.online


async def test_a_refused_token_is_down_with_a_reason_and_asked_seldom(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.server.failure = Refused(Unauthorized(message="log in again"))
    async with world.running():
        await trio.sleep(600)
        assert world.subscriber.mode == "down"
        assert world.subscriber.reason == "log in again"
        assert 10 <= len(world.server.called("changes")) <= 15
        world.server.failure = None
        world.subscriber.active()
        await world.becomes("push")


# --- where to begin -----------------------------------------------------------------------------


async def test_without_a_cursor_it_begins_at_this_moment(autojump_clock: MockClock) -> None:
    world = World(cursor=None)
    world.server.commit(5)
    async with world.running():
        await world.becomes("push")
        assert world.tree.resets == [("1:5", 5)]
        assert world.tree.applied == []


async def test_another_epoch_resets(autojump_clock: MockClock) -> None:
    world = World()
    async with world.running():
        await world.becomes("push")
        world.server.commit(3)
        await world.tree.reaches("1:3")
        world.server.epoch, world.server.head = 2, 1
        world.server.cut()
        await world.tree.reaches("2:1")
        assert world.tree.resets == [("2:1", 1)]
        await world.becomes("push")
        world.server.commit()
        await world.tree.reaches("2:2")
        assert world.tree.applied == [1, 2, 3, 2]


async def test_a_cursor_the_server_does_not_know_resets(autojump_clock: MockClock) -> None:
    world = World(cursor="garbage")
    world.server.commit(3)
    async with world.running():
        await world.becomes("push")
        assert world.tree.resets == [("1:3", 3)]


def test_the_client_is_a_feed_api() -> None:
    api: FeedApi = ApiClient("https://127.0.0.1:1", None)
    assert api is not None
