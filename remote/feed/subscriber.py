"""The change subscriber: keeps what is above in step with the server's change feed.

Knows: when to hold a WebSocket, when to poll. Must not know: what a hint, a page or a failure leads
to (`rules`), what a change means, where the cursor is kept (`FeedSink` does), how requests travel
(`FeedApi` does).

    push   in active use: a WebSocket, after a pull
    poll   quiet for `quiet_after` seconds: pulls at a growing interval, at most a minute apart;
           or in use where no WebSocket is to be had: long polls
    down   the last pull failed; tried again with backoff. The mount is offline then, unless it was
           answered and only the answer made no sense (`OutOfStep`), or more has to be pulled yet

Concurrency: one task runs `run`, and it alone calls the sink, so pulls and hints never interleave.
`active`, `poke`, `sync` and the properties may be used by any task of the same trio run. `_hints`
and `_tickets` are appended to by others and taken by `run`; there is no await between its look at
them and its taking.

Why one class: the modes are states of one task, and hand the cursor, the failures and who waits for
a sync to each other.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import trio

from remote.feed.rules import (
    POLL_FIRST_SECONDS,
    Apply,
    Ignore,
    Pull,
    Reset,
    on_hint,
    on_page,
    poll_interval,
    retry_delay,
)
from remote.http.api import NoWebSocket
from remote.protocol import backoff
from remote.protocol.errors import (
    BadRequest,
    NearlineError,
    OutOfStep,
    ProtocolError,
    Refused,
    Unreachable,
)
from remote.protocol.messages import Change, ChangesPage, Hint, Me, SharedRoot

Mode: TypeAlias = Literal["push", "poll", "down"]

QUIET_AFTER_SECONDS = 600.0
LONG_POLL_SECONDS = 50.0

# How long to be content with long polls before asking for a WebSocket again.
PUSH_AGAIN_SECONDS = 300.0

# A socket that lived so long was a good one: its end starts no backoff.
STEADY_SECONDS = 30.0

# The longest pause after sockets that broke early. Nothing is pulled meanwhile, in a mount that is
# in use of a server that answers: so it is no longer than between the first polls.
BREAK_CAP_SECONDS = POLL_FIRST_SECONDS

NOT_YET = "not connected yet"

# Hints waiting behind a slow pull; beyond that the pull will say it all anyway.
MAX_WAITING_HINTS = 64


# --- the ports ----------------------------------------------------------------------------------


class FeedSink(Protocol):
    """Where changes go. Each method returns when its effect is visible, or raises NotKept when only
    some of it is. The cursor comes last: what has no end is told again."""

    def cursor(self) -> str | None:
        """The position of what was applied; None before the first `reset`."""

    async def take(
        self, changes: list[Change], cursor: str, seq: int, shared: list[SharedRoot] | None
    ) -> None:
        """Apply `changes` in order, and keep `cursor`. A change may come twice. Before them, what
        is shared becomes `shared`, unless that is None."""

    async def reset(self, cursor: str, seq: int, shared: list[SharedRoot] | None) -> None:
        """Forget every listing; what is shared becomes `shared`, unless None; keep `cursor`."""


class FeedApi(Protocol):
    """The part of `api.ApiClient` that this module needs. Raises as that does."""

    async def me(self) -> Me: ...

    async def changes(self, cursor: str | None) -> ChangesPage: ...

    async def wait(self, cursor: str, timeout_s: float) -> ChangesPage: ...

    def live(self, cursor: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]: ...


# --- the shell ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Ticket:
    """Somebody who waits for a pull that begins from now on."""

    done: trio.Event = field(default_factory=trio.Event)
    error: NearlineError | None = None


class Subscriber:
    """Runs the feed into `sink`. Made and used inside a trio run.

    `on_change` is called, from the task of `run`, after `mode`, `online` or `is_offline` has
    changed; it must neither block nor raise. `quiet_after` is in seconds; `jitter` gives numbers in
    [0, 1).
    """

    def __init__(
        self,
        api: FeedApi,
        sink: FeedSink,
        *,
        on_change: Callable[[], None] = lambda: None,
        quiet_after: float = QUIET_AFTER_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api, self._sink = api, sink
        self._on_change, self._quiet_after, self._jitter = on_change, quiet_after, jitter
        self._mode: Mode = "down"
        self._reason: str | None = NOT_YET
        self._active_at = self._in_step_at = trio.current_time()
        self._push_again_at = float("-inf")
        self._seq = -1
        self._failures = self._flaps = self._idle_polls = 0
        self._hints: list[Hint] = []
        self._tickets: list[_Ticket] = []
        self._poked = self._stopped = self._is_answered = False
        self._wake = trio.Event()
        self._interruptible = trio.CancelScope()

    # --- what others see and say ----------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def online(self) -> bool:
        """True if the server answered when it was last asked."""
        return self._mode != "down"

    @property
    def is_offline(self) -> bool:
        """True if the server was asked, and did not answer as it does."""
        return self._mode == "down" and self._reason != NOT_YET and not self._is_answered

    @property
    def reason(self) -> str | None:
        """Why the feed is down, in one line; None when it is not."""
        return self._reason

    @property
    def lag_seconds(self) -> float:
        """Seconds since this was last known to be in step with the server; 0 while pushed to."""
        return 0.0 if self._mode == "push" else trio.current_time() - self._in_step_at

    def active(self) -> None:
        """The mount is in use. Cheap: called with every request."""
        was_quiet = self._is_quiet()
        self._active_at = trio.current_time()
        if was_quiet and self._mode == "poll":
            self._wake.set()

    def poke(self) -> None:
        """Pull now, whatever the mode; also tries again at once when down."""
        self._poked = True
        self._wake.set()
        self._interruptible.cancel()

    async def sync(self) -> None:
        """Return when a pull that began after this call has been applied.

        Raises what that pull raised if it failed, `Unreachable` if `run` has ended.
        """
        if self._stopped:
            raise _stopped()
        ticket = _Ticket()
        self._tickets.append(ticket)
        self.poke()
        await ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error

    # --- the loop -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the feed until cancelled. No answer of the server ends it."""
        try:
            while True:
                try:
                    await self._pull()
                    await self._follow()
                except NearlineError as error:
                    await self._fail(error)
        finally:
            self._stopped = True
            self._answer(self._tickets, _stopped())
            self._become("down", "stopped")

    async def _follow(self) -> None:
        """Having just pulled: stay in step, in the way that fits, until it is time for another."""
        if self._is_quiet():
            await self._poll_slowly()
        elif trio.current_time() < self._push_again_at:
            await self._poll_long()
        else:
            await self._push()

    async def _fail(self, error: NearlineError) -> None:
        self._become("down", str(error), is_answered=isinstance(error, OutOfStep))
        await self._sleep(retry_delay(error, self._failures, self._jitter()))
        self._failures += 1

    # --- pulling --------------------------------------------------------------------------------

    async def _pull(self) -> None:
        """Take every change there is, and answer those who asked for it before it began."""
        self._poked = False
        tickets = list(self._tickets)
        try:
            await self._pull_pages()
        except NearlineError as error:
            self._answer(tickets, error)
            raise
        self._in_step()
        self._answer(tickets, None)

    async def _pull_pages(self) -> None:
        cursor, more = self._sink.cursor(), True
        is_fresh = cursor is None
        if cursor is None:
            cursor = await self._start_over()
        while more:
            try:
                page = await self._api.changes(cursor)
            except Refused as error:
                if is_fresh or not isinstance(error.problem, BadRequest):
                    raise
                # The server does not know this cursor for one of its own.
                cursor, is_fresh = await self._start_over(), True
                continue
            if page.more and self.is_offline:  # nobody sees what it tells, and is refused it
                self._become("down", self._reason, is_answered=True)
            await self._take_page(cursor, page)
            cursor, more = page.cursor, page.more

    async def _start_over(self) -> str:
        """Begin at this moment; what is shared is on the next page."""
        me = await self._api.me()
        await self._take(Reset(me.cursor, me.seq))
        return me.cursor

    async def _take_page(self, cursor: str | None, page: ChangesPage) -> None:
        news = page.changes or page.reset or page.shared is not None
        self._idle_polls = 0 if news else self._idle_polls
        await self._take(on_page(cursor, self._seq, page))

    async def _take(self, step: Apply | Reset | Ignore) -> None:
        match step:
            case Apply(changes, cursor, seq, shared):
                await self._sink.take(changes, cursor, seq, shared)
                self._seq = seq
            case Reset(cursor, seq, shared):
                await self._sink.reset(cursor, seq, shared)
                self._seq = seq
            case Ignore():
                pass

    def _in_step(self) -> None:
        self._in_step_at, self._failures = trio.current_time(), 0
        if self._mode == "down":
            self._become("poll", None)

    def _answer(self, tickets: list[_Ticket], error: NearlineError | None) -> None:
        for ticket in tickets:
            ticket.error = error
            ticket.done.set()
        self._tickets = [item for item in self._tickets if not item.done.is_set()]

    # --- polling --------------------------------------------------------------------------------

    async def _poll_slowly(self) -> None:
        """One wait; the loop pulls after it."""
        await self._sleep(poll_interval(self._idle_polls))
        self._idle_polls += 1

    async def _poll_long(self) -> None:
        while not self._is_quiet() and trio.current_time() < self._push_again_at:
            cursor = self._sink.cursor()
            if self._poked or cursor is None:
                return
            page: ChangesPage | None = None
            with trio.CancelScope() as self._interruptible:
                page = await self._api.wait(cursor, LONG_POLL_SECONDS)
            if page is None:  # poked
                return
            await self._take_page(cursor, page)
            if page.more:
                return
            self._in_step()

    # --- push -----------------------------------------------------------------------------------

    async def _push(self) -> None:
        """Hold a WebSocket until it breaks or the mount falls quiet.

        That a socket breaks says nothing yet about the server: the loop's next pull finds out.
        """
        cursor = self._sink.cursor()
        assert cursor is not None  # a pull has succeeded
        opened_at = trio.current_time()
        try:
            async with self._api.live(cursor) as hints:
                ending = await self._push_session(hints)
        except NoWebSocket:
            self._push_again_at = trio.current_time() + PUSH_AGAIN_SECONDS
            return
        except (Unreachable, ProtocolError) as error:
            ending = error
        if self._mode == "push":
            self._become("poll", None)
        if ending is not None:
            await self._after_break(opened_at)

    async def _after_break(self, opened_at: float) -> None:
        if trio.current_time() - opened_at >= STEADY_SECONDS:
            self._flaps = 0
        else:
            pause = backoff.delay(self._flaps, self._jitter(), cap=BREAK_CAP_SECONDS)
            await self._sleep(pause)
            self._flaps += 1

    async def _push_session(self, hints: AsyncIterator[Hint]) -> NearlineError | None:
        """Follow `hints`; None when it has become quiet, else what broke."""
        self._hints.clear()
        broken: list[NearlineError] = []

        async def read() -> None:
            try:
                async for hint in hints:
                    self._hold(hint)
            except NearlineError as error:
                broken.append(error)
            self._wake.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            self._become("push", None)
            try:
                while not broken and not self._is_quiet():
                    await self._sleep(self._active_at + self._quiet_after - trio.current_time())
                    await self._take_hints()
            except NearlineError as error:
                # Raised behind the nursery, which would wrap it.
                broken.append(error)
            nursery.cancel_scope.cancel()
        self._in_step_at = trio.current_time()
        return broken[0] if broken else None

    def _hold(self, hint: Hint) -> None:
        if len(self._hints) < MAX_WAITING_HINTS:
            self._hints.append(hint)
        else:
            self._poked = True
        self._wake.set()

    async def _take_hints(self) -> None:
        if self._poked:
            await self._pull()
        while self._hints:
            step = on_hint(self._sink.cursor(), self._seq, self._hints.pop(0))
            if isinstance(step, Pull):
                await self._pull()
            else:
                await self._take(step)

    # --- small things ---------------------------------------------------------------------------

    def _is_quiet(self) -> bool:
        return trio.current_time() - self._active_at >= self._quiet_after

    def _become(self, mode: Mode, reason: str | None, *, is_answered: bool = False) -> None:
        before = self._mode, self.is_offline
        self._mode, self._reason, self._is_answered = mode, reason, is_answered
        if (self._mode, self.is_offline) != before:
            self._on_change()

    async def _sleep(self, seconds: float) -> None:
        """Wait until woken, at most `seconds`. Who wakes says why in `_poked`, `_hints`, ..."""
        with trio.move_on_after(max(0.0, seconds)):
            await self._wake.wait()
        self._wake = trio.Event()


def _stopped() -> Unreachable:
    return Unreachable("the change subscriber has stopped")
