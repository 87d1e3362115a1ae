"""The limit on what a mount moves in one direction, in real time.

Knows: a token bucket, trio's clock, who waits. Must not know: what is moved, HTTP.

A transfer takes a portion, moves it, and takes the next (`take`); so a limit holds for all
transfers together, and a new one for those that are under way. Nothing is moved, and no peer waited
for, inside `take`: so no timeout counts the time in it. What was begun while there was no limit may
be more than a portion: it is `cuttable`, and cancelled when a limit is set.

Concurrency: trio thread only. Whoever waits looks at the bucket when something is due; there is no
task for it. `_moved` is set, and replaced, when something was given out or the rate was changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from remote.transfer.limits import Claim
from remote.transfer.token_bucket import BILLION, TokenBucket

# Trio's clock is a float: this much later is certainly not too early.
_LATER_NS = 1000

UPLOAD_PORTIONS_PER_SECOND = 20
# A portion is a request of its own here.
DOWNLOAD_PORTIONS_PER_SECOND = 4


class Throttle:
    """Lets at most `rate` bytes a second pass; None: all of them, at once. The clock is read when
    the first transfer comes, so one can be made outside trio."""

    def __init__(
        self, rate: int | None = None, *, portions_per_second: int = UPLOAD_PORTIONS_PER_SECOND
    ) -> None:
        self._rate, self._portions_per_second = rate, portions_per_second
        self._bucket: TokenBucket | None = None
        self._moved: trio.Event | None = None
        self._cuttable: set[trio.CancelScope] = set()

    @property
    def rate(self) -> int | None:
        """Bytes a second."""
        return self._rate

    def change(self, rate: int | None) -> None:
        """Go on at `rate`, at once, also what is under way."""
        is_first = self._rate is None and rate is not None
        self._opened().change(rate, _now())
        self._rate = rate
        self._look_again()
        if is_first:
            for scope in self._cuttable:
                scope.cancel()

    async def take(self, most: int, claim: Claim | None = None) -> int:
        """Wait until some of `most` bytes may be moved; how many, at least 1. Urgent claims come
        first. Without a limit it is all of them, without a checkpoint."""
        if self._rate is None:
            return most
        bucket = self._opened()
        turn = bucket.ask(most, claim or Claim())
        try:
            while True:
                due = bucket.advance(_now())
                if turn.portion:
                    self._look_again()
                    return turn.portion
                await self._sleep_until(due)
                if turn.portion:
                    return turn.portion
        except BaseException:
            bucket.leave(turn)
            self._look_again()
            raise

    @contextmanager
    def cuttable(self) -> Iterator[trio.CancelScope]:
        """Around taking a portion and moving it. `cancelled_caught` of the scope: there was no
        limit, and now there is one; what is left is to be taken anew."""
        with trio.CancelScope() as scope:
            self._cuttable.add(scope)
            try:
                yield scope
            finally:
                self._cuttable.discard(scope)

    def _opened(self) -> TokenBucket:
        if self._bucket is None:
            self._bucket = TokenBucket(
                self._rate, _now(), portions_per_second=self._portions_per_second
            )
        return self._bucket

    def _look_again(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None

    async def _sleep_until(self, due: int | None) -> None:
        """Until then, or until something was given out or changed before."""
        assert due is not None  # who asks is waiting
        if self._moved is None:
            self._moved = trio.Event()
        with trio.move_on_at((due + _LATER_NS) / BILLION):
            await self._moved.wait()


def _now() -> int:
    return int(trio.current_time() * BILLION)
