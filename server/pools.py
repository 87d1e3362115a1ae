"""Threads whose queue can be looked at, and threads that take turns.

Knows: how jobs get to threads, and whose they are. Must not know: what a job does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from server.fair_queue import FairQueue

T = TypeVar("T")

# Whose jobs are that the server does of itself: noting arrivals, who was seen, health.
OWN: Final = "the server"
# Whose jobs are of people without an account: visitors of links, logins, tokens not known yet.
# Together they have the turns of one account.
STRANGERS: Final = "strangers"


class Pool(ThreadPoolExecutor):
    """`waiting` is how many jobs are begun or to be begun. Concurrency: any thread."""

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self._count_lock = threading.Lock()  # guards the one below
        self.waiting = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        self._count(1)
        try:
            future = super().submit(fn, *args, **more)
        except RuntimeError:  # shut down
            self._count(-1)
            raise
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def _count(self, change: int) -> None:
        with self._count_lock:
            self.waiting += change


class _Job(NamedTuple):
    future: Future[Any]
    work: Callable[[], Any]


class FairPool(Pool):
    """Threads that everybody has a fair share of, whatever others ask: see `fair_queue`.

    `submit` is for the server's own jobs. The threads are told only that a job waits; which one it
    is, is decided when a thread is free. Nobody has more than half of the threads, or the only one.
    `clock` tells seconds. Concurrency: any thread.
    """

    def __init__(
        self, threads: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(threads, name)
        self._clock = clock
        self._turns_lock = threading.Lock()  # guards the two below
        self._turns: FairQueue[_Job] = FairQueue(each=max(1, threads // 2))
        self._left = 0  # jobs of which a thread was told when it was nobody's turn

    def submit(self, fn: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        return self.submit_for(OWN, lambda: fn(*args, **more))

    def submit_for(self, whose: Hashable, work: Callable[[], T]) -> Future[T]:
        """`work` is done when it is the turn of `whose`, an account's id or one of the above.
        Raises RuntimeError: the threads have ended."""
        future: Future[T] = Future()
        self._count(1)
        with self._turns_lock:  # held over both, so that who is told of a job finds it
            try:
                ThreadPoolExecutor.submit(self, self._next)
            except RuntimeError:  # shut down
                self._count(-1)
                raise
            self._turns.wait(whose, _Job(future, work))
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def turn(self, whose: Hashable, alone: float, shared: float) -> Callable[[], bool]:
        """For a job of `whose` that begins now and can be left in the middle: the answer to whether
        that is to be done. It may take `alone` seconds, and `shared` while others wait."""
        began = self._clock()

        def is_over() -> bool:
            took = self._clock() - began
            return took > alone or (took > shared and self.others_wait(whose))

        return is_over

    def others_wait(self, whose: Hashable) -> bool:
        """True if people but `whose` wait: the server's own jobs are in no hurry."""
        with self._turns_lock:
            return self._turns.others_wait(whose, OWN)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As an executor's. Jobs are cancelled here: the base class knows only that they wait."""
        with self._turns_lock:
            waiting = self._turns.jobs() if cancel_futures else []
        for job in waiting:
            job.future.cancel()
        super().shutdown(wait=wait)

    def _next(self) -> None:
        with self._turns_lock:
            if not self._turns.has_next():
                self._left += 1
                return
            whose, job = self._turns.take()
        self._do(whose, job)
        while (left := self._left_over()) is not None:
            self._do(*left)

    def _do(self, whose: Hashable, job: _Job) -> None:
        began = self._clock()
        try:
            if job.future.set_running_or_notify_cancel():
                _run(job)
        finally:
            with self._turns_lock:
                self._turns.charge(whose, self._clock() - began)

    def _left_over(self) -> tuple[Hashable, _Job] | None:
        """A job whose turn it is now and that no thread will be told of again, if there is one."""
        with self._turns_lock:
            if not self._left or not self._turns.has_next():
                return None
            self._left -= 1
            return self._turns.take()


def _run(job: _Job) -> None:
    try:
        result = job.work()
    except BaseException as error:  # noqa: BLE001  # raised again where the answer is waited for
        job.future.set_exception(error)
    else:
        job.future.set_result(result)
