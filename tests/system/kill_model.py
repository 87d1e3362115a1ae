"""The promises to a writer, as a model: operations, the tree they make, what may be seen of it.

Pure: no clock, no file system. Knows: docs/semantics.md, column "after process death". Must not
know: how operations are carried out (`kill_writer`), who is killed when (`killing`).

A `World` is the tree of one writer, who does one operation after the other in names of its own.
What was written through a handle and neither closed nor synced is `pending`: after the death of the
mount each page of it is there or not. Everything else is there exactly, and nothing besides.

Bytes are pseudo-random, and all of them say by which operation they were written: see `stamp`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import NamedTuple

from msgspec import Struct, field

PAGE = 4096  # what the kernel hands over, or not, as a whole
ROW = 1 << 16
CELL = 16  # each begins with four bytes that name the writer and the operation

Piece = tuple[int, int, int]  # [start, stop) of a file was written by the operation of this number


class Op(Struct, frozen=True, omit_defaults=True):
    """One system call. `other` is the second name, the target, or the attribute; `stop` is also a
    size, a mode, or a time."""

    number: int
    kind: str
    path: str = ""
    other: str = ""
    handle: int = 0
    start: int = 0
    stop: int = 0


class Node(Struct):
    """A file of any kind. `size` and `pieces` are what must be there; what no piece covers is
    zeros. `mtime_ns` is None when nobody set it, or it was written since."""

    kind: str
    mode: int
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    pending: list[Piece] = field(default_factory=list)
    mtime_ns: int | None = None
    xattrs: dict[str, str] = field(default_factory=dict)
    target: str = ""

    @property
    def reach(self) -> int:
        """The size that the kernel shows."""
        return max([self.size, *(stop for _start, stop, _number in self.pending)])


class World(Struct):
    """`number` is that of the last operation; `names` maps paths to nodes, `handles` too."""

    writer: int
    number: int
    names: dict[str, int]
    nodes: dict[int, Node]
    handles: dict[int, int] = field(default_factory=dict)

    def at(self, path: str) -> Node:
        return self.nodes[self.names[path]]

    def held(self, handle: int) -> Node:
        return self.nodes[self.handles[handle]]

    def below(self, path: str) -> list[str]:
        return [name for name in self.names if name.startswith(path + "/")]


class Seen(NamedTuple):
    """A name as the file system shows it."""

    kind: str
    ino: int
    links: int
    mode: int
    size: int
    mtime_ns: int
    xattrs: dict[str, str]
    target: str


# What operations do.


def apply(world: World, op: Op) -> None:
    """The operation is done."""
    world.number = max(world.number, op.number)
    match op.kind:
        case "mkdir" | "create":
            kind = "directory" if op.kind == "mkdir" else "file"
            _add(world, op, Node(kind, op.stop))
        case "symlink":
            _add(world, op, Node("symlink", 0o777, target=op.other))
        case "link":
            world.names[op.other] = world.names[op.path]
        case "unlink" | "rmdir":
            del world.names[op.path]
        case "rename":
            _rename(world.names, op.path, op.other)
        case "open":
            world.handles[op.handle] = world.names[op.path]
        case "write":
            node = world.held(op.handle)
            node.pending.append((op.start, op.stop, op.number))
            node.mtime_ns = None
        case "truncate":
            _truncate(world.at(op.path), op.stop)
        case "ftruncate":
            _truncate(world.held(op.handle), op.stop)
        case "fsync":
            _keep_written(world.held(op.handle))
        case "close":
            _keep_written(world.held(op.handle))
            del world.handles[op.handle]
        case "chmod":
            world.at(op.path).mode = op.stop
        case "utimens":
            world.at(op.path).mtime_ns = op.stop
        case "setxattr":
            world.at(op.path).xattrs[op.other] = value_of(op)
        case "removexattr":
            del world.at(op.path).xattrs[op.other]
        case "fsyncdir":
            pass
        case unknown:
            raise ValueError(unknown)
    _forget_nameless(world)


def value_of(op: Op) -> str:
    """The value that a `setxattr` sets."""
    return f"{op.number} " * (1 + op.number % 40)


def _add(world: World, op: Op, node: Node) -> None:
    world.nodes[op.number] = node
    world.names[op.path] = op.number
    if op.handle:
        world.handles[op.handle] = op.number


def _rename(names: dict[str, int], old: str, new: str) -> None:
    if names.get(new) == names[old]:
        return  # two names of one file: rename(2) says do nothing
    for path in [old, *(name for name in names if name.startswith(old + "/"))]:
        names[new + path[len(old) :]] = names.pop(path)


def _truncate(node: Node, size: int) -> None:
    node.size, node.mtime_ns = size, None
    node.pieces = cut(node.pieces, 0, size)
    node.pending = cut(node.pending, 0, size)


def _keep_written(node: Node) -> None:
    node.size = node.reach
    for piece in node.pending:
        put(node.pieces, piece)
    node.pending = []


def crash(world: World) -> None:
    """The mount died: no handle is left, and so no file without a name."""
    world.handles.clear()
    _forget_nameless(world)


def _forget_nameless(world: World) -> None:
    kept = {*world.names.values(), *world.handles.values()}
    for number in world.nodes.keys() - kept:
        del world.nodes[number]


# Pieces.


def cut(pieces: list[Piece], start: int, stop: int) -> list[Piece]:
    """The parts of the pieces in [start, stop)."""
    parts = [(max(a, start), min(b, stop), number) for a, b, number in pieces]
    return [part for part in parts if part[0] < part[1]]


def put(pieces: list[Piece], piece: Piece) -> None:
    """Lay a piece over the others."""
    start, stop, _number = piece
    rest = cut(pieces, 0, start) + cut(pieces, stop, 1 << 62)
    pieces[:] = sorted([*rest, piece]) if start < stop else rest


@functools.lru_cache(maxsize=1024)
def _row(writer: int, number: int, row: int) -> bytes:
    noise = bytearray(hashlib.shake_128(b"%d:%d:%d" % (writer, number, row)).digest(ROW))
    for at, byte in enumerate(bytes([writer]) + number.to_bytes(3, "big")):
        noise[at::CELL] = bytes([byte]) * (ROW // CELL)
    return bytes(noise)


def stamp(writer: int, number: int, start: int, stop: int) -> bytes:
    """The bytes that operation `number` writes into [start, stop) of a file."""
    rows = [_row(writer, number, row) for row in range(start // ROW, -(-stop // ROW))]
    skip = start // ROW * ROW
    return b"".join(rows)[start - skip : stop - skip]


def content(writer: int, pieces: list[Piece], start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file of these pieces."""
    made = bytearray(stop - start)
    for a, b, number in cut(pieces, start, stop):
        made[a - start : b - start] = stamp(writer, number, a, b)
    return bytes(made)


# What may be seen.


def names_broken(world: World, seen: dict[str, Seen]) -> list[str]:
    """Each promise about names and attributes that what is seen breaks."""
    broken = [f"{path} is gone" for path in world.names.keys() - seen.keys()]
    broken += [f"{path} is there, and should not be" for path in seen.keys() - world.names.keys()]
    inodes: dict[int, int] = {}
    for path in world.names.keys() & seen.keys():
        broken += [f"{path}: {what}" for what in _node_broken(world, path, seen[path])]
        number = world.names[path]
        if inodes.setdefault(number, seen[path].ino) != seen[path].ino:
            broken.append(f"{path} is no longer a name of the same file as others")
    if len(set(inodes.values())) < len(inodes):
        broken.append("names of different files have one inode")
    return sorted(broken)


def _node_broken(world: World, path: str, seen: Seen) -> list[str]:
    node = world.at(path)
    pairs: list[tuple[str, object, object]] = [
        ("kind", node.kind, seen.kind),
        ("mode", oct(node.mode), oct(seen.mode)),
        ("attributes", node.xattrs, seen.xattrs),
        ("target", node.target, seen.target),
    ]
    if node.kind != "directory":
        links = list(world.names.values()).count(world.names[path])
        pairs.append(("number of names", links, seen.links))
    if node.mtime_ns is not None:
        pairs.append(("mtime", node.mtime_ns, seen.mtime_ns))
    broken = [f"{what} is {is_!r}, not {should!r}" for what, should, is_ in pairs if should != is_]
    if node.kind == "file" and not node.size <= seen.size <= node.reach:
        broken.append(f"size is {seen.size}, not {node.size} to {node.reach}")
    return broken


def content_broken(world: World, path: str, data: bytes) -> list[str]:
    """Each promise about the bytes of a file that `data` breaks; decides what was pending: from now
    on the file is what was seen."""
    node, writer = world.at(path), world.writer
    if not node.size <= len(data) <= node.reach:
        return [f"{path}: {len(data)} bytes, not {node.size} to {node.reach}"]
    if not node.pending and content(writer, node.pieces, 0, len(data)) == data:
        return []
    found: list[Piece] = []
    for start, stop in _parts(node, len(data)):
        may_be = [cut(node.pieces, start, stop)]
        may_be += [[(start, stop, n)] for a, b, n in node.pending if a <= start and stop <= b]
        part = data[start:stop]
        match = next((item for item in may_be if content(writer, item, start, stop) == part), None)
        if match is None:
            return [f"{path}: bytes {start} to {stop} are {whose(data, start)}, not of {may_be}"]
        found += match
    node.pieces, node.size, node.pending = found, len(data), []
    return []


def _parts(node: Node, size: int) -> list[tuple[int, int]]:
    """Where one page ends and the next begins, or one write and another."""
    ends = {0, size, *range(0, size, PAGE)}
    for start, stop, _number in [*node.pieces, *node.pending]:
        ends |= {min(start, size), min(stop, size)}
    edges = sorted(ends)
    return list(itertools.pairwise(edges))


def whose(data: bytes, start: int) -> str:
    """The writer of the bytes at `start`, as they say themselves."""
    cell = -(-start // CELL) * CELL
    label = data[cell : cell + 4]
    if not any(data[start : cell + CELL]):
        return "zeros"
    if len(label) < 4:
        return "too few to say whose"
    return f"of operation {int.from_bytes(label[1:], 'big')} of writer {label[0]}"
