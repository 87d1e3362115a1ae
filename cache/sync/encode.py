"""Journal operations as messages of the wire. Pure, but for reading the tree.

Knows: the wire form of each kind of operation, with the node's attributes of this moment. Must not
know: when it is sent (`schedule`), what the answer means (`batches`).
"""

from __future__ import annotations

from msgspec import UNSET

from cache.metadata.operations import Op
from cache.metadata.tree import Tree
from remote.protocol import messages

_NO_ATTRIBUTES = dict.fromkeys(("mode", "uid", "gid", "mtime_ns"), UNSET)


def message(op: Op, tree: Tree, content: messages.Content | None) -> messages.Op:
    """The wire form, with the node's attributes of this moment."""
    body = op.body
    match op.kind:
        case "create":
            return _create(op, tree, content)
        case "write":
            mtime_ns = tree.node(op.ino).mtime_ns
            assert content is not None
            return messages.Write(file=op.file, content=content, mtime_ns=mtime_ns)
        case "link":
            return messages.Link(file=op.file, parent=body.parent, name=body.name)
        case "unlink":
            return messages.Unlink(file=op.file, parent=body.parent, name=body.name)
        case "setattr":
            node = tree.node(op.ino)
            values = {name: getattr(node, name) for name in body.attrs}
            return messages.SetAttr(file=op.file, **{**_NO_ATTRIBUTES, **values})
        case "setxattr":
            value = tree.xattr(op.ino, body.xattr)
            return messages.SetXattr(file=op.file, name=body.xattr, value=value)
        case _:
            return _move(op)


def _create(op: Op, tree: Tree, content: messages.Content | None) -> messages.Create:
    node = tree.node(op.ino)
    return messages.Create(
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


def _move(op: Op) -> messages.Op:
    body = op.body
    if op.kind == "rename":
        return messages.Rename(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_parent=body.new_parent,
            new_name=body.new_name,
            replaces=body.other or None,
        )
    if op.kind == "replace":
        return messages.Replace(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_parent=body.new_parent,
            new_name=body.new_name,
            target=body.other,
            base=body.base or None,
        )
    if op.kind == "retake":
        return messages.Retake(
            file=op.file,
            parent=body.parent,
            name=body.name,
            new_name=body.new_name,
            backup=body.other,
        )
    return messages.Exchange(
        file=op.file,
        parent=body.parent,
        name=body.name,
        other=body.other,
        other_parent=body.new_parent,
        other_name=body.new_name,
    )
