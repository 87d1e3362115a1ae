"""Compares what a mount shows with what the writers' ledgers say was promised.

Knows: how to read ledgers, trees and bytes. Must not know: who was killed when (`killing`), which
operations there are (`kill_model`).
"""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.system.kill_model import (
    Op,
    Seen,
    World,
    apply,
    content_broken,
    crash,
    names_broken,
)

COMMON = "common"
LAST_LINES = 20


class Broken(AssertionError):
    """A promise that was not kept."""


@dataclass
class Told:
    """The outcome of one life of a writer. `failed` are (operation, errno, monotonic
    nanoseconds)."""

    world: World
    in_progress: Op | None = None
    done: int = 0
    failed: list[tuple[Op, int, int]] = field(default_factory=list)
    last: list[str] = field(default_factory=list)


def read_ledger(world: World, ledger: Path) -> Told:
    """`world` after everything that was acknowledged."""
    lines = ledger.read_text().splitlines()
    told = Told(world, last=lines[-LAST_LINES:])
    for line in lines:
        if line.startswith("{"):
            told.in_progress = msgspec.json.decode(line, type=Op)
            continue
        op, told.in_progress = told.in_progress, None
        assert op is not None, f"an answer to nothing: {line}"
        if line.startswith("+"):
            told.done += 1
            apply(world, op)
            continue
        _number, code, when = line[1:].split()
        told.failed.append((op, int(code), int(when)))
        if int(code) == errno.ENETUNREACH and op.kind == "write":
            apply(world, op)  # it promises nothing, but some of its pages may be there
        else:
            told.in_progress = op
    return told


def unexpected(told: Told, killed_ns: int | None, was_offline: bool) -> list[str]:
    """Calls that failed although the mount lived."""
    return [
        f"{op} failed with {errno.errorcode.get(code, code)} while the mount lived"
        for op, code, when in told.failed
        if not (code == errno.ENETUNREACH and op.kind == "write" and was_offline)
        and not (killed_ns is not None and when >= killed_ns)
    ]


def look(at: Path, writers: int) -> list[dict[str, Seen]]:
    """The names of each writer as the mount shows them. Raises `Broken` when there are others."""
    found: list[dict[str, Seen]] = [{} for _writer in range(writers)]

    def walk(directory: str) -> None:
        with os.scandir(at / directory) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            path = f"{directory}/{name}" if directory else name
            owner = path.removeprefix(COMMON + "/").removeprefix("w")
            if path != COMMON:
                if not owner[:1].isdigit() or int(owner[:1]) >= writers:
                    raise Broken(f"{path} is there, and nobody made it")
                found[int(owner[0])][path] = see(at / path)
            if path == COMMON or found[int(owner[0])][path].kind == "directory":
                walk(path)

    walk("")
    return found


def see(path: Path) -> Seen:
    one = path.lstat()
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
    kind = kinds.get(stat.S_IFMT(one.st_mode), "something else")
    is_link = kind == "symlink"
    xattrs = {} if is_link else {name: _xattr(path, name) for name in os.listxattr(path)}
    target = os.readlink(path) if is_link else ""
    mode = stat.S_IMODE(one.st_mode)
    return Seen(kind, one.st_ino, one.st_nlink, mode, one.st_size, one.st_mtime_ns, xattrs, target)


def _xattr(path: Path, name: str) -> str:
    return os.getxattr(path, name).decode(errors="replace")


def resolve(told: Told, seen: dict[str, Seen], read: Callable[[str], bytes]) -> World:
    """The world that is seen, if it is one of those that were promised: with the operation that was
    in progress, or without it. Raises `Broken`, and what `read` raises."""
    worlds = [told.world]
    if told.in_progress is not None:
        done = copy.deepcopy(told.world)
        apply(done, told.in_progress)
        worlds.insert(0, done)
    broken = []
    for world in worlds:
        world.number = max(item.number for item in worlds)
        crash(world)
        if not (problems := _broken(world, seen, read)):
            return world
        broken.append("\n".join(problems))
    raise Broken("\n-- or, without the operation in progress:\n".join(broken) + "\n" + _story(told))


def _broken(world: World, seen: dict[str, Seen], read: Callable[[str], bytes]) -> list[str]:
    problems = names_broken(world, seen)
    if problems:
        return problems
    first = {number: path for path, number in world.names.items()}
    for path in first.values():
        if world.at(path).kind == "file":
            problems += content_broken(world, path, read(path))
    return problems


def _story(told: Told) -> str:
    return f"in progress: {told.in_progress}\nlast lines of the ledger:\n" + "\n".join(told.last)
