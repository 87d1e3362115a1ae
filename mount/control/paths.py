"""From a path that a person gave to the node it means.

Knows: walking down from the root, listing directories on the way. Must not know: what for.
"""

from __future__ import annotations

from cache.metadata.tree import ROOT, Node
from mount.failures import Failure
from mount.session.session import Session


class NoSuchPath(Failure):
    """Nothing in the drive has this path, as far as this mount knows."""


async def resolve(session: Session, path: str) -> Node:
    """The node at `path`, relative to the mount's root ("" is the root). Raises `NoSuchPath`, and
    NearlineError when a directory on the way is not known here and cannot be listed."""
    node = session.tree.node(ROOT)
    for name in [part for part in path.split("/") if part]:
        await session.ensure_listed(node.ino)
        found = session.tree.child(node.ino, name)
        if found is None:
            raise NoSuchPath(f"there is no {path} in the drive; check the name")
        node = found
    return node
