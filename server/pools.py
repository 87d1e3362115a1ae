"""Threads whose queue can be looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


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
