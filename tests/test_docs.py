"""The pages for people say what is so: what they name exists, their tables are the program's."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args, get_origin, get_type_hints

import pytest
from cyclopts import CycloptsError, MissingArgumentError
from msgspec import Struct

from cache.metadata import schema
from cache.namespace import conflicts
from mount.cli import _take_debug
from mount.cli.app import app
from mount.control import account_messages, messages
from mount.options import FUSE_FLAGS, OPTIONS, Options, parse_options
from remote.protocol.errors import RULES, ChunksMissing, Exists
from remote.protocol.messages import Op
from server.metadata.schema import metadata
from server.settings import Tunables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
OURS = ("mount", "cache", "remote", "server", "bench", "tests", "docs", "scripts")

# Files that a mount or a server makes; they look like names of Python.
MADE = frozenset({"mount.log", "mount.log.1", "mount.stderr", "server.log", "server.url"})
MADE |= {"server.certificate", "server.fingerprint"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


class Shown(NamedTuple):
    """A command line on a page. A whole one stands in a block; in running text arguments may be
    left out."""

    page: str
    line: str
    whole: bool


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def spans(page: Path) -> list[str]:
    """The words in backticks in running text, on one line each."""
    prose = _FENCE.sub("", page.read_text())
    return [" ".join(found.split()) for found in _SPAN.findall(prose)]


def commands() -> Iterator[Shown]:
    for page in PAGES:
        for _, block in _FENCE.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("nearline ", "sudo nearline ")):
                    yield Shown(name_of(page), line.removeprefix("sudo "), whole=True)
        for span in spans(page):
            if span.startswith("nearline ") and "@" not in span:
                yield Shown(name_of(page), span, whole=False)


SHOWN = sorted(set(commands()))


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_every_command_line_is_one(shown: Shown) -> None:
    words, _ = _take_debug(shlex.split(shown.line, comments=True)[1:])
    try:
        _, bound, _ = app.parse_args(
            [word for word in words if word != "&"], exit_on_error=False, print_error=False
        )
    except MissingArgumentError:
        assert not shown.whole
        return
    except CycloptsError as error:
        pytest.fail(str(error))
    parse_options(bound.arguments.get("options") or [])


def test_every_command_is_on_a_page() -> None:
    """And the other way round: the user guide, the administrator's or the README shows each."""
    told = " ".join(shown.line for shown in SHOWN)
    names = [name for name in app if not name.startswith("-")]
    names += [f"{above} {name}" for above in names for name in app[above] if name[0] != "-"]
    assert [name for name in names if f"nearline {name}" not in told] == []


def test_the_table_of_mount_options() -> None:
    """It has each option that is declared and each flag of FUSE, and no other."""
    _head, _line, *table = rows("docs/user-guide.md", "Mount options")
    said = {}
    for *flag, names, default, _what in table:
        for name in re.findall(r"`([^`]+)`", names):
            said[name] = (flag, default)
    defaults = Options()
    for field, option in OPTIONS.items():
        flag, default = said.pop(option.name if option.read is None else f"{option.name}=")
        assert flag == ([f"`{option.flag}`"] if option.help else []), option.name
        value = getattr(defaults, field)
        if value is not None:
            assert default == _default_text(value), option.name
    # The kernel checks permissions always; suid and dev are told beside what takes them away.
    assert said.keys() == FUSE_FLAGS - {"default_permissions", "suid", "dev"}


def _default_text(value: object) -> str:
    if isinstance(value, bool):
        return "off"
    if not isinstance(value, int):
        return f"`{value}`"
    return f"{value >> 30} GiB" if value >= 1 << 30 else str(value)


# --- what pages point at ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{name_of(page)} links to {target}"


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(text.strip().replace(" ", "-") for text in plain)


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    names = _LINK.findall(index.read_text()) + spans(index)
    listed = {(index.parent / target).resolve() for target in names}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= listed | {index}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_exists(page: Path) -> None:
    paths = [span for span in spans(page) if span.startswith(tuple(f"{top}/" for top in OURS))]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_dotted_name_exists(page: Path) -> None:
    dotted = re.compile(rf"(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+")
    names = {span for span in spans(page) if dotted.fullmatch(span)} - status_fields() - MADE
    assert sorted(name for name in names if not is_defined(name)) == []


def is_defined(dotted: str) -> bool:
    """True if a dotted name is a module, or something that one defines, to any depth."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        if count == len(parts) and base.is_dir():
            return True
        if base.with_suffix(".py").is_file():
            return is_in(ast.parse(base.with_suffix(".py").read_text()).body, parts[count:])
    return False


def is_in(body: list[ast.stmt], names: list[str]) -> bool:
    if not names:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == names[0]:
                return is_in(node.body, names[1:])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(item, ast.Name) and item.id == names[0] for item in targets):
                return len(names) == 1
    return False


@functools.cache
def all_tests() -> frozenset[str]:
    found: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        found.update(re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_exists(page: Path) -> None:
    named = {span for span in spans(page) if re.fullmatch(r"test_\w+", span)} - {"test_"}
    assert sorted(named - all_tests()) == []


@pytest.mark.parametrize("page", ["docs/semantics.md", "docs/security.md"])
def test_every_row_has_its_tests_in_the_appendix(page: str) -> None:
    """Each promise has an id of its own, and the appendix names its tests or says that it has
    none."""
    promises, _, appendix = (ROOT / page).read_text().partition("\n## Appendix: ")
    in_tables = re.findall(r"^\| \*\*([A-Z]\d+)\*\* \|", promises, re.MULTILINE)
    in_lists = re.findall(r"^- \*\*([A-Z]\d+)\b", promises, re.MULTILINE)
    proven = re.findall(r"^\| ([A-Z]\d+) \|(.*)$", appendix, re.MULTILINE)
    assert proven
    assert len(set(in_tables)) == len(in_tables)
    assert sorted(row for row, _ in proven) == sorted({*in_tables, *in_lists})
    tests = re.compile(r"`test_\w+`|\*\*[KP]\*\*|`tests/|\bsee [A-Z]\d+|\bnone\b|\bno test yet\b")
    assert [row for row, said in proven if not tests.search(said)] == []


# --- tables that are the program's --------------------------------------------------------------


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables under a heading of a page."""
    text = (ROOT / page).read_text()
    part = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip("| \n") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_the_conflict_table() -> None:
    said = {(row[0], row[1]): row[2] for row in rows("docs/semantics.md", "Conflicts")[2:]}
    rules = {}
    for kind in (op.__struct_config__.tag for op in get_args(Op)):
        for problem in RULES:
            tag = f"`{problem.__struct_config__.tag}`"
            given = ChunksMissing(chunks=[]) if problem is ChunksMissing else problem()
            plain = conflicts.verdict(str(kind), given, directory=False)
            rules[f"`{kind}`", tag] = plain.value
            special = conflicts.verdict(str(kind), given, directory=True)
            if special is not plain:
                rules[f"`{kind}` of a directory", tag] = special.value
    taken = {
        conflicts.verdict(kind, Exists(taken=what), directory=directory).value
        for kind in ("create", "write")
        for what in ("file", "version")
        for directory in (False, True)
    }
    (rules["`create`, `write`", "`exists`, of the id and not of the name"],) = taken
    assert said == {case: what for case, what in rules.items() if what != "keep"}


@functools.cache
def status_fields() -> frozenset[str]:
    return frozenset(fields_of(messages.Status))


def fields_of(struct: type[Struct], above: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(struct).items():
        if name not in struct.__struct_fields__:
            continue
        yield above + name
        inner = next(iter(get_args(kind)), None) if get_origin(kind) is list else kind
        if isinstance(inner, type) and issubclass(inner, Struct):
            yield from fields_of(inner, f"{above}{name}{'[]' if inner is not kind else ''}.")


def test_the_status_page_has_every_field_and_no_other() -> None:
    page = (ROOT / "docs/status-schema.md").read_text()
    said = re.findall(r"^\| `([a-z_.\[\]]+)` \|", page, re.MULTILINE)
    assert sorted(said) == sorted(status_fields())


def test_the_page_of_json_has_every_field_and_no_other() -> None:
    """Each command's table is that of the answer which the mount gives it."""
    answers = (
        ("nearline shares", account_messages.Shares),
        ("nearline shared", account_messages.Shared),
        ("nearline link", account_messages.LinkMade),
        ("nearline links", account_messages.Links),
        ("nearline log", account_messages.History),
        ("nearline trash list", account_messages.Trash),
        ("nearline devices", account_messages.Devices),
        ("nearline devices add", account_messages.Token),
    )
    for command, answer in answers:
        table = rows("docs/json-output.md", f"`{command} --json`")
        assert [row[0].strip("`") for row in table[2:]] == list(fields_of(answer)), command


def test_the_cache_statistics_are_all_named() -> None:
    page = spans(ROOT / "docs/status-schema.md")
    assert set(messages.CacheStats.__struct_fields__) <= set(page)


def test_every_table_is_described() -> None:
    page = (ROOT / "docs/on-disk-formats.md").read_text()
    said = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    here = set(re.findall(r"^CREATE TABLE (\w+)", schema.SCHEMA, re.MULTILINE))
    lmdb = {"blocks", "index", "pins", "meta"}
    assert said - {"lock", "reserve"} == here | set(metadata.tables) | lmdb
    assert f"`user_version` {schema.SCHEMA_VERSION}." in page


def test_every_setting_is_described() -> None:
    table = [row for row in rows("docs/admin-guide.md", "Configuration") if len(row) > 1]
    said = {row[0].strip("`"): row[1] for row in table}
    defaults = Tunables()
    for name in Tunables.__struct_fields__:
        default = getattr(defaults, name)
        assert name in said
        assert default is None or said[name] == str(default)
