"""Rules of the subscriber: the next step after a hint, a page or a failure of the change feed.

Knows: cursors, sequence numbers, which errors a person has to end. Must not know: tasks, sockets,
what a change means. Pure.

Push is only a hint; the feed that is pulled is the truth, so a lost, repeated or late hint can
delay a change but never lose one.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote.protocol import backoff
from remote.protocol.errors import (
    NearlineError,
    OutOfStep,
    Refused,
    Retry,
    Unauthorized,
)
from remote.protocol.messages import Change, ChangesPage, Hint, SharedRoot

POLL_FIRST_SECONDS = 5.0
POLL_CAP_SECONDS = 60.0

# When a person has to do something first (log in again), asking more often helps nobody.
REFUSED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Apply:
    """Take over `shared`, if it is told, and apply `changes` in order; then the position is
    `cursor`, drive sequence `seq`."""

    changes: list[Change]
    cursor: str
    seq: int
    shared: list[SharedRoot] | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget every listing, and go on from `cursor`, drive sequence `seq`."""

    cursor: str
    seq: int
    shared: list[SharedRoot] | None = None


@dataclass(frozen=True, slots=True)
class Pull:
    """Something happened that is not at hand: ask for the changes after the own cursor."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing new."""


def on_hint(cursor: str | None, seq: int, hint: Hint) -> Apply | Pull | Ignore:
    """The action for `hint`, at `cursor` and drive sequence `seq`.

    A hint about the past is one that a pull overtook. It cannot be the first of a new epoch, whose
    sequence may begin lower: an epoch ends with the server process, and so with the socket.
    """
    if hint.cursor == cursor:
        return Ignore()
    if hint.since == cursor and hint.changes:
        return Apply(hint.changes, hint.cursor, hint.seq)
    return Ignore() if cursor is not None and hint.seq < seq else Pull()


def on_page(cursor: str | None, seq: int, page: ChangesPage) -> Apply | Reset | Ignore:
    """The action for the `page` that was asked for at `cursor` and drive sequence `seq`.

    Raises `OutOfStep` for a page that has more behind it but does not move, and for one of the
    past (a proxy may keep answers): for a moment, names that are gone since would be there again.
    """
    if page.reset:
        return Reset(page.cursor, page.seq, page.shared)
    if page.seq < seq:
        raise OutOfStep("the change feed went back: an old answer in the place of a new one")
    if page.cursor != cursor:
        return Apply(page.changes, page.cursor, page.seq, page.shared)
    if page.more or page.changes:
        raise OutOfStep("the change feed does not move: it would be asked for ever")
    return Ignore()


def poll_interval(idle_polls: int) -> float:
    """Seconds between polls after `idle_polls` polls in a row that found nothing."""
    return backoff.window(idle_polls, base=POLL_FIRST_SECONDS, cap=POLL_CAP_SECONDS)


def retry_delay(error: NearlineError, failures: int, jitter: float) -> float:
    """Seconds until the next try after failure number `failures` (from 0); `jitter` in [0, 1)."""
    is_for_good = error.retry is Retry.NEVER
    if isinstance(error, Refused) and (is_for_good or isinstance(error.problem, Unauthorized)):
        return REFUSED_SECONDS * (0.5 + jitter / 2)
    return backoff.delay(failures, jitter, retry_after=error.retry_after)
