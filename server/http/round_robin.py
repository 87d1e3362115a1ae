"""Taking turns among those that wait: queues do, and in each of them its holders do.

Knows: nothing of what is waited for, nor for how long. Pure.

So who waits in one queue waits for at most one of each other queue between two of its own, and in
its own queue for at most one of each other holder: many jobs of one holder are in nobody's way.

Concurrency: belongs to one thread, the event loop's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    def __init__(self, queues: Iterable[str]) -> None:
        self._queues: OrderedDict[str, OrderedDict[Hashable, deque[T]]] = OrderedDict(
            (item, OrderedDict()) for item in queues
        )

    def join(self, queue: str, holder: Hashable, item: T) -> None:
        """`item` waits behind those of `holder`."""
        self._queues[queue].setdefault(holder, deque()).append(item)

    def leave(self, queue: str, holder: Hashable, item: T) -> None:
        """`item` waits no more, if it did."""
        holders = self._queues[queue]
        items = holders.get(holder, deque())
        if item in items:
            items.remove(item)
            if not items:
                del holders[holder]

    def next(self) -> T | None:
        """Take out the next; None: nobody waits."""
        for queue, holders in list(self._queues.items()):
            if holders:
                self._queues.move_to_end(queue)
                holder, items = holders.popitem(last=False)
                item = items.popleft()
                if items:
                    holders[holder] = items
                return item
        return None
