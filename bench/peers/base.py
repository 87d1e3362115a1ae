"""The file systems under test, each with its server, behind one interface.

Knows: what all of them have in common. Must not know: what is measured, how a single one works.
Invariants: everything a peer makes lies under its own directory; `stop` may be called at any time,
also after a start that failed half-way, and leaves neither mount nor process.

A peer's server runs for the whole benchmark, its mount only from one `mount` to the next `cold`.
With a `Shape` there is a line between the two (`bench/link`); without one they are side by side.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from bench.link.line import Line
from bench.link.proxy import HOST, Counts, Route
from bench.link.schedule import Shape
from bench.peers import installing
from bench.peers.installing import Program
from bench.processes import BenchFailure, Network, cpu_seconds, family, poll, stop
from mount import mountinfo
from mount.process import unmount

START_SECONDS = 60.0
FLUSH_SECONDS = 900.0
FIRST_PORT = 20000
_ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM"]  # also when we are killed


class Peer(ABC):
    """A file system at `mountpoint`. `wired`: it has a server, so bytes moved mean something."""

    name: str
    wired = True
    needs: tuple[Program, ...] = ()  # programs that are not part of the benchmark's environment

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        self.base, self.shape = base, shape
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir(parents=True)

    @property
    @abstractmethod
    def version(self) -> str:
        """Name and version of the program that is measured, for the record."""

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

    def pids(self) -> dict[str, int]:
        """The processes that make up the mount and its server, by what they are."""
        return {}

    # What only some can do: `None` says that this one cannot.

    def traffic(self) -> Counts | None:
        """Connections and bytes that have passed its line since the start; None: it has none."""
        return None

    @contextlib.contextmanager
    def nearby(self) -> Iterator[None]:
        """While this is open, the server is as near as it can be: for preparing."""
        yield

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
    """A peer with a server and a FUSE mount: the parts that all such have in common."""

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self.network = Network()
        self.line: Line | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._ports = FIRST_PORT

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
            self._stop_servers()
            if self.line is not None:
                self.line.close()
            self.network.close()

    def _stop_servers(self) -> None:
        stop(self._server)

    def pids(self) -> dict[str, int]:
        assert self._server is not None
        return {"mount": self._mount_pid(), "server": self._server.pid}

    def cpu(self) -> float:
        return cpu_seconds(pid for first in self.pids().values() for pid in family(first))

    def moved(self) -> int:
        """With a line: what passed it, without headers of packets."""
        return self.network.bytes_moved() if self.line is None else self.line.counts().both

    def traffic(self) -> Counts | None:
        return None if self.line is None else self.line.counts()

    @contextlib.contextmanager
    def nearby(self) -> Iterator[None]:
        with contextlib.nullcontext() if self.line is None else self.line.short():
            yield

    def _port(self) -> int:
        """One that nobody listens on; in a network of our own all are free."""
        if self.network.isolated:
            self._ports += 1
            return self._ports
        with socket.create_server((HOST, 0)) as sock:
            port: int = sock.getsockname()[1]
            return port

    def _reached(self, *routes: Route) -> list[int]:
        """The ports at which the mount reaches the servers at `routes`: behind the line, if there
        is one. To be called once."""
        if self.shape is None:
            return [route.port for route in routes]
        self.line = Line(self.network, self.shape, routes)
        return self.line.ports

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


class Foreground(Served):
    """Peers whose mount is a process that stays in the foreground until it is told to end."""

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self._process: subprocess.Popen[bytes] | None = None
        self._env: dict[str, str] = installing.environment()

    @abstractmethod
    def _mount_command(self) -> list[str]: ...

    def _mount(self) -> None:
        self._process = self._spawn(self._mount_command(), self._env, self.base / "mount.log")
        poll(self._mounted, f"{self.name}: mount", timeout=START_SECONDS)

    def _mounted(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = (self.base / "mount.log").read_text(errors="replace")
            raise BenchFailure(f"{self.name}: the mount ended: {log[-500:]}")
        return mountinfo.mounted_at(self.mountpoint) is not None

    def _unmount(self) -> None:
        self._kill()
        shutil.rmtree(self.base / "cache", ignore_errors=True)

    def _mount_pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _kill(self) -> None:
        stop(self._process)  # it unmounts by itself when it is told to end
        detach(self.mountpoint)


def detach(mountpoint: Path) -> None:
    """Take away what is left of a mount without asking it anything: umount(8) would."""
    if mountinfo.mounted_at(mountpoint) is not None:
        unmount.detach(mountpoint, lazy=True)


def said(process: subprocess.Popen[bytes], marker: str, log: Path) -> str:
    """The rest of the first line in `log` that has `marker` in it: what a server says once it
    listens."""
    rest = ""

    def listening() -> bool:
        nonlocal rest
        text = log.read_text(errors="replace")
        rest, newline, _ = text.partition(marker)[2].partition("\n")
        if process.poll() is not None:
            raise BenchFailure(f"the server ended: {text[-500:]}")
        return bool(newline)

    poll(listening, "the server", timeout=START_SECONDS)
    return rest.strip()
