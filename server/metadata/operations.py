"""Which files an operation is about. Pure.

Knows: the wire's operations. Must not know: what one does (`drive.tree`), who may.
"""

from __future__ import annotations

from remote.protocol import messages


def anchor(op: messages.Op) -> str:
    """The file whose drive the operation is in."""
    return op.parent if isinstance(op, messages.Create) else op.file


def named(op: messages.Op) -> set[str]:
    """Every file the operation names."""
    fields = (
        "file",
        "parent",
        "new_parent",
        "other",
        "other_parent",
        "target",
        "replaces",
        "backup",
    )
    # What a symlink points to is no file's id.
    known = (field for field in fields if field != "target" or isinstance(op, messages.Replace))
    return {value for field in known if isinstance(value := getattr(op, field, None), str)}
