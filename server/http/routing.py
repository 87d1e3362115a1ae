"""Which endpoint a path leads to. Pure.

Knows: paths, whose segments are spelled out or `{variable}`. Must not know: what an endpoint does.

What is spelled out goes before what is variable, and there is no way back: with `/a/b` and
`/{x}/c`, `/a/c` leads nowhere. A slash at the end makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class _Node(Generic[T]):
    def __init__(self) -> None:
        self.spelled: dict[str, _Node[T]] = {}
        self.variable: _Node[T] | None = None
        self.targets: dict[str, T] = {}


class Routes(Generic[T]):
    """The routes, as rows of method, path and target."""

    def __init__(self, rows: Iterable[tuple[str, str, T]]) -> None:
        self._root: _Node[T] = _Node()
        for method, path, target in rows:
            targets = self._grow(path).targets
            if method in targets:
                raise ValueError(f"{method} {path} is declared twice")
            targets[method] = target

    def _grow(self, path: str) -> _Node[T]:
        node = self._root
        for segment in _segments(path):
            if segment.startswith("{"):
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.spelled.setdefault(segment, _Node())
        return node

    def find(self, path: str) -> tuple[Mapping[str, T], list[str]]:
        """The targets of `path` by their methods, none if there is no such path; and what stands
        for its variable segments, in their order."""
        node, values = self._root, list[str]()
        for segment in _segments(path):
            following = node.spelled.get(segment)
            if following is None:
                following = node.variable
                values.append(segment)
            if following is None:
                return {}, []
            node = following
        return node.targets, values


def _segments(path: str) -> Iterable[str]:
    return filter(None, path.split("/"))
