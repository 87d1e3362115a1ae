"""The part of a running mount that commands about people, history, trash and devices use.

Knows: how a path becomes a file that the server knows too, how operations are applied past the
journal, and how the mount comes to show what came of them. Must not know: any command (`sharing`,
`links`, `history`, `trash`, `devices`), the control socket.

A command speaks of what the person sees in the mount, and the server may not have it yet: so the
operations on that file go first (`flushed_node`). Afterwards the feed is pulled, so that the mount
shows the result when the command returns (`pull_and_invalidate`).

Concurrency: each command is a task of its own, on the trio thread. Nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import structlog
import trio

from cache.metadata.operations import Op, new_id
from cache.metadata.tree import HISTORY, LOCAL, REVOKED, Node
from mount.config import MountConfig
from mount.control.messages import Progress
from mount.control.paths import resolve
from mount.failures import Failure
from mount.session.session import Session
from remote.http.api import ApiClient
from remote.protocol import backoff, messages
from remote.protocol.errors import AnyProblem, NearlineError, Unavailable, Unreachable
from remote.protocol.ids import FileId

log = structlog.get_logger(__name__)

REPORT_SECONDS = 1.0
# For the kernel, which a request of somebody else may keep waiting.
INVALIDATED_SECONDS = 10.0
TRIES = 3
MIN_GIVEN = 6
_NOT_ON_THE_SERVER = frozenset({LOCAL, HISTORY, REVOKED})

T = TypeVar("T")
Report = Callable[[Progress], Awaitable[None]]


class CommandContext:
    """`invalidated` returns when the kernel has been told everything that changed until now."""

    def __init__(
        self, config: MountConfig, session: Session, invalidated: Callable[[], Awaitable[None]]
    ) -> None:
        self.config, self.session, self._invalidated = config, session, invalidated

    @property
    def client(self) -> ApiClient:
        return self.session.client

    @property
    def name(self) -> str:
        """The account's name, as the server spells it."""
        return str(self.session.db.meta("account") or self.config.account)

    # --- before: what the person sees is what the server has --------------------------------------

    async def flushed_node(self, path: str, report: Report) -> Node:
        """The node at `path`, once the server has every change of it. Raises `NoSuchPath`,
        `Failure` when the server refuses one, `Unreachable` while offline."""
        node = await resolve(self.session, path)
        if node.drive in _NOT_ON_THE_SERVER:
            raise Failure(f"{path} is only how this mount shows something; name a file or folder")
        await self.flush(lambda op: op.ino == node.ino, report)
        refused = [op for op in self.session.journal if op.ino == node.ino and op.refused]
        if refused:
            raise Failure(
                f"the server refused a change of {path or '/'} ({refused[0].refused});"
                " `nearline status` shows what waits"
            )
        return await resolve(self.session, path)  # a version from elsewhere has a node of its own

    async def flush(self, which: Callable[[Op], bool], report: Report) -> None:
        """Return when the server has the changes that `which` picks. Raises `Unreachable` when it
        is, or becomes, known that the server does not answer."""
        self.session.require_online()
        if not any(which(op) for op in self.session.journal):
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, which, report, nursery.cancel_scope)
            await self.session.replayer.flush(which)
            nursery.cancel_scope.cancel()
        self.session.require_online()

    async def _watch(
        self, which: Callable[[Op], bool], report: Report, scope: trio.CancelScope
    ) -> None:
        """Say how far it is, and give up when the server is gone."""
        while True:
            await trio.sleep(REPORT_SECONDS)
            if self.session.offline_because is not None:
                scope.cancel()
                return
            await report(self._progress([op for op in self.session.journal if which(op)]))

    def _progress(self, left: list[Op]) -> Progress:
        progress = self.session.uploader.progress
        sending = [progress[op.key] for op in left if op.key in progress]
        return Progress(
            files_total=len({op.ino for op in left}),
            bytes_done=sum(item.bytes_done for item in sending),
            bytes_total=sum(item.bytes_total for item in sending),
            state="the server gets the latest changes first",
            reason=self.session.replayer.waiting_because,
        )

    # --- the server -------------------------------------------------------------------------------

    async def apply(self, ops: Sequence[messages.Op]) -> list[messages.Applied | AnyProblem]:
        """Apply operations in order, whatever the journal holds; their answers. Sent again with the
        same keys when no answer came, so none is applied twice. Raises NearlineError."""
        if self.config.read_only:
            raise Failure(f"{self.config.mountpoint} is mounted read-only; mount it without that")
        answers: list[messages.Applied | AnyProblem] = []
        for start in range(0, len(ops), messages.MAX_BATCH):
            batch = [
                messages.Keyed(key=new_id(), op=op)
                for op in ops[start : start + messages.MAX_BATCH]
            ]
            answers += await self._answers(batch)
        return answers

    async def _answers(self, batch: list[messages.Keyed]) -> list[messages.Applied | AnyProblem]:
        """A server that others wait for too answers a part of a batch: the rest is sent again,
        which comes to an end, because each time something was applied."""
        answers: list[messages.Applied | AnyProblem] = []
        while batch:
            request = messages.ApplyRequest(batch)
            came = (await self.again(partial(self.client.apply, request))).results
            done = len(came)
            while done and isinstance(came[done - 1], Unavailable):
                done -= 1
            if not any(isinstance(item, messages.Applied) for item in came):
                return answers + came
            answers += came[:done]
            batch = batch[done:]
        return answers

    async def again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask, and a few times more while no answer comes: for what may be carried out twice."""
        for attempt in range(TRIES - 1):
            try:
                return await call()
            except Unreachable as error:
                log.info("asking_again", why=str(error))
                await trio.sleep(backoff.window(attempt))
        return await call()

    # --- after: the person sees what the server has -----------------------------------------------

    async def pull_and_invalidate(self) -> None:
        """Return when the mount shows what is on the server now. What cannot be had now comes with
        the feed, later: what was asked for has been done either way."""
        try:
            await self.session.subscriber.sync()
        except NearlineError as error:
            log.info("not_shown_yet", why=str(error))
            return
        with trio.move_on_after(INVALIDATED_SECONDS):
            await self._invalidated()

    def path_of(self, file: FileId) -> str | None:
        """A path of the file in this mount, or None when it has not been seen here."""
        node = self.session.tree.live(file)
        if node is None:
            return None
        path = self.session.tree.path(node.ino)
        return "" if path == "/" else path


def one_of(ids: Iterable[str], said: str, what: str) -> str:
    """The id that is, ends with, or begins with `said`. Raises `Failure` for none or several."""
    known = list(ids)
    if said in known:
        return said
    found = [item for item in known if item.endswith(said)]
    found = found or [item for item in known if item.startswith(said)]
    if len(said) < MIN_GIVEN:
        raise Failure(f"{said!r} is too short for an id; give {MIN_GIVEN} or more of its digits")
    if not found:
        raise Failure(f"there is no {what} {said}; list them to see what there is")
    if len(found) > 1:
        raise Failure(
            f"{said} means {len(found)} of them ({', '.join(found[:4])}); give a whole id"
        )
    return found[0]
