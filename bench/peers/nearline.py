"""This project as it is.

Knows: its commands, its control connection. Must not know: what is measured.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import trio

from bench import backlog, machine
from bench.link.proxy import HOST, Route
from bench.link.schedule import Shape
from bench.peers.base import FLUSH_SECONDS, START_SECONDS, Served, detach, said
from bench.processes import BenchFailure, poll, run
from mount import mountinfo
from mount.control import client
from mount.control.messages import FlushRequest, Status, socket_path
from mount.process import registry


class Nearline(Served):
    """This project: `nearline serve` and `nearline mount`, with their defaults, but without TLS,
    which the peers do not speak here either."""

    name = "nearline"

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self._url = ""
        self.mount_options: list[str] = []
        self._daemon = (0, 0)  # process id and start time, as `registry` knows it
        # A configuration of its own: the benchmark must not see, or leave, anything of the user's.
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("NEARLINE_")},
            "HOME": str(base / "home"),
            "XDG_STATE_HOME": str(base / "home" / "state"),
            "XDG_CONFIG_HOME": str(base / "home" / "config"),
            "XDG_CACHE_HOME": str(base / "home" / "cache"),
        }
        self._env.pop("DBUS_SESSION_BUS_ADDRESS", None)

    @property
    def version(self) -> str:
        return machine.nearline_version()

    def start(self) -> None:
        data, log = self.base / "data", self.base / "server.log"
        password = self.base / "password"
        password.write_text("benchmark\n")
        (self.base / "home").mkdir()
        port = self._port()
        (reached,) = self._reached(Route(port, http=True))
        self._url = f"http://{HOST}:{reached}"
        serve = ["serve", "--data", str(data), "--listen", f"{HOST}:{port}"]
        serve += ["--public-url", self._url]
        self._server = self._spawn(self._command(serve), self._env, log)
        said(self._server, "Nearline serves at ", log)
        self._nearline("account", "add", "bench", "--data", str(data), *_password(password))
        words = ["--account", "bench", *_password(password), "--insecure"]
        self._nearline("login", self._url, *words)
        self._mount()

    def flush(self) -> None:
        at = socket_path(self.base / "state")
        client.ask(at, FlushRequest(FLUSH_SECONDS), line_timeout=None)

    def restart(self, operations: int, spool: int) -> float:
        if not self.network.isolated:
            raise BenchFailure("a start without the server needs root")
        self._unmount()
        self._mount()  # a new state: it gets its identity
        self._nearline("umount", str(self.mountpoint), "--timeout", "30")
        if operations:
            plan = backlog.plan_of(operations, spool, extents=operations // 5)
            trio.run(backlog.add, self.base / "state", plan)
        machine.drop_caches()
        began = time.perf_counter()
        run(["unshare", "--net", *self._mount_command()], self._env, START_SECONDS)
        shown = os.listdir(self.mountpoint)
        (self.mountpoint / "made-at-once").mkdir()
        took = time.perf_counter() - began
        self._note_daemon()
        self._kill()
        self._unmount()
        self._mount()
        if operations and backlog.TOP not in shown:
            raise BenchFailure("the mount does not show what its journal made")
        return took

    def sent(self) -> int:
        return self.status().transferred.uploaded_bytes

    def status(self) -> Status:
        return client.status(socket_path(self.base / "state"))

    def another(self, name: str) -> Nearline:
        """Another device of the same account. To be ended, by `end_device`, before this one."""
        other = copy.copy(self)
        other.base = self.base / name
        other.mountpoint = other.base / "mnt"
        other.mountpoint.mkdir(parents=True)
        other._daemon = (0, 0)
        other._mount()
        return other

    def fill(self, name: str, entries: int) -> None:
        """A directory of so many empty files at the top, which this mount did not make."""
        words = [self._url, "bench", str(self.base / "password"), name, str(entries)]
        command = [sys.executable, "-m", "bench.fill", *words]
        run(self.network.inside(command), self._env, FLUSH_SECONDS)

    def forget_feed(self) -> None:
        """No cursor is known to the server any more, as after its database was restored."""
        with closing(sqlite3.connect(self.base / "data" / "nearline.sqlite", timeout=60)) as rows:
            rows.execute("UPDATE drives SET epoch = ?", (os.urandom(8).hex(),))
            rows.commit()

    def end_device(self) -> None:
        try:
            self._unmount()
        finally:
            self._kill()

    def crash(self) -> None:
        self._kill()
        self._mount()

    def _command(self, words: list[str]) -> list[str]:
        return [sys.executable, "-P", "-m", "mount.cli", *words]

    def _nearline(self, *words: str) -> None:
        command = self.network.inside(self._command(list(words)))
        run(command, self._env, START_SECONDS)

    def _mount(self) -> None:
        run(self.network.inside(self._mount_command()), self._env, START_SECONDS)
        self._note_daemon()

    def _mount_command(self) -> list[str]:
        where = ["--state", str(self.base / "state"), "--cache", str(self.base / "cache")]
        where += self.mount_options
        return self._command(["mount", self._url, str(self.mountpoint), *where, "--insecure"])

    def _note_daemon(self) -> None:
        pid = self.status().pid
        self._daemon = (pid, registry.started_at(pid))

    def _unmount(self) -> None:
        if mountinfo.mounted_at(self.mountpoint) is not None:
            self._nearline("umount", str(self.mountpoint), "--timeout", "30")
        for name in ("state", "cache"):
            shutil.rmtree(self.base / name, ignore_errors=True)

    def _mount_pid(self) -> int:
        return self._daemon[0]

    def _kill(self) -> None:
        pid, started = self._daemon
        if pid and registry.started_at(pid) == started:
            os.kill(pid, signal.SIGKILL)
            ended = "the end of the mount"
            poll(lambda: registry.started_at(pid) != started, ended, timeout=START_SECONDS)
        detach(self.mountpoint)


def _password(file: Path) -> list[str]:
    return ["--password-file", str(file)]
