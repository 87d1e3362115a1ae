"""Building in the mount: a C project with make, and a Python environment with pip."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.system.applications.trees import arrives
from tests.system.conftest import Pair
from tests.system.harness import run

LUA = Path(sys.prefix) / "lua"  # `scripts/setup dev` unpacks it there, where there is apt-get


@pytest.mark.skipif(not LUA.exists(), reason="Lua's source is not there: run make setup on Debian")
def test_a_c_project_is_compiled_in_parallel_and_made_again_where_it_changed(pair: Pair) -> None:
    """Make believes times: a second run has nothing to do, on either device, and a changed header
    compiles again what includes it, and nothing else."""
    place = pair.a.at / "lua"
    run("cp", "-r", LUA, place)
    assert len(list((place / "src").glob("*.c"))) > 30
    make = ["make", "-s", "-j2", "-C", "src", "linux", "MYCFLAGS=-O0"]
    run(*make, cwd=place, seconds=100)
    again = ["make", "-q", "-C", "src", "ALL=all", "a", "lua", "luac"]
    assert run(*again, cwd=place, check=False).returncode == 0
    program = place / "program.lua"
    program.write_text("print(string.rep('x', 3), _VERSION)\n")
    said = run(place / "src" / "lua", program).stdout

    theirs = arrives(pair, "lua")
    assert run(theirs / "src" / "lua", theirs / "program.lua").stdout == said
    assert run(*again, cwd=theirs, check=False).returncode == 0
    os.utime(theirs / "src" / "lzio.h")
    made = run("make", "-n", "-C", "src", "lua", cwd=theirs).stdout
    compiled = {word for word in made.split() if word.endswith(".c")}
    assert "lzio.c" in compiled
    assert "lmathlib.c" not in compiled
    run("make", "-s", "-C", "src", "clean", cwd=theirs)
    pair.b.flush()
    pair.a.misses("lua/src/lua")
    pair.a.misses("lua/src/lzio.o")


def wheel(at: Path) -> Path:
    """A distribution as pip installs it: a package with many modules, data, and a command."""
    file = at / "poem-1.0-py3-none-any.whl"
    info = "poem-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"poem/verse{number}.py", f"LINE = {number}\n" * 50)
        archive.writestr(
            "poem/__init__.py",
            "from poem import verse39\ndef main():\n    print('read', verse39.LINE)\n",
        )
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: poem\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\npoem = poem:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


def test_pip_installs_into_an_environment_in_the_mount(pair: Pair, tmp_path: Path) -> None:
    """Installed, used (which writes the compiled modules), installed anew, removed. The pip is the
    one of these tests: a copy of its own in the environment would be 900 more files of no news."""
    place = pair.a.at / "venv"
    env = {"HOME": str(pair.site.home), "PIP_NO_INDEX": "1", "PATH": os.environ["PATH"]}
    run(sys.executable, "-m", "venv", "--without-pip", place)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place, "--quiet"]
    run(*pip, "install", wheel(tmp_path), env=env, seconds=100)
    assert run(place / "bin" / "poem").stdout == "read 39\n"
    theirs = arrives(pair, "venv", contents=False)
    found = run(theirs / "bin" / "python", "-c", "import poem; poem.main(); print(poem.__file__)")
    said, where = found.stdout.splitlines()
    assert said == "read 39"
    assert where.startswith(str(theirs))
    run(*pip, "uninstall", "--yes", "poem", env=env, seconds=100)
    assert not (place / "bin" / "poem").exists()
    arrives(pair, "venv")
