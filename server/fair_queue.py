"""Fair queueing of jobs whose length is known only afterwards. Pure.

Knows: who waits with what, and how much time each has had. Must not know: threads, clocks, what a
job does, who anybody is.

Time here is virtual. Each has had some; of those who wait, the one that has had least comes next,
and its jobs come in order. A job is charged when it is done. Who comes new begins where the one
that was served last began: nobody saves up turns by being idle, and nobody pays for ever. So a job
of somebody who asks for little waits for the one under way, and for one job each of those who have
had no more than that. When nobody waits and nothing runs, all is forgotten: memory is bounded by
those who asked since.

Of the jobs of one, `each` run at a time at most: what runs cannot be taken back, and others would
share a processor with all of it.

Concurrency: the caller holds a lock, or is alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

J = TypeVar("J")


class FairQueue(Generic[J]):
    """Jobs that wait, each of somebody. Times are in seconds."""

    def __init__(self, each: int = 1) -> None:
        self._each = each
        self._waiting: dict[Hashable, deque[J]] = {}
        self._had: dict[Hashable, float] = {}
        self._running: Counter[Hashable] = Counter()
        self._now = 0.0

    def jobs(self) -> list[J]:
        """Those that wait."""
        return [job for jobs in self._waiting.values() for job in jobs]

    def wait(self, whose: Hashable, job: J) -> None:
        """`job` waits for its turn, behind the others of `whose`."""
        if whose not in self._waiting:
            self._waiting[whose] = deque()
            self._had[whose] = max(self._had.get(whose, 0.0), self._now)
        self._waiting[whose].append(job)

    def has_next(self) -> bool:
        """True if it is anybody's turn."""
        return any(self._running[item] < self._each for item in self._waiting)

    def take(self) -> tuple[Hashable, J]:
        """Take the next job, and the one whose turn it is; to be `charge`d. Raises IndexError: it
        is nobody's turn."""
        free = [item for item in self._waiting if self._running[item] < self._each]
        if not free:
            raise IndexError("it is nobody's turn")
        whose = min(free, key=self._had.__getitem__)
        jobs = self._waiting[whose]
        job = jobs.popleft()
        if not jobs:
            del self._waiting[whose]
        else:  # who has had the same is served in turn, also when jobs take no time at all
            self._waiting[whose] = self._waiting.pop(whose)
        self._now = max(self._now, self._had[whose])
        self._running[whose] += 1
        return whose, job

    def charge(self, whose: Hashable, seconds: float) -> None:
        """A job of `whose` that was taken is done, and took so long."""
        self._had[whose] += seconds
        self._running[whose] -= 1
        if not self._running[whose]:
            del self._running[whose]
        if not self._running and not self._waiting:
            self._had.clear()
            self._now = 0.0

    def others_wait(self, *but: Hashable) -> bool:
        """True if anybody but these waits."""
        return any(item not in but for item in self._waiting)
