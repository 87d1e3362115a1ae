"""A person at a device without FUSE: the steps that people do, and what they may rely on.

Knows: which calls of `cache` a program's system calls become. Must not know: what the others do,
what must hold in the end (`reference`). `tests.system.test_model_mounts` has the same steps as
system calls on a real mount.

`saved` is what reached the server from here. `overtaken` is what this person overwrote or deleted
having seen it: nobody has to find that again but in a history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from cache.metadata.tree import Node
from tests.model.device import Device

Change = Callable[[bytes], bytes]


def patched(at: int, mark: bytes) -> Change:
    """Overwrite `mark` at position `at`."""
    return lambda old: old[:at].ljust(at, b"\0") + mark + old[at + len(mark) :]


def cut(size: int) -> Change:
    return lambda old: old[:size].ljust(size, b"\0")


def alike(old: bytes, new: bytes) -> int:
    """The number of bytes from the start that are the same."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((n for n, pair in pairs if len({*pair}) > 1), min(len(old), len(new)))


def temporary(path: str) -> str:
    """Where an editor writes what it will rename over `path`."""
    above, _, name = path.rpartition("/")
    return f"{above}/.tmp-{name}".lstrip("/")


def backup(path: str) -> str:
    """The name that an editor gives to the old version."""
    return f"{path}~"


WAYS = ("create", "rename", "link", "exchange")  # of saving beside the old version


class Person:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.bytes: dict[int, bytes] = {}  # by inode: what was written, while it is not flushed
        self.saved: set[bytes] = set()
        self.overtaken: set[bytes] = set()
        self.overtaken_versions: set[str] = set()
        self.handle: int | None = None
        self.handle_path = ""

    # What a person does. Raises OSError and NearlineError, as system calls fail.

    async def save(self, path: str, data: bytes) -> int:
        """Create or overwrite, as `cp` does."""
        parent, name = await self.device.place(path)
        node = self.device.tree.child(parent, name)
        if node is None:
            node = self.device.edits.create(parent, name, "file", 0o644, 0, 0)
        if node.is_regular:
            with self._opened(node.ino):
                self._overtake(node)
                self.device.contents.truncate(node.ino, 0)
                await self.device.contents.write(node.ino, 0, data)
                self._wrote(node.ino, data)
        return node.ino

    async def patch(self, path: str, at: int, mark: bytes) -> None:
        await self.edit(path, patched(at, mark))

    async def truncate(self, path: str, size: int) -> None:
        await self.edit(path, cut(size))

    async def edit(self, path: str, change: Change) -> None:
        """Bring a regular file to `change(what it holds)`, by one write and one truncate."""
        node = await self.device.resolve(path)
        if node.is_regular:
            await self.edit_inode(node.ino, change)

    async def edit_inode(self, ino: int, change: Change) -> None:
        contents = self.device.contents
        with self._opened(ino):
            old = await self.device.read_all(ino)
            new = change(old)
            same = alike(old, new)
            if new != old:
                self._overtake(self.device.tree.node(ino))
            if same < len(new):
                await contents.write(ino, same, new[same:])
            contents.truncate(ino, len(new))
            if new != old:
                self._wrote(ino, new)

    async def save_by_rename(self, path: str, data: bytes) -> None:
        """As editors do."""
        await self.save(temporary(path), data)
        await self.rename(temporary(path), path)

    async def save_with_backup(self, path: str, data: bytes, way: str) -> None:
        """As editors do that keep the old version: it is renamed away, and the new one made under
        its name (Emacs) or renamed to it (vim, Word); or it gets another name (GNOME). Or it is
        exchanged with the new one, and goes."""
        if way == "create":
            await self.rename(path, backup(path))
            await self.save(path, data)
            return
        await self.save(temporary(path), data)
        if way == "exchange":
            await self.exchange(temporary(path), path)
            await self.remove(temporary(path))
            return
        if way == "rename":
            await self.rename(path, backup(path))
        else:
            await self.link(path, backup(path))
        await self.rename(temporary(path), path)

    async def rename(self, old: str, new: str) -> None:
        device = self.device
        parent, name = await device.place(old)
        new_parent, new_name = await device.place(new)
        for directory in (parent, new_parent):
            await device.ensure_listed(directory)
        over = device.tree.child(new_parent, new_name)
        if over is not None:
            await device.ensure_listed(over.ino)
        device.edits.rename(parent, name, new_parent, new_name)
        if over is not None:
            self._note_gone(over)
        device.collector.collect()

    async def exchange(self, one: str, other: str) -> None:
        if one != other:
            here, there = await self.device.place(one), await self.device.place(other)
            self.device.edits.exchange(*here, *there)

    async def remove(self, path: str) -> None:
        device = self.device
        parent, name = await device.place(path)
        node = await device.resolve(path)
        await device.ensure_listed(node.ino)
        device.edits.unlink(parent, name, directory=node.is_directory)
        self._note_gone(node)
        device.collector.collect()

    async def make(self, path: str, kind: str) -> None:
        parent, name = await self.device.place(path)
        target = "elsewhere" if kind == "symlink" else None
        self.device.edits.create(parent, name, kind, 0o755, 0, 0, target=target)  # type: ignore[arg-type]  # a Kind

    async def link(self, old: str, new: str) -> None:
        node = await self.device.resolve(old)
        self.device.edits.link(node.ino, *await self.device.place(new))

    async def set_attributes(self, path: str, changes: dict[str, int]) -> None:
        self.device.edits.set_attributes((await self.device.resolve(path)).ino, changes)

    async def set_xattr(self, path: str, value: bytes | None) -> None:
        self.device.edits.set_xattr((await self.device.resolve(path)).ino, "user.x", value)

    async def look_around(self) -> None:
        await self.device.everything()

    async def open(self, path: str) -> None:
        node = await self.device.resolve(path)
        if self.handle is None and node.is_regular:
            self.handle, self.handle_path = node.ino, path
            self.device.handles.add(node.ino)

    async def write_through_handle(self, mark: bytes) -> None:
        if self.handle is not None:
            await self.edit_inode(self.handle, lambda old: mark + old[:50])

    async def chmod_through_handle(self, mode: int) -> None:
        if self.handle is not None:
            self.device.edits.set_attributes(self.handle, {"mode": mode})

    async def release(self) -> None:
        if self.handle is not None:
            self.device.handles.discard(self.handle)
            self.device.collector.unused(self.handle)
            self.handle = None

    # --- what follows from it ---------------------------------------------------------------------

    def flushed(self) -> None:
        """All that this device had is on the server; but for what the journal still has."""
        kept = {op.ino for op in self.device.journal}
        self.saved |= {data for ino, data in self.bytes.items() if ino not in kept}
        self.bytes = {ino: data for ino, data in self.bytes.items() if ino in kept}

    def died(self) -> None:
        self.handle = None
        self.device.handles.clear()

    @contextlib.contextmanager
    def _opened(self, ino: int) -> Iterator[None]:
        """An inode that a program works on is not collected."""
        mine = ino not in self.device.handles
        self.device.handles.add(ino)
        try:
            yield
        finally:
            if mine and ino != self.handle:
                self.device.handles.discard(ino)
                self.device.collector.unused(ino)

    def _overtake(self, node: Node) -> None:
        if (data := self.bytes.get(node.ino)) is not None:
            self.overtaken.add(data)
        if node.version is not None:
            self.overtaken_versions.add(node.version)

    def _wrote(self, ino: int, data: bytes) -> None:
        node = self.device.tree.find(ino)
        if node is not None and (node.live or node.links):  # else it is nobody's file any more
            self.bytes[ino] = data

    def _note_gone(self, was: Node) -> None:
        """The last name of a file went: with it, what was written into it through any handle."""
        node = self.device.tree.find(was.ino)
        if node is None or node.links == 0:
            self._overtake(was)
            of_file = "SELECT ino FROM node WHERE file = ?"
            for ino in {was.ino, *(row["ino"] for row in self.device.db.all(of_file, was.file))}:
                if (data := self.bytes.pop(ino, None)) is not None:
                    self.overtaken.add(data)
