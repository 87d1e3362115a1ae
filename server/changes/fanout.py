"""Telling those who listen: news of commits inside this process.

Knows: topics, mailboxes, merging. Must not know: how changes come about (`commits`), how they are
read back (`feed`), sockets (`api.live`).

News are hints. They are published after the commit and may be merged or lose their changes, but the
last sequence number of a topic always reaches every subscriber.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from remote.protocol.messages import Change

INLINE_CHANGES = 64
_OF_A_PART = "grant/"


def drive_topic(drive: str) -> str:
    """Every change of a drive: for its owner's devices."""
    return f"drive/{drive}"


def grant_topic(drive: str, file: str) -> str:
    """Changes at and below one file: for those who can see that part of the drive only. With the
    drive in it, so that nothing of one drive is ever found under a file of another one."""
    return f"{_OF_A_PART}{drive}/{file}"


def is_of_a_part(topic: str) -> bool:
    """True if it is a `grant_topic`."""
    return topic.startswith(_OF_A_PART)


def account_topic(account: str) -> str:
    """The topic of changes in what is shared with an account. Nothing is recorded under it."""
    return f"account/{account}"


@dataclass(frozen=True)
class News:
    """Topic `topic` went from `since` to `seq`. `changes` are all between, or empty: pull."""

    topic: str
    epoch: str = ""
    drive: str = ""
    since: int = 0
    seq: int = 0
    changes: tuple[Change, ...] = ()

    def then(self, later: News) -> News:
        """Both in one."""
        made = self.changes + later.changes
        whole = self.seq == later.since and self.changes and later.changes
        kept = made if whole and len(made) <= INLINE_CHANGES else ()
        return News(self.topic, later.epoch, later.drive, self.since, later.seq, kept)


class Closed(Exception):
    """The fan-out is shutting down."""


class Subscription(Protocol):
    async def next(self) -> list[News]:
        """Wait for news since the last call: one of each topic that has any. Raises `Closed`."""


class LocalFanout:
    """The fan-out inside one process.

    Concurrency: `publish` may be called from any thread; everything else, and all state, belongs to
    the event loop's thread.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._topics: dict[str, set[_Mailbox]] = {}
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on `loop` from now on."""
        self._loop = loop

    def publish(self, news: News) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, news)

    @contextmanager
    def subscribe(self, topics: Iterable[str]) -> Iterator[_Mailbox]:
        box, wanted = _Mailbox(), frozenset(topics)
        if self._closed:
            box.close()
        for topic in wanted:
            self._topics.setdefault(topic, set()).add(box)
        try:
            yield box
        finally:
            for topic in wanted:
                self._leave(topic, box)

    def _leave(self, topic: str, box: _Mailbox) -> None:
        self._topics[topic].discard(box)
        if not self._topics[topic]:
            del self._topics[topic]

    def close(self) -> None:
        """Wake every subscriber with `Closed`."""
        self._closed = True
        for boxes in self._topics.values():
            for box in boxes:
                box.close()

    def listeners(self) -> int:
        return len({box for boxes in self._topics.values() for box in boxes})

    def _deliver(self, news: News) -> None:
        for box in self._topics.get(news.topic, ()):
            box.put(news)


class _Mailbox:
    """At most one merged piece of news is kept per topic, so a slow listener costs nothing."""

    def __init__(self) -> None:
        self._news: dict[str, News] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, news: News) -> None:
        held = self._news.get(news.topic)
        self._news[news.topic] = news if held is None else held.then(news)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    async def next(self) -> list[News]:
        await self._wake.wait()
        if self._closed:
            raise Closed
        self._wake.clear()
        news, self._news = list(self._news.values()), {}
        return news
