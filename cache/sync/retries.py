"""Failed attempts: when each is tried again, and why it waits. Pure: time and chance are arguments.

Knows: how long each thing waits after its failures, and that a line on which everything fails is
better tried with one thing than with all. Must not know: what is tried (`uploads`, `batches`), how.

Nothing here ever gives up: waits grow to a minute (`backoff`), and go on.

Concurrency: on the trio thread, without an await anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remote.protocol.backoff import delay

# Failures in a row after which a line counts as bad.
BAD_AFTER = 8
# Seconds between trials of a bad line: one small question costs nobody anything.
TRIAL_CAP = 8.0


@dataclass
class _Wait:
    why: str
    attempts: int
    until: float
    turn: int


class Waits:
    """Each thing has a key, and waits by itself: one that fails for ever holds up no other. Times
    are in seconds, of any clock that only goes forward; `jitter` is in [0, 1)."""

    def __init__(self) -> None:
        self._waits: dict[str, _Wait] = {}  # who failed last is last
        self._failures = 0

    def __len__(self) -> int:
        return len(self._waits)

    def __contains__(self, key: str) -> bool:
        return key in self._waits

    def failed(
        self,
        key: str,
        why: str,
        now: float,
        jitter: float,
        *,
        retry_after: float | None = None,
        moved: bool = False,
    ) -> None:
        """It failed. `moved`: something of it got through before, so the waits do not grow."""
        known = self._waits.pop(key, None)
        attempts = 0 if known is None or moved else known.attempts
        until = now + delay(attempts, jitter, retry_after=retry_after)
        self._failures += 1
        self._waits[key] = _Wait(why, attempts + 1, until, self._failures)

    def done(self, key: str) -> None:
        """It succeeded, or is not wanted any more."""
        self._waits.pop(key, None)

    def only(self, is_wanted: Callable[[str], bool]) -> None:
        for key in [key for key in self._waits if not is_wanted(key)]:
            del self._waits[key]

    def may_try(self, key: str, now: float) -> bool:
        known = self._waits.get(key)
        return known is None or known.until <= now

    def turn(self, key: str) -> int:
        """Sorts by who has waited longest since it was tried, those first that never failed."""
        known = self._waits.get(key)
        return 0 if known is None else known.turn

    def next_try(self, now: float) -> float | None:
        """When the next of those that still wait may be tried."""
        return min((item.until for item in self._waits.values() if item.until > now), default=None)

    def hurry(self) -> None:
        """Something changed: all may be tried now. If they fail again, their waits go on growing,
        and why they failed is known until they have succeeded."""
        for item in self._waits.values():
            item.until = float("-inf")

    def retry_now(self) -> None:
        """As `hurry`, and what failed before does not count."""
        self.hurry()
        for item in self._waits.values():
            item.attempts = 0

    def why(self, key: str) -> str | None:
        known = self._waits.get(key)
        return None if known is None else known.why

    @property
    def reason(self) -> str | None:
        """Why that waits which failed last; None when nothing waits."""
        return next(reversed(self._waits.values())).why if self._waits else None


class Line:
    """Tells if anything gets through at all. When `BAD_AFTER` attempts in a row have failed the
    line is bad: then one at a time tries it, until one gets through."""

    def __init__(self) -> None:
        self._failures = 0
        self._rounds = 0
        self._until = float("-inf")

    @property
    def is_bad(self) -> bool:
        return self._failures >= BAD_AFTER

    def failed(self, now: float, jitter: float, *, retry_after: float | None = None) -> None:
        self._failures += 1
        if self.is_bad and self._until <= now:  # of those that fail together one counts
            self._until = now + delay(self._rounds, jitter, cap=TRIAL_CAP, retry_after=retry_after)
            self._rounds += 1

    def worked(self) -> None:
        self._failures = self._rounds = 0
        self._until = float("-inf")

    def most(self, now: float, most: int) -> int:
        """The number that may be under way now, where `most` may be on a good line."""
        if not self.is_bad:
            return most
        return min(most, 1) if self._until <= now else 0

    def next_try(self, now: float) -> float | None:
        return self._until if self.is_bad and self._until > now else None
