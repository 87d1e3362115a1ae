"""What a journal operation says on the wire. Pure, but for reading the tree.

Knows: the wire form of each kind of operation, with the node's attributes of this moment. Must not
know: when it is sent, what the answer means (`replayer`).
"""

from __future__ import annotations

from msgspec import UNSET

from cache.operations import Op
from cache.tree import Tree
from remote import wire

_NO_ATTRIBUTES = dict.fromkeys(("mode", "uid", "gid", "mtime_ns"), UNSET)


def message(op: Op, tree: Tree, content: wire.Content | None) -> wire.Op:
    """The wire form, with the node's attributes of this moment."""
    body = op.body
    match op.kind:
        case "create":
            return _create(op, tree, content)
        case "write":
            mtime_ns = tree.node(op.ino).mtime_ns
            assert content is not None
            return wire.Write(file=op.file, content=content, mtime_ns=mtime_ns)
        case "link":
            return wire.Link(file=op.file, parent=body.parent, name=body.name)
        case "unlink":
            return wire.Unlink(file=op.file, parent=body.parent, name=body.name)
        case "setattr":
            node = tree.node(op.ino)
            values = {name: getattr(node, name) for name in body.attrs}
            return wire.SetAttr(file=op.file, **{**_NO_ATTRIBUTES, **values})
        case "setxattr":
            value = tree.xattr(op.ino, body.xattr)
            return wire.SetXattr(file=op.file, name=body.xattr, value=value)
        case _:
            return _move(op)


def _create(op: Op, tree: Tree, content: wire.Content | None) -> wire.Create:
    node = tree.node(op.ino)
    return wire.Create(
        file=op.file,
        parent=op.body.parent,
        name=op.body.name,
        kind=node.kind,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        rdev=node.rdev,
        target=node.target,
        xattrs=tree.xattrs(op.ino),
        content=content,
    )


def _move(op: Op) -> wire.Op:
    body = op.body
    if op.kind == "rename":
        return wire.Rename(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_parent=body.new_parent,
            new_name=body.new_name,
            replaces=body.other or None,
        )
    if op.kind == "replace":
        return wire.Replace(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_parent=body.new_parent,
            new_name=body.new_name,
            target=body.other,
            base=body.base or None,
        )
    if op.kind == "retake":
        return wire.Retake(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_name=body.new_name,
            backup=body.other,
        )
    return wire.Exchange(
        file=op.file,
        parent=body.parent,
        name=body.name,
        other=body.other,
        other_parent=body.new_parent,
        other_name=body.new_name,
    )
