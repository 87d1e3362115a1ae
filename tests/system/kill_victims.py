"""The mount and the server that are killed: where they are, how they die, how they come back.

Knows: processes, what both sides count. Must not know: writers, promises, when anybody is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mount.control import client
from mount.control.messages import Status, socket_path
from mount.failures import Failure
from tests.system.harness import Device, Site, Trouble, nearline, run, wait_until
from tests.system.kill_plan import Plan
from tests.system.kill_sent import Sent
from tests.system.processes import start

ENDING_SECONDS = 60.0
RECEIVED = "nearline_blob_received_bytes_total "


def pause(seconds: float) -> None:
    """Let a random time pass. It waits for nothing: any moment is as good as another."""
    threading.Event().wait(seconds)


@dataclass
class Victims:
    """One server, and one mount of it that has not been mounted yet."""

    site: Site
    device: Device
    sent: Sent = field(default_factory=Sent)
    tally: Counter[str] = field(default_factory=Counter)
    mount_lives: bool = False
    server_lives: bool = True
    start_seconds: float = 1.0  # what a start takes here and now

    def mount(self) -> None:
        began = time.monotonic()
        self.device.mount()
        self.start_seconds = time.monotonic() - began
        self.mount_lives = True

    def status(self) -> Status:
        return client.status(socket_path(self.device.state))

    def received(self) -> int:
        with urllib.request.urlopen(f"{self.site.server.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith(RECEIVED))

    def kill_mount(self) -> int:
        status = self.status()
        self.sent.uploaded += status.transferred.uploaded_bytes
        self.tally["deaths of the mount"] += 1
        self.tally["of them during uploads"] += bool(status.uploads)
        self.tally["of them with a journal"] += status.journal.operations > 0
        when = time.monotonic_ns()
        self.mount_lives = False
        self._kill([status.pid])
        return when

    def _kill(self, pids: list[int]) -> None:
        """For good: gone when this returns."""
        self.sent.kills += bool(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}/cwd").exists(), "dead")  # type: ignore[misc]  # a default that binds

    def kill_server(self) -> None:
        self.sent.received += self.received()
        self.sent.kills += 1
        self.tally["deaths of the server"] += 1
        self.site.server.kill()
        self.server_lives = False

    # --- restarts, and deaths during them ---------------------------------------------------------

    def restart(self, plan: Plan) -> None:
        if not self.server_lives:
            for moment in plan.server_again:
                self._start_andkill_server(moment)
            if plan.server_back == "before the mount":
                self.start_server()
        if "mount" in plan.victims:
            for moment in plan.again:
                self._clear(plan.by_hand)
                self._start_andkill_mount(moment)
            self._clear(plan.by_hand)
            self.mount()
        if plan.server_back == "after the mount":
            self.start_server()

    def _clear(self, by_hand: bool) -> None:
        """A mount that is dead is in the way of the next one."""
        if not self.device.mounted:
            return
        if by_hand:
            run("umount", "-l", self.device.at)
        else:
            self.device.umount()

    def start_server(self) -> None:
        if not self.server_lives:
            self.site.server.start()
            self.server_lives = True

    def _start_andkill_mount(self, moment: float) -> None:
        words = ["mount", self.site.server.url, str(self.device.at)]
        where = ["--state", str(self.device.state), "--cache", str(self.device.cache)]
        command = start([nearline(), *words, *where], env=self.site.env, stderr=subprocess.DEVNULL)
        pause(moment * self.start_seconds)
        with contextlib.suppress(Failure):  # not there yet: it has sent nothing
            self.sent.uploaded += self.status().transferred.uploaded_bytes
        self._kill(self._pids(b"mount.process.daemon_main"))
        self.tally["deaths of a starting mount"] += 1
        command.wait(ENDING_SECONDS)
        # One that was started after we had looked.
        self._kill(self._pids(b"mount.process.daemon_main"))

    def _start_andkill_server(self, moment: float) -> None:
        starting = threading.Thread(target=self._start_server_in_vain)
        starting.start()
        pause(moment * self.start_seconds)
        found = self._pids(b"serve")
        self._kill(found)
        starting.join()
        self.site.server.kill()  # one that was started after we had looked
        self.sent.kills += not found
        self.tally["deaths of a starting server"] += 1

    def _start_server_in_vain(self) -> None:
        with contextlib.suppress(Trouble):
            self.site.server.start()

    def _pids(self, word: bytes) -> list[int]:
        """The site's processes with that word in their command lines."""
        found = []
        for pid in self.site.processes():
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found
