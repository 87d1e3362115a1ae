"""Programs that tests run, and waiting for what other processes do.

Knows: how a program is started and ended without hanging, with which environment. Must not know:
servers, mounts, what any test proves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.system import forked, parents

COMMAND_SECONDS = 120.0
# For what takes a moment: other processes may have the machine. Who gives up early tells nothing.
PATIENCE_SECONDS = 60.0
LOG_TAIL_BYTES = 6000
NOWHERE = Path("/nonexistent")

T = TypeVar("T")


class Trouble(AssertionError):
    """A command or a wait that did not end as it had to."""


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `condition`; `Trouble` when there is none within `seconds`.

    For what another process does and tells nobody, such as a change arriving in a mount: there is
    no event to wait for from outside, so this asks again and again. It is the only sleep here."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Trouble(f"still not so after {seconds:g} s: {what}")
        time.sleep(0.02)
    return value


def run(
    *command: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = COMMAND_SECONDS,
    check: bool = True,
    input: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; `Trouble` with all it said if it fails (`check`) or takes long."""
    words = [str(word) for word in command]
    with start(
        words,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            out, err = process.communicate(input, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            said = f"{error.stdout!r} {error.stderr!r}"
            raise Trouble(f"{words} took over {seconds:g} s: {said}") from error
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check and done.returncode:
        raise Trouble(f"{words} gave {done.returncode}: {done.stdout} {done.stderr}")
    return done


def start(words: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """A `Popen`. Of our command it is forked from a process that has loaded its modules already,
    where that makes no difference; `options` are those of `forked.Forked`."""
    if words[0] == nearline() and parents.are_usable():
        parent = parents.of(words, environment(NOWHERE, NOWHERE))
        if forked.could_be(options.get("env") or os.environ, parent.environment):
            return parent.fork(words, **options)
    return subprocess.Popen(words, **options)


def nearline() -> str:
    """The command, as it is installed beside the Python that runs the tests."""
    return str(Path(sys.executable).with_name("nearline"))


def environment(home: Path, runtime: Path) -> dict[str, str]:
    """Ours, without anything of the person who runs the tests; what was changed in the sources is
    compiled once, not by every process."""
    left = {"DBUS_SESSION_BUS_ADDRESS", "PYTHONDONTWRITEBYTECODE"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "NEARLINE_", "GIT_")) and name not in left
    }
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Anna"), ("EMAIL", "anna@example.org"))
    }
    return kept | author | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(runtime),
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C.UTF-8",
    }  # fmt: skip


def tail(file: Path) -> str:
    """The last lines of a log."""
    return file.read_text(errors="replace")[-LOG_TAIL_BYTES:] if file.exists() else ""
