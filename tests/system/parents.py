"""The preloaded processes that this one has its commands forked from (`preloaded`).

Knows: which there are, and when a command has to be a new program. Must not know: servers, mounts,
what any test proves.

One that has loaded what runs on a device, and one with the server besides, because no mount may
lean on the server's modules being there. Each is started when it is first needed, and ends with
this process.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.system import forked

_PACKAGES = {False: "mount,cache,remote", True: "mount,cache,remote,server"}
_OF_THE_SERVER = {"serve", "account", "admin"}
# What `up` starts are new programs by its own doing.
_NEW = {"up"}

# `NEARLINE_NEW_PROGRAMS` has every command be a new program; a test can too (`conftest.py`).
is_off = "NEARLINE_NEW_PROGRAMS" in os.environ


class Ended(AssertionError):
    """A preloaded process that should be there has ended."""


class Parent:
    """A process that has loaded `packages`, as if it had been started in `environment`."""

    def __init__(self, packages: str, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        word, more = forked.room()
        self._channel, theirs = forked.channel()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.system.preloaded", str(theirs.fileno()), packages, word],
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        atexit.register(self.end)
        if not forked.receive(self._channel)[0]:
            raise Ended("the modules could not be loaded; see above")

    def fork(self, words: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        return Child(self._channel, words, **options)

    def end(self) -> None:
        self._channel.close()
        self._process.wait()


class Child(forked.Forked):
    """Forked by a `Parent`, which tells how it ended."""

    def _ask(self, message: bytes, descriptors: Sequence[int]) -> int:
        self._answers, theirs = forked.channel()
        with theirs:
            socket.send_fds(self._channel, [message], [*descriptors, theirs.fileno()])
        return self._answer()

    def _answer(self, flags: int = 0) -> int:
        answer = self._answers.recv(64, flags)
        if not answer:
            raise Ended("the parent of this command has ended")
        return int(answer)

    # Where CPython would wait for a child of ours.

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        return self._waited(self.pid, wait_flags)

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        found: int | None = super()._internal_poll(_deadstate, _waitpid=self._waited)  # type: ignore[misc]
        return found

    def _waited(self, pid: int, flags: int) -> tuple[int, int]:
        """waitpid(2)."""
        try:
            status = self._answer(socket.MSG_DONTWAIT if flags & os.WNOHANG else 0)
        except BlockingIOError:
            return 0, 0
        self._answers.close()
        return pid, status


def may_fork(command: str) -> bool:
    """False where there are none, as on macOS, or none are wanted."""
    is_linux = hasattr(os, "pidfd_open") and Path("/proc/self/environ").exists()
    return is_linux and not is_off and command not in _NEW


def of(command: str, environment: Mapping[str, str]) -> Parent:
    """Whom to have it forked from; the first time, that is started in `environment`."""
    packages = _PACKAGES[command in _OF_THE_SERVER]
    if packages not in _started:
        _started[packages] = Parent(packages, environment)
    return _started[packages]


_started: dict[str, Parent] = {}
