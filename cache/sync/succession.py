"""Consequences of the answer to an operation for what was made here after it.

Knows: which version a file holds once an operation on it was acknowledged, and which operation of
the journal is the next to give it content. Must not know: when operations are sent (`replayer`),
what the server says of them besides (`merge`), conflicts (`resolver`).

Invariant: an operation that says which version it overwrites (`Body.base`) names the one that this
device has seen, also if that had no id yet when the operation was made. So a version that the
server reports as overtaken is never one of this device's own, and always another device's that came
in between, even where ours have handed a file's identity on meanwhile.

Concurrency: synchronous, in the transaction of the acknowledgement, before the operation
leaves the journal.
"""

from __future__ import annotations

import msgspec

from cache.metadata.database import Database
from cache.metadata.journal import Journal
from cache.metadata.operations import Op, begins
from cache.metadata.tree import Tree
from cache.sync.uploader import Uploader
from remote.protocol import messages
from remote.protocol.ids import FileId, VersionId


class Succession:
    def __init__(self, db: Database, tree: Tree, journal: Journal, uploader: Uploader) -> None:
        self._db, self._tree, self._journal, self._uploader = db, tree, journal, uploader

    def acknowledged(
        self, op: Op, content: messages.Content | None, change: messages.Change
    ) -> None:
        """`op` was applied, with `content` if it came with some; `change` is what it left."""
        if content is not None:
            self._base_next(op, op.file, content.version, was=content.base)
        elif op.kind == "replace":
            self._replaced(op, change)
        elif op.kind == "retake":
            self._retaken(op, change)

    def _replaced(self, op: Op, change: messages.Change) -> None:
        """The replaced file's new version is our node's bytes under a new version id; unless the
        replacing file had got another version by then, which only its manifest can tell."""
        source, target = _version(change, op.file), _version(change, op.body.other)
        node = self._tree.find(op.ino)
        if node is None or source is None or target is None:
            return
        if source == node.version:
            self._tree.update(op.ino, version=target, base_file=op.body.other)
            self._db.run(
                "INSERT OR IGNORE INTO manifest SELECT ?, data FROM manifest WHERE version = ?",
                target,
                node.version,
            )
        self._base_next(op, op.body.other, target if source == node.version else node.version)

    def _retaken(self, op: Op, change: messages.Change) -> None:
        """The backup's content is a version of its own file now, and stays when the other one's
        history is cut. For the file it is not overtaken: it has the backup's name. For the backup
        it is, unless it was seen here."""
        node, held = self._tree.find(op.ino), _version(change, op.body.other)
        if node is not None and node.file == op.body.other and node.version == held:
            self._tree.update(op.ino, base_file=op.body.other)
        self._base_next(op, op.file, _version(change, op.file))
        self._base_next(op, op.body.other, None if node is None else node.version)

    def _base_next(
        self, op: Op, file: FileId, seen: VersionId | None, was: VersionId | None = None
    ) -> None:
        """Tell the operations that give `file` content next that their maker had seen version
        `seen`. `was` is what they are based on so far (the next one's, if it is not said): others
        follow what another inode has."""
        ops = [*self._journal.of_file(file), *self._journal.replacing(file)]
        later = [one for one in ops if one.seq > op.seq and begins(one, file) and not one.sent]
        later = [one for one in sorted(later, key=lambda one: one.seq) if one.body.base]
        was = was or next((one.body.base for one in later), None)
        for one in later:
            if seen is not None and one.body.base == was:
                self._base(one, seen)

    def _base(self, op: Op, version: VersionId) -> None:
        body = msgspec.structs.replace(op.body, base=version)
        self._journal.rewrite(op, body=body, refused=op.refused)
        content = self._uploader.ready.get(op.key)
        if content is not None:
            self._uploader.ready[op.key] = msgspec.structs.replace(content, base=version)


def _version(change: messages.Change, file: FileId) -> VersionId | None:
    return next((item.version for item in change.files if item.id == file), None)
