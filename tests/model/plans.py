"""Plans of people, chosen by dice: the words that every walk is made of.

Knows: the paths, and the arguments of each step that `people.Person` has. Must not know: who does
it, on what kind of device.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.model.people import WAYS, backup, temporary

PATHS = ("a", "b", "d", "d/a", "d/b", "e", "e/a")
TERRITORIES = (("a", "d", "d/a", "d/b"), ("b", "e", "e/a"))  # of those who keep apart
PAUSES = (0, 0.001, 0.01, 0.1, 0.5, 2)


class Worker(Protocol):
    """Does the steps: `people.Person`."""

    async def save(self, path: str, data: bytes) -> object: ...
    async def patch(self, path: str, at: int, mark: bytes) -> None: ...
    async def truncate(self, path: str, size: int) -> None: ...
    async def save_by_rename(self, path: str, data: bytes) -> None: ...
    async def save_with_backup(self, path: str, data: bytes, way: str) -> None: ...
    async def rename(self, old: str, new: str) -> None: ...
    async def exchange(self, one: str, other: str) -> None: ...
    async def remove(self, path: str) -> None: ...
    async def make(self, path: str, kind: str) -> None: ...
    async def link(self, old: str, new: str) -> None: ...
    async def set_attributes(self, path: str, changes: dict[str, int]) -> None: ...
    async def set_xattr(self, path: str, value: bytes | None) -> None: ...


WEIGHTS = {
    "save": 6,
    "patch": 4,
    "truncate": 2,
    "save_by_rename": 5,
    "save_with_backup": 5,
    "rename": 7,
    "exchange": 2,
    "remove": 5,
    "make": 5,
    "link": 3,
    "set_attributes": 3,
    "set_xattr": 2,
}
TAKES_BYTES = {
    "save": "data",
    "patch": "mark",
    "save_by_rename": "data",
    "save_with_backup": "data",
}


@dataclass(frozen=True)
class Step:
    """One thing that somebody does; `work(person, fresh bytes)` does it."""

    name: str
    arguments: dict[str, Any]

    @property
    def paths(self) -> tuple[str, ...]:
        named = ("path", "old", "new", "one", "other")
        found = tuple(self.arguments[name] for name in named if name in self.arguments)
        if self.name.startswith("save_"):
            return (*found, temporary(found[0]), backup(found[0]))
        return found

    def work(self, person: Worker, data: bytes) -> Awaitable[object]:
        more = {TAKES_BYTES[self.name]: data} if self.name in TAKES_BYTES else {}
        method: Callable[..., Awaitable[object]] = getattr(person, self.name)
        return method(**self.arguments, **more)


def arguments(name: str, dice: random.Random, choices: tuple[str, ...] = PATHS) -> dict[str, Any]:
    """The arguments of a step, but for the bytes."""
    path = dice.choice(choices)
    match name:
        case "patch":
            return {"path": path, "at": dice.randrange(40)}
        case "truncate":
            return {"path": path, "size": dice.randrange(20)}
        case "save_with_backup":
            return {"path": path, "way": dice.choice(WAYS)}
        case "rename" | "link":
            return {"old": path, "new": dice.choice(choices)}
        case "exchange":
            return {"one": path, "other": dice.choice(choices)}
        case "make":
            return {"path": path, "kind": dice.choice(("directory", "directory", "symlink"))}
        case "set_attributes":
            what = dice.choice(("mode", "uid", "mtime_ns"))
            return {"path": path, "changes": {what: dice.randrange(0o777)}}
        case "set_xattr":
            return {"path": path, "value": dice.choice((None, b"1", b"2"))}
        case _:
            return {"path": path}


def plan(dice: random.Random, choices: tuple[str, ...] = PATHS) -> list[Step]:
    """A few things that one person does."""
    names = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=dice.randrange(4))
    return [Step(name, arguments(name, dice, choices)) for name in names]
