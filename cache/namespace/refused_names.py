"""A name that the server refused, and what is done to it here since.

Knows: that an operation which nobody else depends on can say something else where it stands in the
journal, so that what comes behind it does not wait for ever. Must not know: the tree, what a call
of the kernel is (`edits`), why something is refused.

Concurrency: inside a transaction of the caller's, synchronous.
"""

from __future__ import annotations

import msgspec

from cache.metadata.journal import Journal
from cache.metadata.operations import DIRECTORY_MOVES, Body, Op, entry_key
from cache.metadata.tree import Node
from remote.protocol.ids import FileId

MAKES_A_NAME = frozenset({"create", "link", "rename"})


def refused_making(journal: Journal, node: Node, place: tuple[FileId, str]) -> Op | None:
    """The operation that was to give `node` the name at `place`, if it was refused: what is
    done to that name now is done to it, since what came behind it would wait for ever. None
    also when others speak of the names it has, because then their order means something."""
    for op in journal.of_file(node.file):
        body = op.body
        if not op.refused or op.sent or body.other or op.kind not in MAKES_A_NAME:
            continue
        made = (body.new_parent, body.new_name) if body.new_name else (body.parent, body.name)
        names = (entry_key(*made), entry_key(body.parent, body.name))
        if made == place and not any(journal.is_of_others(item, op) for item in names):
            return op
    return None


def redirect_refused(journal: Journal, node: Node, move: Body) -> bool:
    """The name was refused, and now it is another: that is what is asked for instead. True if
    it can be, where the operation stands in the journal."""
    made = refused_making(journal, node, (move.parent, move.name))
    if made is None or not _is_there_before(journal, made, move):
        return False
    place = {"parent": move.new_parent, "name": move.new_name}
    if made.kind == "rename":
        if (made.body.parent, made.body.name) == (move.new_parent, move.new_name):
            journal.remove(made)
            return True
        place = {"new_parent": move.new_parent, "new_name": move.new_name}
    journal.rewrite(made, body=msgspec.structs.replace(made.body, **place))
    return True


def _is_there_before(journal: Journal, made: Op, move: Body) -> bool:
    """True if the place that `move` goes to is free, and its directory there, when it is the turn
    of `made`."""
    taken = entry_key(move.new_parent, move.new_name)
    if journal.is_of_others(taken, made):
        return False
    if move.directory and journal.is_of_others(DIRECTORY_MOVES, made):
        return False
    above = journal.of_file(move.new_parent)
    return not any(op.kind == "create" and op.seq > made.seq for op in above)
