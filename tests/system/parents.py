"""The preloaded processes that this one has its commands forked from (`preloaded`).

Knows: which there are, and when a command has to be a new program. Must not know: servers, mounts,
what any test proves.

One that has loaded what runs on a device, and one with the server besides, because no mount may
lean on the server's modules being there. Each is started when it is first needed, and ends with
this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.system import forked

DEVICE, SERVER = "mount,cache,remote", "mount,cache,remote,server"
_OF_THE_SERVER = {"serve", "account", "admin"}
# `NEARLINE_NEW_PROGRAMS` has every command be a new program; a test can too (`conftest.py`).
is_off = "NEARLINE_NEW_PROGRAMS" in os.environ


class Ended(AssertionError):
    """A preloaded process that should be there has ended. What it said is on standard error."""


class Parent:
    """A process that has loaded `packages` in `environment`, with the interpreter of `script`."""

    def __init__(self, packages: str, script: str, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        with open(script) as first:
            self._interpreter = first.readline().removeprefix("#!").strip()
        word, more = forked.room()
        self._channel, theirs = forked.channel()
        words = (str(theirs.fileno()), packages, word)
        self._process = subprocess.Popen(
            [self._interpreter, "-P", "-m", "tests.system.preloaded", *words],
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self.end)
        if not forked.receive(self._channel)[0]:
            raise Ended(f"{packages} could not be loaded; NEARLINE_NEW_PROGRAMS=1 does without")

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, words: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """A child of this parent that runs `words`, of which the first is `script`."""
        return Child(self._channel, [self._interpreter, *words], **options)

    def end(self) -> None:
        self._channel.close()
        self._process.wait()


class Child(forked.Forked):
    """Forked by a `Parent`, which tells how it ended."""

    def _ask(self, message: bytes, descriptors: Sequence[int]) -> int:
        self._answers, theirs = forked.channel()
        with theirs, contextlib.suppress(BrokenPipeError):  # then there is no answer
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


def are_usable() -> bool:
    """False where there can be none, as on macOS, or none are wanted."""
    return not is_off and hasattr(os, "pidfd_open")


def of(words: Sequence[str | Path], environment: Mapping[str, str]) -> Parent:
    """The one to have this forked from; the first time, that is started in `environment`."""
    packages = SERVER if _OF_THE_SERVER & {str(word) for word in words[1:2]} else DEVICE
    with _starting:
        if packages not in _started:
            _started[packages] = Parent(packages, str(words[0]), environment)
        return _started[packages]


_starting, _started = threading.Lock(), dict[str, Parent]()
