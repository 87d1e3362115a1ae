"""Things that docstrings and comments point at are there, and few modules are loaded late."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it takes every source apart; `make check` does

ROOT = Path(__file__).parents[1]
PACKAGES = ("mount", "cache", "remote", "server")
MODULES = sorted(
    file
    for top in (*PACKAGES, "bench", "tests")
    for file in (ROOT / top).rglob("*.py")
    if "versions" not in file.parts  # a migration speaks of the code of its day
)

# Imports inside functions: a mount and the command line start quicker without what these load.
LAZY = {
    "mount/cli": "a command loads what it needs",
    "mount/config.py": "platformdirs, where no directory is given",
    "mount/control/client.py": "messages that few commands use",
    "mount/credentials.py": "keyring",
    "mount/daemon.py": "metrics and commands, which few mounts or no start needs",
    "mount/doctor.py": "HTTP, where there is a server to ask",
    "mount/process/daemon_main.py": "everything, while the parent waits for the first word",
    "mount/process/up": "what the first start alone needs",
    "mount/progress.py": "rich, on a terminal",
    "remote/http/lazy_import.py": "the HTTP libraries",
    "remote/http/transport.py": "types of the HTTP libraries",
    "remote/http/data.py": "types of the HTTP libraries",
    "remote/http/websocket.py": "types of the HTTP libraries",
    "server/http/certificate.py": "cryptography, where no certificate is kept yet",
    "server/main.py": "the application, after the lock is had",
    "server/metadata/db.py": "alembic, when there is something to migrate",
}

_SPAN = re.compile(r"`([^`\n]+)`")
_SAID = re.compile(r"#.*`")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_FILE = re.compile(r"\w+\.(?:json|sqlite|pem|log|url|certificate|fingerprint|secret|pub)")
_PATH = re.compile(r"[\w./-]+\.(?:py|md|sh)")


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(file: Path) -> ast.Module:
    """Taken apart once for every test that looks into it, and those of `tests/test_dialect.py`."""
    return ast.parse(file.read_text())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and all below it but expressions, which are nine tenths."""
    yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        below = getattr(node, name, None)
        for each in below if isinstance(below, list) else ():
            yield from statements(each)


def said_in(file: Path) -> Iterator[str]:
    """The words in backticks in docstrings and comments."""
    source = file.read_text()
    if "`" not in source:
        return
    for node in statements(tree_of(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _SPAN.findall(ast.get_docstring(node) or "")
    if not _SAID.search(source):
        return  # to take a module apart takes longer than all the rest
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _SPAN.findall(token.string)


@functools.cache
def defined_in(file: Path) -> frozenset[str]:
    """The names that a module, or a class in it, defines or imports."""
    found: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name for alias in node.names)
    return frozenset(found)


def is_there(parts: list[str], bases: list[Path]) -> bool:
    """True if `parts` is a folder, a module, or something that a module in one of `bases`
    defines."""
    return any(
        is_at(base.joinpath(*parts[:count]), parts[count:])
        for base in bases
        for count in range(len(parts), 0, -1)
    )


def is_at(place: Path, names: list[str]) -> bool:
    """True if `place` is a folder or module, in which `names` are defined."""
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return place.is_dir() and not names
    return defined_in(file).issuperset(names)


@functools.cache
def places_of(package: str) -> list[Path]:
    """Where a short name of a module may be found from: the package and every folder in it."""
    top = ROOT / package
    return [top, *(path for path in top.rglob("*") if path.is_dir())]


@functools.cache
def everywhere() -> list[Path]:
    return [ROOT, *(place for top in PACKAGES for place in places_of(top))]


@functools.cache
def is_module(name: str) -> bool:
    return any((base / f"{name}.py").is_file() for base in everywhere())


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_what_is_named_exists(file: Path) -> None:
    package = name_of(file).split("/")[0]
    bases = everywhere()
    missing = []
    for span in said_in(file):
        text = span.removesuffix("()")
        if _PATH.fullmatch(text) and "/" in text:
            there = [ROOT, file.parent, ROOT / package]
            if not any((base / text).exists() for base in there):
                missing.append(span)
        elif _DOTTED.fullmatch(text) and not _FILE.fullmatch(text):
            parts = text.split(".")
            ours = parts[0] in PACKAGES and (len(parts) > 2 or not is_there(parts[:1], bases))
            if ours:
                if not is_there(parts, [ROOT]):
                    missing.append(span)
            elif (
                is_module(parts[0])
                and parts[0] not in defined_in(file)
                and not is_there(parts, bases)
            ):
                missing.append(span)
    assert missing == []


def lazy_imports(file: Path) -> list[int]:
    """The lines of imports inside functions."""
    return [
        node.lineno
        for function in statements(tree_of(file))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in statements(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def test_modules_are_loaded_late_only_where_that_is_said() -> None:
    late = {
        name_of(file)
        for file in MODULES
        if name_of(file).split("/")[0] in PACKAGES and lazy_imports(file)
    }
    allowed = {name for name in late if any(name.startswith(place) for place in LAZY)}
    assert sorted(late - allowed) == []
