"""A child that is forked from a process which has loaded its modules, in place of a new program.

Knows: how what a child is to be (words, environment, directory, descriptors) reaches the process
that becomes it, and how it does. Must not know: which modules are loaded, who is asked.

Such a child is true to a program in what others see of it: its exit code or signal, its standard
streams, its process group, and its words and environment in /proc, which are written where the
kernel reads them: where those of the process lie that it was forked from. That one is therefore
started with `room` for them.

It is not true in what an interpreter, a library or a module takes from its environment when it
starts or is imported: see `could_be`. Nor in the seed of hashes, which is that of its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Variables that are read when they are needed. Any other may have been read at the parent's start.
READ_LATE = re.compile("HOME|XDG_RUNTIME_DIR|TMPDIR|NEARLINE_TOKEN|PYTEST_CURRENT_TEST")
ROOM = "NEARLINE_ROOM"

_WORDS_BYTES, _ENVIRONMENT_BYTES = 4 << 10, 96 << 10  # one string has at most 128 KiB
_MESSAGE_BYTES, _DESCRIPTORS, _ALL_DESCRIPTORS = 128 << 10, 8, 1 << 20


def room() -> tuple[str, dict[str, str]]:
    """A last word and a variable for a process that others are forked from."""
    return " " * _WORDS_BYTES, {ROOM: " " * _ENVIRONMENT_BYTES}


def could_be(environment: Mapping[str, str], parents: Mapping[str, str]) -> bool:
    """True if a child of a parent that was started with `parents` would not know better that it
    is no new program in `environment`."""
    either = environment.keys() | parents.keys()
    differing = {name for name in either if environment.get(name) != parents.get(name)}
    return all(READ_LATE.fullmatch(name) for name in differing)


class Forked(subprocess.Popen[Any]):
    """A `Popen` that asks a process at the other end of `channel` to be the child, or to fork it.
    Of the options there are those of the streams, `env`, `cwd` and `pass_fds`."""

    def __init__(self, channel: socket.socket, *arguments: Any, **options: Any) -> None:
        self._channel = channel
        super().__init__(*arguments, **options)

    def _ask(self, message: bytes, descriptors: Sequence[int]) -> int:
        """The child's process id."""
        raise NotImplementedError

    def _execute_child(self, args, *rest):  # type: ignore[no-untyped-def]  # CPython's own
        """Where CPython starts a program, all else around it being the same."""
        _, _, _, pass_fds, cwd, env, _, _, _, *streams = rest[:15]
        stdin, _, _, stdout, _, stderr = streams
        message = json.dumps(
            {
                "words": [os.fspath(word) for word in args],
                "environment": dict(os.environ if env is None else env),
                "cwd": os.fspath(cwd or os.getcwd()),
                "umask": _umask(),
                "kept": list(pass_fds),
            }
        )
        given = [own if one == -1 else one for own, one in enumerate((stdin, stdout, stderr))]
        try:
            self.pid = self._ask(message.encode(), [*given, *pass_fds])
            self._child_created = True
        finally:
            self._close_pipe_fds(*streams)


def become(message: bytes, descriptors: Sequence[int]) -> list[str]:
    """Be what a `Forked` asked for; the words. For a process of one thread that has just been
    forked: whatever else it has open is closed."""
    asked = json.loads(message)
    words: list[str] = asked["words"]
    targets = [0, 1, 2, *asked["kept"]]
    above = max(*targets, *descriptors) + 1  # out of the way of each other first
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, above + number)
    os.closerange(3, above)
    for number, target in enumerate(targets):
        os.dup2(above + number, target)
    os.closerange(above, _ALL_DESCRIPTORS)
    os.umask(asked["umask"])
    os.chdir(asked["cwd"])
    _rename(words, asked["environment"])
    be_called(Path(words[0]).name)
    return words


def be_called(name: str) -> None:
    """To the kernel (proc_pid_comm(5)), which calls a script by its own name."""
    Path("/proc/self/comm").write_text(name)


def _rename(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Have these in /proc (proc_pid_cmdline(5), proc_pid_environ(5)), and in `os.environ`."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    words_start, words_end, start, end = map(int, fields[45:49])
    os.environ.clear()  # libc's variables lie there until then
    for place, size, strings in (
        (words_start, words_end - words_start, words),
        (start, end - start, [f"{name}={value}" for name, value in environment.items()]),
    ):
        written = b"".join(os.fsencode(string) + b"\0" for string in strings)
        if len(written) > size:
            raise ValueError(
                f"{len(written)} bytes of words or variables; there is room for {size}"
            )
        ctypes.memmove(place, written.ljust(size, b"\0"), size)
    os.environ.update(environment)


def _umask() -> int:
    """Read without being set, which other threads would notice."""
    (line,) = re.findall(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line, 8)


def channel() -> tuple[socket.socket, socket.socket]:
    """Both ends of what whole messages and their descriptors go through."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors. It is empty when nobody is at the other end any more."""
    message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, _DESCRIPTORS)
    return message, descriptors
