"""How often somebody may try a password.

Knows: token buckets (a burst, then a steady rate). Must not know: who tries, the clock (an
argument, seconds). Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class TokenBuckets:
    """One bucket of `burst` tokens per key, refilled one in `seconds` each.

    Concurrency: one thread (the event loop). Memory is bounded: the keys unused for longest are
    forgotten beyond `max_keys`, and a forgotten bucket is a full one.
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
