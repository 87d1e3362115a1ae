"""One dialect: what a reader need not meet in two forms. What is not yet so is allowed by name."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_references import MODULES, name_of, statements, tree_of

pytestmark = pytest.mark.slow  # it takes every source apart; `make check` does

# Aliases that everybody uses.
USUAL = {"hypothesis.strategies": "st", "sqlalchemy": "sa"}
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})

# A docstring says what a thing is or does: it is no question about it, and asks none.
_QUESTION = re.compile(r"(What|Whether|Who|Whom|Whose|How)\b|[^.]*\?\s*(\n|$)")
_EVENT = re.compile(r"[a-z0-9_]+")

# Exceptions that are left, by rule and package, at most. A number may only become smaller.
ALLOWED = {
    "except": {"tests": 1},
    # A line for people, of the standard library's logger.
    "event": {"server": 1},
    "alias": {"server": 2},
}


def docstrings(file: Path) -> Iterator[int]:
    """Lines of docstrings that begin with a question word, or whose first sentence asks."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in statements(tree_of(file)):
        if isinstance(node, kinds) and _QUESTION.match(ast.get_docstring(node) or ""):
            yield node.body[0].lineno


def exceptions(file: Path) -> Iterator[int]:
    """Lines that call an exception something other than `error`."""
    for node in statements(tree_of(file)):
        if isinstance(node, ast.ExceptHandler) and node.name not in (None, "error"):
            yield node.lineno


def events(file: Path) -> Iterator[int]:
    """Lines that log an event that is no word in snake_case."""
    for node in ast.walk(tree_of(file)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                args=[ast.Constant(value=str(event)), *_],
            ) if level in LEVELS and not _EVENT.fullmatch(event):
                yield node.lineno


def aliases(file: Path) -> Iterator[int]:
    """Lines that import under another name, although the own name is free in the file, or that is
    no part of the other."""
    tree = tree_of(file)
    imports = [node for node in statements(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if not any(alias.asname for node in imports for alias in node.names):
        return
    taken = {alias.name for node in imports for alias in node.names if alias.asname is None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            taken.add(node.id)
        elif isinstance(node, ast.arg):
            taken.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            taken.add(node.name)
    for node in imports:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            if alias.asname is None or USUAL.get(module + alias.name) == alias.asname:
                continue
            if alias.name not in taken or alias.name not in alias.asname:
                yield node.lineno


def headers(file: Path) -> Iterator[int]:
    if "Concurrency contract:" in (ast.get_docstring(tree_of(file)) or ""):
        yield 1


RULES = {
    "docstring": docstrings,
    "except": exceptions,
    "event": events,
    "alias": aliases,
    "header": headers,
}


@pytest.mark.parametrize("rule", RULES)
def test_one_dialect(rule: str) -> None:
    found = [f"{name_of(file)}:{line}" for file in MODULES for line in RULES[rule](file)]
    many = Counter(place.split("/")[0] for place in found)
    allowed = ALLOWED.get(rule, {})
    too_many = {top for top, count in many.items() if count > allowed.get(top, 0)}
    assert [place for place in found if place.split("/")[0] in too_many] == []
