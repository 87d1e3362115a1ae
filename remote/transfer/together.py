"""Tasks that want the same kind of thing at the same time: one of them does it for all.

Knows: who waits, who acts. Must not know: what is done.

Whoever comes goes at once when it may, alone if need be; whoever comes while nobody may act waits,
and then one of them acts for as many as can be done together. So what is done together grows with
how long it takes, and nobody waits for company.

Concurrency: trio thread only. `act` runs in the task of one of those it acts for. If that task is
cancelled the others are where they were, and another one acts for them. What `take` is given is in
the hands of tasks that wait: it, and the beginning of `act` up to its first checkpoint, may look
into memory that they lent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias, TypeVar

import outcome
import trio

T = TypeVar("T")
R = TypeVar("R")

Answer: TypeAlias = outcome.Outcome[R]


class _Waiting(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.is_queued, self.is_gone = True, False
        self.answer: Answer[R] | None = None
        self.news = trio.Event()  # it has an answer, or nobody leads


class Together(Generic[T, R]):
    """`turn` is held by who acts, and waited for by one at a time, the leader. `take` chooses of
    those who wait then: their numbers, at least one, in the order in which `act` gets them. `act`
    gives the answer to each; to whom it gives None it is done again."""

    def __init__(
        self,
        turn: Callable[[], AbstractAsyncContextManager[Any]],
        take: Callable[[Sequence[T]], Sequence[int]],
        act: Callable[[list[T]], Awaitable[Sequence[Answer[R] | None]]],
    ) -> None:
        self._turn, self._take, self._act = turn, take, act
        self._queue: list[_Waiting[T, R]] = []
        self._is_led = False

    async def do(self, item: T) -> R:
        """Its answer; what `act` raises is raised to the one in whose task it ran."""
        mine = _Waiting[T, R](item)
        self._queue.append(mine)
        try:
            while mine.answer is None:
                if mine.is_queued and not self._is_led:
                    await self._lead()
                else:
                    await mine.news.wait()
                    mine.news = trio.Event()
        finally:
            mine.is_gone = True
            if mine.is_queued:
                self._queue.remove(mine)
            self._appoint()
        return mine.answer.unwrap()

    async def _lead(self) -> None:
        leads = self._is_led = True
        try:
            async with self._turn():
                await trio.lowlevel.checkpoint()  # whoever is about to come may come along
                taken = [self._queue[number] for number in self._take(self._items())]
                self._leave(taken)
                leads = self._is_led = False
                self._appoint()
                try:
                    answers = await self._act([waiting.item for waiting in taken])
                    for waiting, answer in zip(taken, answers, strict=True):
                        waiting.answer = answer
                finally:
                    self._come_back(taken)
        finally:
            if leads:
                self._is_led = False

    def _items(self) -> list[T]:
        return [waiting.item for waiting in self._queue]

    def _leave(self, taken: list[_Waiting[T, R]]) -> None:
        for waiting in taken:
            waiting.is_queued = False
        self._queue = [waiting for waiting in self._queue if waiting.is_queued]

    def _come_back(self, taken: list[_Waiting[T, R]]) -> None:
        for waiting in taken:
            waiting.is_queued = waiting.answer is None and not waiting.is_gone
            waiting.news.set()
        self._queue[:0] = [waiting for waiting in taken if waiting.is_queued]

    def _appoint(self) -> None:
        """Have somebody lead who waits, unless somebody does."""
        if self._queue and not self._is_led:
            self._queue[0].news.set()
