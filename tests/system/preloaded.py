"""`nearline` as a process that has imported everything, and is forked for each command.

`python -P -m tests.system.preloaded DESCRIPTOR PACKAGES ROOM`: the channel on which it is asked
(`forked`), the packages whose modules it loads, and `forked.room`.

Knows: what the console script does, and that a mount starts a daemon. Must not know: who asks.

It has one thread and no event loop, so that nothing is lost in a fork. It alone sees its children
end, and tells each one's status on the channel that came with the question; the children's
children are those of any program. It ends when nobody can ask it any more.

The daemon of a mount is a new program (docs/decisions/0010), since threads and loops of a command
would not survive a fork. What becomes it here never had any: it is forked from the command before
that does anything, waits, and ends when the command has ended without a mount.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mount import cli
from mount.process import daemon_main, launch
from tests.system import forked

# What is run when it is imported; and what is only found in a tree of its own.
_NO_MODULES = ("__main__", "migrations")
# What libraries load when they are first used, by the package that does.
_LATER = {
    "mount": ("rich._emoji_codes",),
    "cache": ("lmdb._envid",),
    "remote": ("anyio._backends._trio", "encodings.idna", "httpx", "httpx_ws"),
    "server": ("cryptography.x509", "uvicorn.lifespan.on", "uvicorn.loops.uvloop"),
}


def load(packages: Sequence[str]) -> None:
    """Import every module of `packages`, and what those would import later."""
    for package in packages:
        path = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(path, package + "."):
            if not set(found.name.split(".")) & set(_NO_MODULES):
                importlib.import_module(found.name)
        for name in _LATER[package]:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector of no child looks at it, which would copy it


def children(channel: socket.socket) -> list[str] | None:
    """Fork whenever it is asked. Returns a child's words in that child, and None in the parent when
    nobody can ask any more."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the process
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor in running:
                waiting.unregister(descriptor)
                os.close(descriptor)
                _tell_end(*running.pop(descriptor))
                continue
            message, descriptors = forked.receive(channel)
            if not message:
                return None
            pid = os.fork()
            if pid == 0:
                for one in (channel, *(answer for _, answer in running.values())):
                    one.detach()  # it is closed there, and its number is soon another's
                return forked.become(message, descriptors[:-1])
            for one in descriptors[:-1]:
                os.close(one)
            process, answer = os.pidfd_open(pid), socket.socket(fileno=descriptors[-1])
            waiting.register(process, select.POLLIN)
            running[process] = pid, answer
            answer.send(b"%d" % pid)


def _tell_end(pid: int, answer: socket.socket) -> None:
    """Its status, as waitpid(2) has it. Who has been told finds nothing of it in /proc."""
    _, status = os.waitpid(pid, 0)
    with answer, contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        answer.send(b"%d" % status)


class _Standing(forked.Forked):
    """The one process that stands by for what a command starts."""

    standing: int

    def _ask(self, message: bytes, descriptors: Sequence[int]) -> int:
        socket.send_fds(self._channel, [message], descriptors)
        return self.standing


def stand_by() -> list[str] | None:
    """Fork what becomes this command's daemon, if it starts one. Returns the words of the daemon in
    the daemon, and None in the command."""
    ours, theirs = forked.channel()
    pid = os.fork()
    if pid:
        theirs.close()
        _Standing.standing = pid
        launch.subprocess = _Subprocess(ours)  # type: ignore[assignment]  # what it uses of it
        return None
    ours.close()
    message, descriptors = forked.receive(theirs)
    if not message:
        os._exit(0)  # it did nothing
    theirs.detach()
    return forked.become(message, descriptors)


class _Subprocess:
    """`subprocess` for `launch`, which starts one process, and only if it is the daemon."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def Popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        assert list(command[:-1]) == launch.COMMAND
        return _Standing(self._channel, command, **options)


def main(words: Sequence[str]) -> int:
    """As the parent: fork. As its child: run the command."""
    channel = socket.socket(fileno=int(words[1]))
    load(words[2].split(","))
    assert len(os.listdir("/proc/self/task")) == 1, "a thread was started by an import"
    channel.send(b"ready")
    try:
        command = children(channel)
        if command is None:
            return 0
        _, script, *rest = command  # as the kernel starts a script: its interpreter comes first
        mounts = rest[:1] == ["mount"] and "--foreground" not in rest
        daemon = stand_by() if mounts else None
    except KeyboardInterrupt:  # of whoever runs the tests
        return cli.INTERRUPTED
    if daemon is not None:
        sys.argv = [str(daemon_main.__file__), daemon[-1]]
        return daemon_main.main(sys.argv)
    forked.be_called(Path(script).name)
    sys.argv = [script, *rest]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
