"""Sends a batch of operations, and takes its answers.

Knows: how large a batch may be, what each answer means for the journal. Must not know: which
operations may be sent (`schedule`), what one says (`encode`), how bytes travel (`uploader`), what
conflicts mean (`resolver`), the kernel.

Concurrency: called by the replayer's one task, one batch under way at a time. An acknowledgement is
in one transaction: journal, tree and layers change together. Those that follow each other share
one, a few at a time; others have their turn between, unless a refusal follows. Should one of these
fail, each gets its own. Whatever the server took while our own disk failed keeps its key, and is
answered the same when it is sent again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio

from cache.files.contents import Contents
from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import Body, Op, new_id, reads, writes
from cache.metadata.tree import Tree
from cache.namespace.merge import Merge
from cache.sync.encode import message
from cache.sync.resolver import Resolver
from cache.sync.retries import Waits
from cache.sync.signals import Contact
from cache.sync.succession import Succession
from cache.sync.uploader import Uploader
from remote.protocol import messages
from remote.protocol.errors import (
    RULES,
    BadRequest,
    ChunksMissing,
    NearlineError,
    Problem,
    Refused,
    Retry,
    TooLarge,
    Unavailable,
)
from remote.protocol.ids import VersionId

log = structlog.get_logger(__name__)

BATCH = 200
# Acknowledgements in one transaction: some milliseconds.
TAKEN_AT_ONCE = 20
# What waits when a batch had no answer at all.
BATCHES = "batches"


class ApplyPort(Protocol):
    """The part of `remote.http.api.ApiClient` that sending batches needs."""

    async def apply(self, request: messages.ApplyRequest) -> messages.ApplyReply: ...


class Batches:
    """`collect` drops nodes nobody needs any more; `hurry` says that what waited for an operation
    need not wait any longer."""

    def __init__(
        self,
        db: Database,
        tree: Tree,
        journal: Journal,
        contents: Contents,
        merge: Merge,
        uploader: Uploader,
        resolver: Resolver,
        port: ApplyPort,
        waits: Waits,
        contact: Contact,
        collect: Callable[[], None],
        hurry: Callable[[], None],
    ) -> None:
        self._db, self._tree, self._journal, self._contents = db, tree, journal, contents
        self._merge, self._uploader, self._resolver, self._port = merge, uploader, resolver, port
        self._succession = Succession(db, tree, journal, uploader)
        self._waits, self._contact = waits, contact
        self._collect, self._hurry = collect, hurry
        self.most = BATCH  # operations sent at a time: fewer after a batch was refused as a whole

    # --- when -------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Forget what is not in the journal any more."""
        self._waits.only(lambda key: key == BATCHES or self._journal.get(key) is not None)

    def may_try(self, now: float) -> bool:
        return self._waits.may_try(BATCHES, now)

    async def make_room(self) -> None:
        """Return when the journal has what room there is to note what is sent. A batch is chosen
        after that: what is chosen before may be folded away meanwhile."""
        await self._db.make_room()

    def nothing_to_send(self) -> None:
        """So there is nothing that could wait."""
        self._waits.done(BATCHES)

    def _try_later(
        self, key: str, problem: Exception, jitter: float | None = None, *, moved: bool = False
    ) -> None:
        """An operation, or all `BATCHES`, are to be sent again later."""
        chance = random.random() if jitter is None else jitter
        told = problem.retry_after if isinstance(problem, NearlineError) else None
        now, why = trio.current_time(), str(problem)
        self._waits.failed(key, why, now, chance, retry_after=told, moved=moved)
        op = self._journal.get(key)
        if op is not None and op.has_content:
            self._uploader.fail(op, why)

    # --- one batch --------------------------------------------------------------------------------

    async def send(self, batch: list[Op]) -> None:
        """Send them, and take the answers. When our own disk fails (full: nothing can be noted),
        they are sent again later."""
        try:
            await self._send(batch)
        except OSError as error:
            self._cannot_note(error)

    def _cannot_note(self, problem: OSError) -> None:
        log.error("cannot_note_what_the_server_answered", why=str(problem))
        self._try_later(BATCHES, problem)

    async def _send(self, batch: list[Op]) -> None:
        with self._db.transaction():
            for op in batch:
                if not op.sent:
                    self._journal.rewrite(op, sent=True)
        batch, keyed = self._messages(batch)
        if not batch:
            return
        try:
            sent_as = self._merge.devices()
            reply = await self._port.apply(messages.ApplyRequest(ops=keyed, sent_as=sent_as))
            self._contact.arrived()
            self._waits.done(BATCHES)
            self.most = min(BATCH, 2 * self.most)
            await self._take_answers(batch, reply)
        except Refused as error:
            await self._refused_whole(batch, error)
        except NearlineError as error:  # what has no answer yet is sent again, as it was
            self._contact.failed()
            self._try_later(BATCHES, error)

    def _messages(self, batch: list[Op]) -> tuple[list[Op], list[messages.Keyed]]:
        """The operations that can be sent, as they are sent. One whose inode is gone (a damaged
        state database) is put aside, so that it holds up nothing but what depends on it."""
        sendable, keyed = [], []
        for op in batch:
            try:
                content = self._uploader.ready.get(op.key)
                said = message(op, self._tree, content)
                keyed.append(messages.Keyed(key=op.key, op=said))
                sendable.append(op)
            except OSError as error:
                self._resolver.refuse(op, None, f"damaged state: {error}")
        return sendable, keyed

    async def _refused_whole(self, batch: list[Op], refusal: Refused) -> None:
        """No operation was answered. A message that is too large, or that the server cannot read,
        would be so for ever: less is sent, down to the operation whose fault it is."""
        if not isinstance(refusal.problem, BadRequest | TooLarge):
            self._try_later(BATCHES, refusal)
        elif len(batch) > 1:
            self.most = len(batch) // 2
        else:
            await self._resolve(batch[0], refusal.problem)

    # --- its answers ------------------------------------------------------------------------------

    async def _take_answers(self, batch: list[Op], reply: messages.ApplyReply) -> None:
        tainted: set[str] = set()
        later: list[tuple[Op, Problem]] = []
        some = any(isinstance(answer, messages.Applied) for answer in reply.results)
        # As they were sent: resolving one may rewrite those behind it.
        sent = [(op.key, writes(op), reads(op) | writes(op)) for op in batch]
        taken = await self._take_together(batch, reply)
        answers = zip(batch, reply.results, sent, strict=True)
        for op, answer, (key, wrote, used) in itertools.islice(answers, taken, None):
            await self._db.make_room()
            if self._journal.get(key) is not op:  # an earlier one took it along, or made it anew
                tainted |= set() if isinstance(answer, messages.Applied) else wrote
                continue
            if isinstance(answer, messages.Applied):
                with self._resolver.putting_aside(op, "acknowledgement"):
                    await self._applied(op, answer)
                continue
            retry = RULES[type(answer)].retry
            if retry is Retry.NEVER and not tainted & used:
                await self._resolve(op, answer)
            else:
                missing = answer.chunks if isinstance(answer, ChunksMissing) else ()
                self._again(op, retry, missing)
                later += [] if retry is Retry.NEVER else [(op, answer)]
            tainted |= wrote
        jitter = random.random()  # the same for all, so that they go in one batch again
        # It was too much for one batch, or others waited, and they have had their turn by now.
        at_once = some and all(isinstance(problem, Unavailable) for _, problem in later)
        for op, problem in later:
            if at_once:
                self._waits.done(op.key)
            else:
                moved = some and isinstance(problem, Unavailable)
                self._try_later(op.key, Refused(problem), jitter, moved=moved)

    async def _take_together(self, batch: list[Op], reply: messages.ApplyReply) -> int:
        """Take the first answers, as far as they are acknowledgements that need nothing else; how
        many were taken."""
        plain = itertools.takewhile(
            lambda pair: self._is_plain(*pair), zip(batch, reply.results, strict=True)
        )
        first = [
            (op, op.key, answer) for op, answer in plain if isinstance(answer, messages.Applied)
        ]
        for at in range(0, len(first), TAKEN_AT_ONCE):
            await self._db.make_room()
            try:
                self._acknowledge_all(first[at : at + TAKEN_AT_ONCE])
            except Exception:  # taken one by one it meets what is there for that
                log.exception("answers_are_taken_one_by_one")
                return at
            if at + TAKEN_AT_ONCE < len(first) == len(batch):
                # Others have a turn, unless a refusal follows: it is resolved before the feed tells
                # what came of it.
                await trio.lowlevel.checkpoint()
        return len(first)

    def _is_plain(self, op: Op, answer: messages.Applied | Problem) -> bool:
        if not isinstance(answer, messages.Applied) or answer.overtaken or op.body.anew:
            return False
        return self._earlier_version(op, answer) is None

    def _acknowledge_all(self, answers: list[tuple[Op, str, messages.Applied]]) -> None:
        done = []
        with self._db.transaction():
            for op, key, answer in answers:
                if self._journal.get(key) is op:  # no earlier one took it along, or made it anew
                    self._acknowledge(op, answer)
                    done.append(op)
        self._merge.after_commit()
        for op in done:
            self._uploader.forget(op)
        self._collect()

    def _acknowledge(self, op: Op, answer: messages.Applied) -> None:
        """In a transaction."""
        content = self._uploader.ready.get(op.key)
        if content is not None:
            self._contents.commit(op.ino, op.file, content.version, content.manifest.size)
        self._succession.acknowledged(op, content, answer.change)
        self._merge.acknowledge(op, answer.change)

    def _earlier_version(self, op: Op, answer: messages.Applied) -> VersionId | None:
        """The version that the server has of what was sent, if that is not the one it was sent
        as."""
        content = self._uploader.ready.get(op.key)
        told = next((item.version for item in answer.change.files if item.id == op.file), None)
        return told if content is not None and told != content.version else None

    def _again(self, op: Op, retry: Retry = Retry.LATER, missing: Sequence[bytes] = ()) -> None:
        """Not applied, and it may be changed again: make it anew and send it later. A refusal that
        was only due to an earlier one is the answer to its key for ever: that needs a new key."""
        if retry is Retry.REPAIR:
            self._uploader.resend(op, missing)
        with self._db.transaction():
            key = new_id() if retry is Retry.NEVER else op.key
            self._journal.rewrite(op, sent=False, key=key)

    async def resolve(self, op: Op, problem: Problem) -> None:
        """Resolve what the server refused for good before it was sent. As `send` when our own disk
        fails."""
        try:
            await self._resolve(op, problem)
        except OSError as error:
            self._cannot_note(error)

    async def _resolve(self, op: Op, problem: Problem) -> None:
        try:
            with self._resolver.putting_aside(op, "resolution"):
                await self._resolver.resolve(op, problem)
            self._hurry()  # what is made below it waits for that
        except NearlineError as error:  # could not ask the server: the answer will be the same
            self._again(op)
            self._try_later(op.key, error)

    async def _applied(self, op: Op, answer: messages.Applied) -> None:
        told = self._earlier_version(op, answer)
        if told is not None:
            self._take_earlier_answer(op, told, answer.change)
            return
        copy = await self._resolver.overtaken(op, answer)
        with self._db.transaction():
            if copy is not None and answer.overtaken is not None:
                self._resolver.keep_copy(op, answer.overtaken, copy)
            self._acknowledge(op, answer)
            if op.body.anew:
                self._tree.update(op.ino, listed=None)
        self._merge.after_commit()
        self._uploader.forget(op)
        self._collect()
        if op.body.anew:
            await self._resolver.look_again(op.ino)

    def _take_earlier_answer(self, op: Op, version: VersionId, change: messages.Change) -> None:
        """The server had applied the operation, as `version`, before this machine lost power and
        with that the knowledge of it: the answer to a key is given again, whatever is sent with it.
        What the server has is newer than what came back here, unless somebody has written into that
        since: then ours is the next version."""
        later = [
            item for item in self._journal.of_file(op.file) if item.has_content and item is not op
        ]
        with self._db.transaction():
            if op.body.before_loss and not later:
                self._contents.discard(op.ino)
                self._tree.update(op.ino, size=self._tree.node(op.ino).base_size)
                self._merge.acknowledge(op, change)
            else:
                body = Body(base=version)
                self._journal.rewrite(op, kind="write", key=new_id(), body=body, sent=False)
        self._merge.after_commit()
        self._uploader.forget(op)
        self._collect()
