"""Watching over a server and a mount, and ending them in the order in which nothing is lost.

Knows: two child processes and the person's Ctrl-C. Must not know: what either child does inside;
this process loads neither HTTP nor FUSE. The children are in sessions of their own, so that Ctrl-C
reaches only this process, and end by themselves when it is killed (`process.die_with_parent`).

Concurrency: one thread per child waits for its end and puts an event into `_events`; signal
handlers put theirs into the same queue (`SimpleQueue.put` is reentrant). The main thread alone
takes events out, one at a time, and alone changes anything.
"""

from __future__ import annotations

import contextlib
import queue
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from mount.config import MountConfig
from mount.failures import Failure
from mount.process import launch, registry, unmount
from mount.process.up.server import Server
from mount.progress import View
from remote.protocol import backoff


@dataclass(frozen=True)
class ServerEnded:
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class RestartServer: ...


@dataclass(frozen=True)
class MountEnded:
    code: int


@dataclass(frozen=True)
class StopAsked: ...


Event = ServerEnded | RestartServer | MountEnded | StopAsked


class _LeaveJournal(BaseException):
    """The second Ctrl-C: raised by the signal handler into whatever the main thread waits for."""


def say(text: str) -> None:
    print(text, flush=True)


class Watch:
    """Waits for what happens while everything runs, and ends it."""

    def __init__(
        self, config: MountConfig, server: Server, mounting: subprocess.Popen[bytes]
    ) -> None:
        self._config, self._server, self._mounting = config, server, mounting
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._failures = 0
        self._timer: threading.Timer | None = None

    def run(self, welcome: Callable[[], None]) -> None:
        """Return after an orderly end; raise `Failure` when the mount's process died. `welcome` is
        called when Ctrl-C does what it says that it does."""
        self._follow_server()
        self._follow(self._mounting, lambda: MountEnded(self._mounting.returncode))
        with _signals(lambda: self._events.put(StopAsked())):
            welcome()
            try:
                while not self._handle(self._events.get()):
                    pass
            finally:
                if self._timer is not None:
                    self._timer.cancel()

    def _handle(self, event: Event) -> bool:
        """Act on one event; whether it is over."""
        match event:
            case StopAsked():
                self._end_mount()
                return True
            case MountEnded(0):
                say(f"{self._config.mountpoint} was unmounted.")
                return True
            case MountEnded(code):
                raise Failure(self._mount_died(code))
            case ServerEnded(process) if process is self._server.process:
                self._restart_later(process.returncode)
            case RestartServer():
                self._restart()
        return False

    def _follow(self, process: subprocess.Popen[bytes], event: Callable[[], Event]) -> None:
        def wait() -> None:
            process.wait()
            self._events.put(event())

        threading.Thread(target=wait, daemon=True).start()

    def _follow_server(self) -> None:
        process = self._server.process
        assert process is not None
        self._follow(process, lambda: ServerEnded(process))

    def _restart_later(self, code: int) -> None:
        """The mount goes on offline meanwhile; nothing is lost."""
        wait = backoff.delay(self._failures, random.random())
        self._failures += 1
        say(f"The server ended (exit code {code}); starting it again in {wait:.1f} s.")
        self._timer = threading.Timer(wait, lambda: self._events.put(RestartServer()))
        self._timer.daemon = True
        self._timer.start()

    def _restart(self) -> None:
        self._server.start()
        self._follow_server()
        try:
            self._server.wait_ready()
        except Failure as error:
            say(f"{error}.")
            return  # its end is an event of its own
        self._failures = 0
        say("The server runs again.")

    def _mount_died(self, code: int) -> str:
        where = self._config.state_dir / launch.LOG_NAME
        with contextlib.suppress(Failure):  # nothing is mounted any more: nothing to detach
            unmount.detach(self._config.mountpoint, lazy=True)
        return f"the mount's process ended (exit code {code}); see {where}, then start again"

    def _end_mount(self) -> None:
        """Flush with progress, then unmount. A second Ctrl-C leaves the rest in the journal."""
        say("\nSending what is left. Ctrl-C again leaves it for the next start.")
        with _signals(_raise_leave):
            try:
                with View("flush") as view:
                    ending = self._unmount(view)
            except _LeaveJournal:
                ending = "Left for the next start."
                self._leave()
        say(ending)

    def _unmount(self, view: View) -> str:
        here = self._config.mountpoint
        try:
            note = unmount.unmount(here, on_progress=view)
        except unmount.Busy as error:
            record = registry.get(here)
            if record is not None:
                unmount.flush(record, timeout=None, on_progress=view)
                unmount.terminate(record)
            by = f": {error.by}" if error.by else ""
            return f"Everything is sent, and {here} is unmounted, though it was in use{by}."
        return note or f"Everything is sent, and {here} is unmounted."

    def _leave(self) -> None:
        record = registry.get(self._config.mountpoint)
        if record is not None and record.alive:
            with _signals(lambda: None):
                unmount.terminate(record)


def _raise_leave() -> None:
    raise _LeaveJournal


@contextlib.contextmanager
def _signals(act: Callable[[], object]) -> Iterator[None]:
    """While inside, Ctrl-C, SIGTERM and a closed terminal call `act`, in the main thread."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        act()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
