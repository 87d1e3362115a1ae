"""The operations of the wire as changes of the tree.

Knows: the rules of every operation, as the docstrings in `remote.protocol.messages` promise them.
Must not know: batches, idempotency, the feed, what becomes of the trash (`trash`, `retention`).

Each function checks everything it depends on, raising `errors.Refused`, and changes the tables
through the `Mutation` it is given; the caller undoes the operation on a refusal, so checks and
changes may be in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from remote.protocol import messages
from remote.protocol.errors import (
    BadRequest,
    Exists,
    IsADirectory,
    NotADirectory,
    NotFound,
    Refused,
    Stale,
    TooLarge,
    WouldLoop,
)
from remote.protocol.ids import mark_of
from server.drive import names, versions
from server.drive.mutation import Mutation
from server.drive.rules import (
    MAX_XATTRS_TOTAL,
    check_create,
    check_length,
    check_name,
    check_numbers,
    check_xattrs,
)
from server.drive.working_set import FileRow
from server.permissions import access


def perform(tx: Mutation, op: messages.Op) -> None:
    """Carry out `op`. Raises `errors.Refused`."""
    for name in _names(op):
        check_length(name)
    _OPERATIONS[type(op)](tx, op)
    names.take_back(tx)


def _names(op: messages.Op) -> list[str]:
    """Every name that the operation speaks of."""
    given = (getattr(op, field, None) for field in ("name", "new_name", "other_name"))
    return [name for name in given if name is not None]


def create(tx: Mutation, op: messages.Create) -> None:
    check_create(op)
    parent = tx.directory(op.parent)
    tx.check_free(parent, op.name)
    _check_new_id(tx, op.file)
    below = tx.check_depth(op.kind, op.parent, op.name)
    size = len(op.target.encode()) if op.target is not None else 0
    version = None
    if op.content is not None:
        versions.commit(tx, op.file, op.content, op.mtime_ns)
        version, size = op.content.version, op.content.manifest.size
    made_under = None
    if op.kind == "symlink" and not tx.is_whole:
        made_under = mark_of(access.entrance(tx.conn, tx.caller, op.parent))
    tx.insert_file(
        op.file,
        kind=op.kind,
        mode=op.mode,
        uid=op.uid,
        gid=op.gid,
        mtime_ns=op.mtime_ns,
        size=size,
        links=1,
        version=version,
        target=op.target,
        rdev=op.rdev,
        made_under=made_under,
    )
    if op.xattrs:
        tx.set_xattrs(op.file, op.xattrs)
    tx.add_entry(op.parent, op.name, op.file, below)


def write(tx: Mutation, op: messages.Write) -> None:
    """Last writer wins. A file in the trash is refused: an edit that crossed a delete would land
    where nobody looks; its sender, who knows the name, brings it back as a new file."""
    check_numbers(mtime_ns=op.mtime_ns)
    row = _regular(tx.file(op.file))
    if row.links == 0:
        raise Refused(NotFound(message=f"{op.file} is in the trash"))
    if row.version != op.content.base:
        tx.overtaken = row.version
    versions.commit(tx, op.file, op.content, op.mtime_ns)
    now = {"size": op.content.manifest.size, "mtime_ns": op.mtime_ns}
    versions.make_current(tx, row, op.content.version, **now)


def revert(tx: Mutation, op: messages.Revert) -> None:
    """Make an earlier version current. One that is current already is left as it is: there is
    nothing to bring back, and a copy of it would push an older version out of the history. The
    change says so."""
    check_numbers(mtime_ns=op.mtime_ns)
    row = _regular(tx.file(op.file))
    if row.links == 0:
        raise Refused(NotFound(message=f"{op.file} is in the trash; recover it first"))
    if op.version == row.version:
        tx.update(op.file)
        return
    old = versions.bring_back(tx, row, op.version, op.as_version, op.mtime_ns)
    versions.make_current(tx, row, op.as_version, size=old.size, mtime_ns=op.mtime_ns)


def link(tx: Mutation, op: messages.Link) -> None:
    """Another name for a file; brings one back that lost its last name."""
    row, parent = tx.file(op.file), tx.directory(op.parent)
    if row.kind == "directory":
        raise Refused(IsADirectory(message="a directory has one name"))
    if not tx.is_whole:
        tx.check_reach(op.parent, *tx.places(op.file))
    tx.check_free(parent, op.name)
    tx.gain_link(row)
    tx.add_entry(op.parent, op.name, op.file)
    _come_back(tx, row, op.parent, op.name)


def recover(tx: Mutation, op: messages.Recover) -> None:
    """The trash is its owner's alone, so nobody else can put things back."""
    row = tx.require(op.file, "owner")
    if row.links:
        raise Refused(Stale(message=f"{op.file} is not in the trash any more"))
    parent = tx.directory(_place(tx, row, op))
    name = op.name or row.trashed_name
    if name is None:
        raise Refused(NotFound(message="where it was is not known; name a place for it"))
    tx.check_free(parent, name)
    below = tx.check_depth(row.kind, parent.id, name)
    tx.gain_link(row)
    tx.add_entry(parent.id, name, op.file, below)
    _come_back(tx, row, parent.id, name)


def _come_back(tx: Mutation, row: FileRow, parent: str, name: str) -> None:
    """From the trash to another place is a move, for those who are told the name."""
    if row.trashed_parent is not None and row.trashed_name is not None:
        tx.follow(row.id, (row.trashed_parent, row.trashed_name), (parent, name))


def _place(tx: Mutation, row: FileRow, op: messages.Recover) -> str:
    """The directory to put `row` in, if there still is one."""
    if op.parent is not None:
        return op.parent
    if row.trashed_parent is None:
        message = "its content went on as another file's; name a place to have it back beside that"
        raise Refused(NotFound(message=message))
    directory = tx.find(row.trashed_parent)
    if directory is None or directory.drive != tx.drive:
        raise Refused(NotFound(message="the directory it was in is gone; name another place"))
    if directory.links == 0:
        message = "the directory it was in is in the trash; recover that first, or name a place"
        raise Refused(NotFound(message=message))
    return str(directory.id)


def unlink(tx: Mutation, op: messages.Unlink) -> None:
    tx.directory(op.parent)
    tx.expect(op.parent, op.name, op.file)
    row = tx.file(op.file)
    tx.check_empty(row)
    tx.drop_entry(op.parent, op.name)
    tx.lose_link(row, op.parent, op.name)


def rename(tx: Mutation, op: messages.Rename) -> None:
    tx.directory(op.parent)
    parent = tx.directory(op.new_parent)
    tx.expect(op.parent, op.name, op.file)
    row = tx.file(op.file)
    there = tx.meaning(op.new_parent, op.new_name)
    if there == op.file:
        _nothing(tx, op.file, (op.parent, op.name), (op.new_parent, op.new_name))
        return
    tx.check_reach(op.new_parent, op.parent)
    check_name(op.new_name, at_root=parent.id == parent.root)
    _check_no_loop(tx, row, op.new_parent)
    below = tx.check_move(row, (op.parent, op.name), (op.new_parent, op.new_name))
    if there is not None:
        _make_way(tx, row, op, there)
    tx.drop_entry(op.parent, op.name)
    tx.add_entry(op.new_parent, op.new_name, op.file, below)
    tx.follow(op.file, (op.parent, op.name), (op.new_parent, op.new_name))
    tx.update(op.file)


def replace(tx: Mutation, op: messages.Replace) -> None:
    """A file that an editor wrote beside the old one and renamed over it has gone on as that one:
    it would only fill the trash."""
    tx.directory(op.parent)
    tx.directory(op.new_parent)
    tx.expect(op.parent, op.name, op.file)
    tx.expect(op.new_parent, op.new_name, op.target)
    if op.file == op.target:
        _nothing(tx, op.file, (op.parent, op.name), (op.new_parent, op.new_name))
        return
    tx.check_reach(op.new_parent, op.parent)
    row, target = _regular(tx.file(op.file)), _regular(tx.file(op.target))
    if op.base is not None and target.version != op.base:
        tx.overtaken = target.version
    versions.adopt(tx, row, target)
    tx.set_xattrs(target.id, tx.rows.xattrs(row.id))
    taken = ("size", "mode", "uid", "gid", "mtime_ns")
    values = {column: getattr(row, column) for column in taken}
    assert row.version is not None
    versions.make_current(tx, target, row.version, **values)
    tx.names[op.new_parent, op.new_name] = op.target
    tx.drop_entry(op.parent, op.name)
    gone_on = versions.has_gone_on(tx.conn, row.id, target.id)
    tx.lose_link(row, *((None, None) if gone_on else (op.parent, op.name)))


def retake(tx: Mutation, op: messages.Retake) -> None:
    """As if the backup had been copied from the file, which kept its name all the time."""
    parent = tx.directory(op.parent)
    tx.expect(op.parent, op.name, op.file)
    row = _regular(tx.file(op.file))
    if op.name == op.new_name:
        raise Refused(BadRequest(message=f"{op.name!r} is its name already"))
    there = tx.meaning(op.parent, op.new_name)
    if there is None:
        check_name(op.new_name, at_root=parent.id == parent.root)
    elif there != op.file:
        raise Refused(Exists(message=f"there is another {op.new_name!r} by now"))
    _check_new_id(tx, op.backup)
    here, new = (op.parent, op.name), (op.parent, op.new_name)
    tx.drop_entry(*here)
    if there is None:
        tx.add_entry(*new, op.file)
        tx.update(op.file)
    else:
        tx.lose_link(row, *here)
    tx.follow(op.file, here, new)
    versions.copy(tx, row, op.backup)
    kept = ("kind", "mode", "uid", "gid", "mtime_ns", "size", "version", "rdev")
    tx.insert_file(op.backup, links=1, **{column: getattr(row, column) for column in kept})
    tx.set_xattrs(op.backup, tx.rows.xattrs(row.id))
    tx.add_entry(*here, op.backup)


def exchange(tx: Mutation, op: messages.Exchange) -> None:
    tx.directory(op.parent)
    tx.directory(op.other_parent)
    tx.expect(op.parent, op.name, op.file)
    tx.expect(op.other_parent, op.other_name, op.other)
    if op.file == op.other:
        _nothing(tx, op.file, (op.parent, op.name), (op.other_parent, op.other_name))
        return
    tx.check_reach(op.other_parent, op.parent)
    row, other = tx.file(op.file), tx.file(op.other)
    here, there = (op.parent, op.name), (op.other_parent, op.other_name)
    _check_no_loop(tx, row, op.other_parent)
    _check_no_loop(tx, other, op.parent)
    below, below_other = tx.check_move(row, here, there), tx.check_move(other, there, here)
    tx.drop_entry(*here)
    tx.drop_entry(*there)
    tx.add_entry(*here, op.other, below_other)
    tx.add_entry(*there, op.file, below)
    tx.follow(op.file, here, there)
    tx.follow(op.other, there, here)
    tx.update(op.file)
    tx.update(op.other)


def setattr_(tx: Mutation, op: messages.SetAttr) -> None:
    wanted = {"mode": op.mode, "uid": op.uid, "gid": op.gid, "mtime_ns": op.mtime_ns}
    values = {name: value for name, value in wanted.items() if value is not UNSET}
    check_numbers(**values)
    tx.file(op.file)
    tx.update(op.file, **values)


def setxattr(tx: Mutation, op: messages.SetXattr) -> None:
    """Removing an attribute that is not there changes nothing and is no error: another device
    may have removed it first."""
    check_xattrs({op.name: op.value or b""})
    tx.file(op.file)
    values = {name: value for name, value in tx.rows.xattrs(op.file).items() if name != op.name}
    if sum(map(len, values.values())) + len(op.value or b"") > MAX_XATTRS_TOTAL:
        raise Refused(TooLarge(message=f"attributes of a file add up to {MAX_XATTRS_TOTAL} bytes"))
    tx.set_xattrs(op.file, values if op.value is None else values | {op.name: op.value})
    tx.update(op.file)


_OPERATIONS: dict[type[messages.Op], Callable[[Mutation, Any], None]] = {
    messages.Create: create,
    messages.Write: write,
    messages.Link: link,
    messages.Rename: rename,
    messages.Replace: replace,
    messages.Retake: retake,
    messages.Exchange: exchange,
    messages.Unlink: unlink,
    messages.SetAttr: setattr_,
    messages.SetXattr: setxattr,
    messages.Revert: revert,
    messages.Recover: recover,
}


def _regular(row: FileRow) -> FileRow:
    if row.kind == "directory":
        raise Refused(IsADirectory(message=f"{row.id} is a directory"))
    if row.kind != "file":
        raise Refused(BadRequest(message=f"{row.id} is a {row.kind}, not a regular file"))
    return row


def _check_new_id(tx: Mutation, file: str) -> None:
    if tx.find(file) is not None or tx.rows.is_retired(file):
        message = f"there is, or was, a file {file} already; choose another id"
        raise Refused(Exists(message=message, taken="file"))


def _check_no_loop(tx: Mutation, row: FileRow, new_parent: str) -> None:
    if row.kind == "directory" and row.id in tx.lineage.above(new_parent):
        raise Refused(WouldLoop(message="a directory cannot move into itself"))


def _make_way(tx: Mutation, row: FileRow, op: messages.Rename, there: str) -> None:
    """Remove what is at the new name, if it is what the sender saw there."""
    if there != op.replaces:
        raise Refused(Exists(message=f"there is another {op.new_name!r} by now"))
    old = tx.find(there)
    if old is None:
        raise Refused(NotFound(message=f"there is no file {there}"))
    if row.kind == "directory" and old.kind != "directory":
        raise Refused(NotADirectory(message=f"{op.new_name!r} is no directory"))
    if row.kind != "directory" and old.kind == "directory":
        raise Refused(IsADirectory(message=f"{op.new_name!r} is a directory"))
    tx.check_empty(old)
    tx.drop_entry(op.new_parent, op.new_name)
    tx.lose_link(old, op.new_parent, op.new_name)


def _nothing(tx: Mutation, file: str, *where: tuple[str, str]) -> None:
    """Both names mean the same file already: POSIX rename does nothing then. The change still
    tells what the names mean, so that a sender that thought otherwise is put right."""
    for parent, name in where:
        tx.names[parent, name] = file
    tx.update(file)
