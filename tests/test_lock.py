"""The lock has everything that is installed, with hashes and without addresses; and the audit does
not take silence for good news."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
FILES = ("build", "server", "dev", "bench", "tools")
ENTRY = re.compile(
    r"(?P<wanted>[a-z0-9][a-z0-9.-]*==[^\\\n]+)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)"
)


class Locked(NamedTuple):
    version: str
    requirement: Requirement


def locked(name: str) -> dict[str, Locked]:
    """The entries of a lock file, by name; fails for what in it is neither a comment nor an entry
    with hashes."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = {}
    for entry in re.sub(r"\n(?! )", "\0", "\n".join(lines)).split("\0"):
        match = ENTRY.fullmatch(entry)
        assert match, f"requirements/{name}.txt has {entry!r}; run `make lock`"
        wanted = Requirement(match["wanted"])
        (version,) = (item.version for item in wanted.specifier)
        found[canonicalize_name(wanted.name)] = Locked(version, wanted)
    return found


def declared(name: str) -> Iterator[Requirement]:
    """The requirements that pyproject.toml says are in a lock file."""
    if name in GROUPS:
        wanted = GROUPS[name]
    else:
        wanted = [*PROJECT["project"]["dependencies"], *EXTRAS[name]]
    for item in map(Requirement, wanted):
        if item.name != "nearline":
            yield item
        for extra in item.extras if item.name == "nearline" else ():
            yield from map(Requirement, EXTRAS[extra])


@pytest.mark.parametrize("name", FILES)
def test_the_lock_is_what_the_project_asks_for(name: str) -> None:
    found = locked(name)
    for wanted in declared(name):
        entry = found.get(canonicalize_name(wanted.name))
        assert entry, f"{wanted.name} is not in requirements/{name}.txt; run `make lock`"
        assert str(wanted.specifier) == f"=={entry.version}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_hashes_and_no_address(name: str) -> None:
    assert "://" not in (ROOT / f"requirements/{name}.txt").read_text()
    assert all(item.requirement.url is None for item in locked(name).values())


def test_what_is_installed_together_is_of_one_version() -> None:
    most = locked("dev")
    assert locked("server").keys() <= most.keys()
    for name in ("build", "server", "bench"):
        both = locked(name).keys() & most.keys()
        assert {item: locked(name)[item].version for item in both} == {
            item: most[item].version for item in both
        }


def test_whatever_is_needed_here_is_locked_and_nothing_else_is_there() -> None:
    """Follows what each distribution says that it needs, as far as it applies here."""
    versions = {name: each.version for name, each in (locked("build") | locked("dev")).items()}
    left = [Requirement("nearline[dev]"), *map(Requirement, GROUPS["build"])]
    seen: set[tuple[str, str]] = set()
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name != "nearline":
                assert distribution(name).version == versions.get(name), name
            needs = map(Requirement, distribution(name).requires or ())
            left += [
                each
                for each in needs
                if each.marker is None or each.marker.evaluate({"extra": extra})
            ]
    needed = {name for name, _ in seen}
    assert not {name for name in versions if name not in needed and is_here(name)}


def is_here(name: str) -> bool:
    try:
        return bool(distribution(name).version)
    except PackageNotFoundError:
        return False


def test_what_root_runs_is_installed_from_the_lock_too() -> None:
    script = (ROOT / "scripts/install-system").read_text()
    calls = re.findall(r"^pip (?:install|wheel) .*", script, re.MULTILINE)
    assert len(calls) == 5
    assert all("--require-hashes" in call or "--no-index" in call for call in calls)
    assert len(re.findall(r"-m pip\b", script)) == 1  # the function that adds --no-deps


# --- the audit ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit() -> Any:
    loader = SourceFileLoader("audit", str(ROOT / "scripts/audit"))
    spec = spec_from_loader("audit", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


GOOD: dict[str, Any] = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
PASSED = {"name": "other", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ([GOOD], 0, "no weakness of these 1 packages is known"),
        ([GOOD, BAD], 1, "bad 2: PYSEC-1, mended in 2.1"),
        ([GOOD, PASSED], 2, "1 of 2 could not be asked about"),
        ([BAD, PASSED], 1, "1 of 2 could not be asked about"),
        ([], 2, "no answer"),
    ],
)
def test_what_could_not_be_asked_about_is_not_good(
    audit: Any, told: list[dict[str, Any]], code: int, said: str
) -> None:
    lines, found = audit.verdict(told)
    assert found == code
    assert said in "\n".join(lines)


def test_every_lock_is_audited(audit: Any) -> None:
    assert {*audit.LOCKS, "server"} == set(FILES)
    assert locked("server").keys() <= locked("dev").keys()
