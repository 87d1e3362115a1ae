"""Signals between the parts that send, which need not know each other.

Knows: that something changed, and whether the server is reached. Must not know: who says so, and
what becomes of it.

Concurrency: on the trio thread, without an await. Whoever waits for `Wake.event` takes it before
he looks at what it is about.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class Wake:
    """Something changed that may make something due."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def __call__(self) -> None:
        self.event.set()

    def sleep(self) -> trio.Event:
        """The event that is set by the next call."""
        self.event = trio.Event()
        return self.event


class Contact:
    """Has what was sent last, since it was `lost`, arrived? `on_change` is told of the answers."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.reachable = False

    def arrived(self) -> None:
        self._tell(True)

    def failed(self) -> None:
        self._tell(False)

    def lost(self) -> None:
        """The server cannot be asked what is new any more."""
        self.reachable = False

    def _tell(self, so: bool) -> None:
        if so != self.reachable:
            self.reachable = so
            self._on_change()
