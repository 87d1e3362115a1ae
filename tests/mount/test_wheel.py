"""The built wheel: four top-level packages that nobody else owns, and everything they need."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mount import units

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = {"mount", "cache", "remote", "server"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel, built from this working copy with the tools of this environment."""
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_top_level_names_are_exactly_ours(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_no_other_distribution_here_owns_them() -> None:
    owners = packages_distributions()
    assert {
        name: owners[name] for name in PACKAGES if owners.get(name, ["nearline"]) != ["nearline"]
    } == {}


def test_what_is_not_python_is_there_too(names: set[str]) -> None:
    assert {f"mount/units/{name}" for name in units.TEMPLATES} <= names


def test_the_migrations_are_there(names: set[str]) -> None:
    here = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "server" / "metadata/migrations").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert here
    assert here <= names


def test_nothing_else_is(names: set[str]) -> None:
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
