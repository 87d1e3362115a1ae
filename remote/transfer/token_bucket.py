"""A token bucket with a queue: how many bytes may move now, and whose. Pure, in virtual time.

Knows: a rate, a clock that it is told, who waits. Must not know: trio, what is moved, in which
direction.

The bucket fills at `rate` bytes a second up to `BURST_SECONDS` of it. Who is to move bytes asks,
and is given a portion when the bucket holds it: at most `rate / portions_per_second`, so that those
who wait take turns quickly, and never more than was asked for. Then it asks again, behind the
others. So, for every moment and every mix of those who ask:

- within any t seconds at most rate * t + `burst` bytes are given out;
- urgent claims come first, as in `limits.PrioritySemaphore`; among equals it is first come, first
  served, so that none gets a second portion before another that waited already had its first;
- the bucket is never full while somebody waits, so nothing of the rate is lost to waiting.

A new rate holds for everybody from the next look on. What the bucket holds goes on being there, as
far as it is not more than the new rate's burst; it is empty when there was no rate before, because
nobody knows what was moved a moment ago.

Arithmetic is in whole numbers, so it is exact: times are nanoseconds, the level is in billionths of
a byte.
"""

from __future__ import annotations

from remote.transfer.limits import Claim

# One byte, or one second.
BILLION = 10**9
# Of the rate: what may have been saved up when a transfer begins. A pause between two requests does
# not cost the rate as long as it is shorter.
BURST_SECONDS = 0.5
# Bytes. Smaller portions would be more head than body.
MIN_PORTION = 1024


class Turn:
    """Somebody who wants to move up to `most` bytes; `portion` of them may go, once it is not 0."""

    def __init__(self, most: int, claim: Claim) -> None:
        if most < 1:
            raise ValueError(f"{most} bytes are nothing to wait for")
        self.most, self.claim = most, claim
        self.portion = 0


class TokenBucket:
    """`rate` in bytes a second, None: as fast as it goes. `now` in nanoseconds of any clock that
    does not go backwards. A bucket is full when it is made."""

    def __init__(self, rate: int | None, now: int, *, portions_per_second: int) -> None:
        self._portions_per_second = portions_per_second
        self.rate = rate
        self._level = self._capacity()
        self._at = now
        self._waiting: list[Turn] = []

    @property
    def portion(self) -> int:
        """The most bytes that are given at once under the rate."""
        assert self.rate is not None
        return max(MIN_PORTION, self.rate // self._portions_per_second)

    @property
    def burst(self) -> int:
        """The most bytes that the bucket holds."""
        assert self.rate is not None
        return max(int(self.rate * BURST_SECONDS), self.portion)

    def ask(self, most: int, claim: Claim) -> Turn:
        """Wait in line for a portion of at most `most` bytes: it is given by `advance`."""
        turn = Turn(most, claim)
        self._waiting.append(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """It waits no more. What it was given already is lost: somebody may have moved some of it,
        and giving it back later would make a burst."""
        if turn in self._waiting:
            self._waiting.remove(turn)

    def advance(self, now: int) -> int | None:
        """Give out what can be given at `now`; when there is more to give (None: nobody waits)."""
        self._fill(now)
        while self._waiting:
            turn = next((turn for turn in self._waiting if turn.claim.urgent), self._waiting[0])
            if self.rate is None:
                turn.portion = turn.most
            else:
                portion = min(turn.most, self.portion)
                if (lacking := portion * BILLION - self._level) > 0:
                    return now + -(-lacking // self.rate)
                self._level -= portion * BILLION
                turn.portion = portion
            self._waiting.remove(turn)
        return None

    def change(self, rate: int | None, now: int) -> None:
        """Go on at `rate`. Who waits is given something by the next `advance`."""
        self._fill(now)
        self.rate = rate
        self._level = min(self._level, self._capacity())

    def _fill(self, now: int) -> None:
        if self.rate is not None:
            self._level = min(self._level + (now - self._at) * self.rate, self._capacity())
        self._at = now

    def _capacity(self) -> int:
        return 0 if self.rate is None else self.burst * BILLION
