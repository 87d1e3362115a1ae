"""The operations of the journal: what each touches, and which ones depend on it. Pure.

Knows: the operations and their dependence on each other. Must not know: how they are stored
(`journal`), what the server says of them (`batches`).

An operation stores names and ids; attributes are taken from the node when it is sent, so ten chmods
in a row are one operation. Once `sent` is set (in a transaction before the request leaves) it is
not changed any more, because the server may have it: its key then always gets that answer.

Order: operations are sent in order, except that one which waits for its bytes, or was refused,
holds back only those that depend on it (touch the same file, name or directory). A small save does
not wait behind a large upload. docs/decisions/0003-journal-order.md has the argument.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

from msgspec import Struct

from remote.protocol.ids import FileId, VersionId, uuid7

# Kinds that change no name.
CONTENT_AND_ATTRIBUTES = frozenset({"write", "setattr", "setxattr"})
# Renames of directories keep their order: the server checks for cycles.
DIRECTORY_MOVES = "D"


def new_id() -> str:
    return uuid7(time.time_ns(), os.urandom(10))


class Body(Struct, omit_defaults=True, gc=False):
    """The words of an operation beyond its file; which fields are set depends on its kind."""

    parent: FileId = ""
    name: str = ""
    new_parent: FileId = ""
    new_name: str = ""
    other: FileId = ""  # rename: replaces; replace: target; exchange: other; retake: backup
    attrs: Sequence[str] = ()  # setattr: which of mode, uid, gid, mtime_ns
    xattr: str = ""
    directory: bool = False  # the file is a directory
    anew: bool = False  # create: of a directory that was removed elsewhere (`rebuilding`)
    regular: bool = False  # the file is a regular one: the operation comes with content
    base: VersionId = ""  # write: the version overwritten, when it is not the node's own
    renew: bool = False  # `version` was begun for another file: the snapshot needs a new one
    last_parent: FileId = ""  # write: where the file was, when another device took its last name
    last_name: str = ""
    before_loss: bool = False  # of power; the server may have more of its content: see `power_loss`


# The fields of a `Body` that name a file.
PLACES = ("parent", "new_parent", "other", "last_parent")


class Op(Struct, gc=False):
    """A row of the journal."""

    seq: int
    key: str
    kind: str
    ino: int
    file: FileId
    body: Body
    version: VersionId | None = None
    sent: bool = False
    refused: str | None = None
    made_ns: int = 0
    origin: str = ""  # in memory: the key it had first, for who waits for it
    refused_at: float = float("-inf")  # in memory: when, on the monotonic clock

    @property
    def has_content(self) -> bool:
        return self.kind == "write" or (self.kind == "create" and self.body.regular)


def file_key(file: FileId) -> str:
    return f"F{file}"


def entry_key(parent: FileId, name: str) -> str:
    return f"E{parent}/{name}"


def writes(op: Op) -> set[str]:
    """The records that `op` changes."""
    body, keys = op.body, {file_key(op.file)}
    if body.name:
        keys.add(entry_key(body.parent, body.name))
    if body.new_name:
        keys.add(entry_key(body.new_parent, body.new_name))
        if body.directory:
            keys.add(DIRECTORY_MOVES)
    if body.other:
        keys.add(file_key(body.other))
    return keys


def reads(op: Op) -> set[str]:
    """The records that must be there before `op`: the directories it names."""
    return {file_key(item) for item in (op.body.parent, op.body.new_parent) if item}


def begins(op: Op, file: FileId) -> bool:
    """Is it one that says what the file holds that has taken a name back? Pure."""
    return (op.file == file and op.kind == "write") or (
        op.kind == "replace" and op.body.other == file
    )


def since_handed_on(ops: Sequence[Op]) -> Sequence[Op]:
    """Those of a file's operations that are about what it holds now. Pure. What came before it was
    retaken, or replaced another, says what its backup or that other one holds."""
    handed_on = (n for n in reversed(range(len(ops))) if ops[n].kind in ("retake", "replace"))
    return ops[next(handed_on, -1) + 1 :]


def takes_back(op: Op, newest_first: Iterable[Op]) -> bool:
    """Can `op`, which is among these, be taken out as if it had never been? Pure. Not when it may
    have reached the server, nor when the names that it speaks of were spoken of since."""
    names = {key for key in writes(op) if key.startswith("E")}
    since = takewhile(lambda other: other is not op, newest_first)
    return not op.sent and not any(names & writes(other) for other in since)


def stuck(ops: Iterable[Op]) -> set[str]:
    """Keys of the operations that cannot be sent until a person does something: refused for good,
    or behind one that is. Pure."""
    keys: set[str] = set()
    held_writes: set[str] = set()
    held_reads: set[str] = set()
    for op in ops:
        if not (op.refused or held_writes):
            continue
        wrote, read = writes(op), reads(op)
        behind = wrote & held_writes or read & held_writes or wrote & held_reads
        if op.refused or behind:
            keys.add(op.key)
            held_writes |= wrote
            held_reads |= read
    return keys


def needed(ops: Iterable[Op], origins: set[str]) -> set[str]:
    """`origins`, and those of the operations that must be sent before. Pure."""
    found: set[str] = set()
    wrote, read = set[str](), set[str]()
    inodes: set[int] = set()  # their snapshots are taken in order
    for op in reversed(list(ops)):
        first = writes(op) & (wrote | read) or reads(op) & wrote
        if op.origin in origins or first or (op.has_content and op.ino in inodes):
            found.add(op.origin)
            wrote |= writes(op)
            read |= reads(op)
            if op.has_content:
                inodes.add(op.ino)
    return found


def waiting_behind(ops: Iterable[Op]) -> Counter[str]:
    """The number of operations that wait behind each refused one, by its key. Pure."""
    counts: Counter[str] = Counter()
    held_writes: dict[str, set[str]] = {}  # by record: the refused operations that hold it back
    held_reads: dict[str, set[str]] = {}
    for op in ops:
        if not (op.refused or held_writes):
            continue
        wrote, read = writes(op), reads(op)
        before = [held_writes[key] for key in (wrote | read) & held_writes.keys()]
        before += [held_reads[key] for key in wrote & held_reads.keys()]
        causes = set[str]().union(*before)
        counts.update(causes)
        if op.refused:
            counts[op.key] += 0
            causes = causes | {op.key}
        if causes:
            for held, keys in ((held_writes, wrote), (held_reads, read)):
                for key in keys:
                    held[key] = held.get(key, set()) | causes
    return counts
