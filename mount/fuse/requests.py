"""The common part of the kernel's requests: errnos, and answers with attributes.

Knows: how an exception becomes the errno of a system call, and what the kernel is told of a node.
Must not know: any one request (`name_requests`, `file_requests`, `directory_requests`,
`attribute_requests`).

Every handler goes through `request`, the one place where exceptions become errnos: pyfuse3 ends
the whole mount on any other.

Concurrency: handlers run interleaved at every await, on the trio thread; edits of the tree
themselves contain none.
"""

from __future__ import annotations

import errno
import functools
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog
import trio

from cache.metadata.tree import Node
from mount.fuse.attributes import Ownership, attributes
from mount.fuse.handles import Handles
from mount.fuse.invalidator import LookupCounts
from mount.fuse.turns import Turns
from mount.session.interrupts import CALLER, Caller
from mount.session.session import Session
from remote.protocol.errors import NearlineError

log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R", bound="Requests")
T = TypeVar("T")


def request(
    handler: Callable[Concatenate[R, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[R, P], Coroutine[Any, Any, T]]:
    """Map every exception of a handler to the errno its system call returns; log the unexpected."""

    @functools.wraps(handler)
    async def wrapped(self: R, *args: P.args, **kwargs: P.kwargs) -> T:
        self._session.replayer.asked()
        self.requests[handler.__name__] += 1
        if args and isinstance(args[-1], pyfuse3.RequestContext):
            CALLER.set(Caller(args[-1].pid))
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (OSError, NearlineError) as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            # The one place that must catch everything: an exception that left here would unmount.
            log.exception("request_failed", request=handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapped  # type: ignore[return-value]  # mypy sees a _Wrapped object, not a method


class Requests(pyfuse3.Operations):
    """The parts of a session that handlers call, and how a node is described to the kernel."""

    def __init__(self, session: Session, lookups: LookupCounts, owner: Ownership) -> None:
        super().__init__()
        self._session, self._lookups, self._owner = session, lookups, owner
        self._handles = Handles(session, lookups)
        self.requests: Counter[str] = Counter()  # of the kernel, by name
        self.turns = Turns()  # of large answers
        self.greeted = trio.Event()  # the kernel knows what we can do

    def init(self) -> None:
        """The answer is written before the next task runs."""
        self.greeted.set()

    def _answer(self, node: Node) -> pyfuse3.EntryAttributes:
        """Attributes for a reply that raises the kernel's lookup count."""
        self._lookups.looked_up(node.ino)
        return self._attributes(node)

    def _attributes(self, node: Node, writable: bool | None = None) -> pyfuse3.EntryAttributes:
        """`writable`: whether this account may write it, where that is known already."""
        if writable is None:
            writable = self._session.shares.is_writable(node)
        stored = self._stored(node)
        target = self._session.symlinks.target(node) if node.kind == "symlink" else None
        return attributes(node, self._owner, writable=writable, stored=stored, target=target)

    def _stored(self, node: Node) -> int:
        """The bytes that `st_blocks` tells. Of a file that is being written the kernel may hold
        bytes that are not here yet, and it will not ask again before a close: nobody may take it
        for empty meanwhile (GNU tar would not even open it)."""
        stored = self._session.stored_bytes(node)
        return max(1, stored) if self._session.replayer.snapshots.is_open(node.ino) else stored

    async def _journal_read(self, *nodes: Node | None) -> None:
        """Just after the start a long journal is still being read. Return when the part of it that
        changes of these depend on is there."""
        for node in nodes:
            if node is not None:
                await self._session.journal.wait_for_file(node.file)
