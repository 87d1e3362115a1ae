"""Where a symlink leads, as programs on this machine are shown it.

Knows: which symlinks are of others, and which targets may lead out of what they share with us. Must
not know: how targets are stored, the kernel.

A symlink is text that its maker chose and that the reader's kernel follows, also out of the mount:
an editor's symlink in a shared folder can lead a program of the owner's to any file that the owner
may read or write. With `symlinks=inside` those of others that could leave are shown as `NOWHERE`:

- one's own are never touched: made on this device, or in the own drive by its owner;
- a target is let through if it is relative, goes up at its beginning only, no further than the
  directory that its maker reached, and from there only down. `..` after a name is not, as that name
  may be a symlink itself.

`NOWHERE` is below a file, so that nothing can be made there either: writing through a symlink whose
target is only missing would make it. It tells nothing of the target, because programs that take
paths apart by themselves would follow what `..` is in it.

Concurrency: synchronous, on the trio thread.
"""

from __future__ import annotations

from cache.metadata.tree import LOCAL, ROOT, Node, Tree
from remote.protocol.ids import mark_of

NOWHERE = "/dev/null/leads-out-of-what-is-shared"


class Symlinks:
    """`inside`: only what stays in what is shared is shown, of the symlinks of others."""

    def __init__(self, tree: Tree, *, inside: bool) -> None:
        self._tree, self._inside = tree, inside

    def target(self, node: Node) -> str:
        """The answer to readlink."""
        target = node.target or ""
        hidden = self._inside and self._is_of_others(node) and not self._stays(node, target)
        return NOWHERE if hidden else target

    def _is_of_others(self, node: Node) -> bool:
        if node.made_under is None:
            return False
        return bool(node.made_under) or node.drive != self._tree.own_drive

    def _stays(self, node: Node, target: str) -> bool:
        """From each of its names: which one is followed nobody says."""
        steps = [step for step in target.split("/") if step not in ("", ".")]
        ups = next((at for at, step in enumerate(steps) if step != ".."), len(steps))
        if target.startswith("/") or ".." in steps[ups:]:
            return False
        names = self._tree.names(node.ino)
        return all(ups <= self._depth(parent, node) for parent, _ in names)

    def _depth(self, place: int, node: Node) -> int:
        """The number of directories that `place` is below the one that the maker of `node` reached,
        or that is shared with us; 0 if it is not below that any more."""
        depth = 0
        while place != ROOT:
            here, above = self._tree.node(place), self._tree.node(self._tree.parent(place))
            if above.drive == LOCAL or mark_of(here.file) == node.made_under:
                return depth
            place, depth = above.ino, depth + 1
        return depth if mark_of(self._tree.node(ROOT).file) == node.made_under else 0
