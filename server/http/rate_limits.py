"""Limits: on how often, on how many at once, and on how much.

Knows: token buckets (a burst, then a steady rate), places of which each may hold some, and room of
which none may take what the others need. Must not know: who tries or holds, the clock (an argument,
seconds). Pure.

Concurrency: each object belongs to one thread, the event loop's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable


class TokenBuckets:
    """One bucket of `burst` tokens per key, refilled one in `seconds` each.

    Memory is bounded: the keys unused for longest are forgotten beyond `max_keys`, and a forgotten
    bucket is a full one.
    """

    def __init__(self, burst: int, seconds: float, max_keys: int = 10_000) -> None:
        self._burst, self._seconds, self._max_keys = burst, seconds, max_keys
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, now: float) -> float:
        """Take a token. 0.0: taken; else how many seconds until there is one."""
        tokens = self._level(key, now)
        if tokens < 1:
            return (1 - tokens) * self._seconds
        self._store(key, tokens - 1, now)
        return 0.0

    def book(self, key: Hashable, now: float, most_seconds: float) -> tuple[bool, float]:
        """Take a token that may not be there yet: (True, seconds until it is). When that is longer
        than `most_seconds`, take none: (False, seconds until asking again is worth while).

        Who waits for what was booked is slowed down to the rate, and never refused unless very many
        ask at once.
        """
        tokens = self._level(key, now)
        wait = max(0.0, (1 - tokens) * self._seconds)
        if wait > most_seconds:
            return False, wait - most_seconds
        self._store(key, tokens - 1, now)
        return True, wait

    def give_back(self, key: Hashable, now: float) -> None:
        """The try was a good one: it does not count."""
        self._store(key, min(self._burst, self._level(key, now) + 1), now)

    def _level(self, key: Hashable, now: float) -> float:
        tokens, at = self._buckets.get(key, (float(self._burst), now))
        return min(self._burst, tokens + (now - at) / self._seconds)

    def _store(self, key: Hashable, tokens: float, now: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)


class Places:
    """`total` places, of which each holder may have `each`."""

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._held: Counter[Hashable] = Counter()
        self.taken = 0

    def take(self, holder: Hashable) -> bool:
        """Take a place for `holder`; False if there is none."""
        if self.taken >= self._total or self._held[holder] >= self._each:
            return False
        self._held[holder] += 1
        self.taken += 1
        return True

    def leave(self, holder: Hashable) -> None:
        """Give back a place that `holder` took."""
        self.taken -= 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]


class SharedBytes:
    """`total` bytes, of which nobody has more than is left for all others.

    So one alone may have half, two a third each, and so on: who comes anew always finds some.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: Counter[Hashable] = Counter()
        self.taken = 0

    def has(self, holder: Hashable, amount: int) -> bool:
        """True if `holder` could take `amount` more."""
        return self._held[holder] + amount <= self._total - self.taken - amount

    def take(self, holder: Hashable, amount: int) -> bool:
        """Take `amount` for `holder`; False, and nothing is taken, if there is not as much."""
        if not self.has(holder, amount):
            return False
        self._held[holder] += amount
        self.taken += amount
        return True

    def give_back(self, holder: Hashable, amount: int) -> None:
        """Give back what `holder` took."""
        self.taken -= amount
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]
