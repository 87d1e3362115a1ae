"""Which hosts are known to be silent: asking them fails at once, and one probe finds the end of it.

Knows: per origin (scheme, host, port) what was heard of it, who is asking it, and when to probe.
Must not know: what is asked, what an answer means, HTTP.

A host is silent when nobody there says anything: no answer in time, no route, no such name. A
refused connection or an error is no silence: it comes at once, and costs nothing to ask for again.
Each host is judged by itself, because content may come from another one than the API does.

It is taken for silent when a question of the change feed, or `STRIKES` others in a row, had no
answer while nothing else was heard of it either: an answer to anybody, or a piece of one. So a host
that is slow, or busy with something large, is not silent. From then on:
- who asks is told so at once (`Unreachable`), and so is who was asking when it became known;
- one probe asks the host at growing intervals, sooner while somebody wants something of it;
- the first sign of life, to the probe or to the feed (which goes on by itself), ends it.

Concurrency: trio thread only. `_hosts` is changed without checkpoints. Without `run` there is
nobody who would probe, so nothing is ever taken for silent.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog
import trio

from remote.protocol import backoff
from remote.protocol.errors import Silent, Unreachable

# One question may have been sent into a connection that somebody on the way forgot.
STRIKES = 2
# Between probes while somebody wants something of the host.
WANTED_SECONDS = 1.0

_PORTS = {"http": 80, "https": 443}

log = structlog.get_logger(__name__)

Probe = Callable[[str], Awaitable[bool]]


def origin_of(url: str) -> str:
    """The scheme, host and port of `url`, as a URL without a path."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or _PORTS.get(parts.scheme, 0)}"


class _Silence:
    def __init__(self, why: str) -> None:
        self.why = why
        self.wanted = trio.Event()
        self.probing = trio.CancelScope()


@dataclass
class _Host:
    signs: int = 0  # how often something was heard of it
    strikes: int = 0  # questions without an answer since
    silence: _Silence | None = None
    asking: dict[trio.CancelScope, str] = field(default_factory=dict)  # why it was cancelled


class Connectivity:
    """`probe` asks an origin for anything at all; True: it is not silent."""

    def __init__(self, probe: Probe, *, jitter: Callable[[], float] = random.random) -> None:
        self._probe, self._jitter = probe, jitter
        self._hosts: dict[str, _Host] = {}
        self._nursery: trio.Nursery | None = None
        self._on_change: Callable[[str], None] = lambda _origin: None

    async def run(self, on_change: Callable[[str], None]) -> None:
        """Judge and probe until cancelled. `on_change` is called with an origin that became, or is
        no longer, silent, or is suspected to be; it must neither block nor raise."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._on_change = nursery, on_change
            try:
                await trio.sleep_forever()
            finally:
                self._nursery, self._on_change = None, lambda _origin: None

    def silence(self, origin: str) -> str | None:
        """Why nobody can reach it, in one line; None unless it is known to be silent."""
        silence = self._host(origin).silence
        return None if silence is None else silence.why

    def heard(self, origin: str) -> None:
        """A sign of life."""
        host = self._host(origin)
        host.signs += 1
        host.strikes = 0
        if (silence := host.silence) is not None:
            host.silence = None
            silence.probing.cancel()
            log.info("heard_again", origin=origin)
            self._on_change(origin)

    @contextmanager
    def asking(self, origin: str, *, for_feed: bool = False) -> Iterator[None]:
        """Around one question. `for_feed`: it is asked also while the host is silent, and finds
        out for everybody.

        Raises `Unreachable` when the host is known to be silent, or becomes so meanwhile."""
        host = self._host(origin)
        if host.silence is not None and not for_feed:
            host.silence.wanted.set()
            raise _offline(host.silence.why)
        signs, scope, why = host.signs, trio.CancelScope(), ""
        if not for_feed:
            host.asking[scope] = ""
        try:
            with scope:
                yield
        except Silent as error:
            if host.signs == signs:
                self._unanswered(origin, host, str(error), for_feed)
            raise
        finally:
            why = host.asking.pop(scope, "")
        if scope.cancelled_caught:
            raise _offline(why)

    def _host(self, origin: str) -> _Host:
        host = self._hosts.get(origin)  # most often there: asked for each piece of a body
        if host is None:
            host = self._hosts[origin] = _Host()
        return host

    def _unanswered(self, origin: str, host: _Host, why: str, for_feed: bool) -> None:
        if self._nursery is None or host.silence is not None:
            return
        host.strikes += 1
        if for_feed or host.strikes >= STRIKES:
            log.info("silent", origin=origin, why=why)
            host.silence = _Silence(why)
            for scope in host.asking:
                host.asking[scope] = why
                scope.cancel()
            self._nursery.start_soon(self._listen, origin, host.silence)
        self._on_change(origin)

    async def _listen(self, origin: str, silence: _Silence) -> None:
        with silence.probing:
            for attempt in itertools.count():
                if await self._probe(origin):
                    self.heard(origin)
                pause = backoff.delay(attempt, self._jitter())
                await trio.sleep(min(pause, WANTED_SECONDS))
                with trio.move_on_after(max(0.0, pause - WANTED_SECONDS)):
                    await silence.wanted.wait()
                silence.wanted = trio.Event()


def _offline(why: str) -> Unreachable:
    return Unreachable(f"offline: {why}")
