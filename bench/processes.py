"""Processes of a peer: started in a network of their own, counted, and ended by their id.

Knows: Linux (network namespaces, /proc). Must not know: which peer it serves.
Invariants: whatever was started here is ended by `stop` or `Network.close`, and nothing else is; a
network ends with the benchmark even when that is killed: its holder reads our end of a pipe.

Why a network namespace: its loopback carries one peer's traffic and nothing else, so the kernel's
counter of it is the same instrument for every peer, whatever the peer itself counts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

STOP_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchFailure(Exception):
    """A peer could not do what a workload asks of it; the message says what happened."""


class Network:
    """A loopback for one peer. `isolated` is False where the kernel does not let us make one: then
    it is the machine's own loopback, and other traffic counts too."""

    def __init__(self) -> None:
        script = "ip link set lo up && echo up && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        self.isolated = self._holder.stdout.readline() == b"up\n"

    def inside(self, command: Sequence[str]) -> list[str]:
        """`command`, made to run in this network. It keeps its process id: nsenter execs it."""
        if not self.isolated:
            return list(command)
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def bytes_moved(self) -> int:
        """Bytes that crossed the loopback so far, both directions, packet headers included."""
        pid = str(self._holder.pid) if self.isolated else "self"
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == "lo":
                return int(counters.split()[8])  # what is sent on lo is received on lo: count once
        raise BenchFailure("the network has no loopback")

    def listens(self, port: int) -> bool:
        """True if somebody listens at `port` (proc(5): state 0A)."""
        pid = str(self._holder.pid) if self.isolated else "self"
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    return True
        return False

    def close(self) -> None:
        """End the holder; the namespace goes when the last process in it is gone."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()


def run(command: Sequence[str], env: dict[str, str], timeout: float) -> str:
    """The output of `command`. Raises `BenchFailure` with its last words when it fails."""
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise BenchFailure(f"{' '.join(command[-6:])}: exit {done.returncode}: {' / '.join(said)}")
    return done.stdout


def stop(process: subprocess.Popen[bytes] | None) -> None:
    """End `process`, politely first."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def family(pid: int) -> list[int]:
    """`pid` and the processes that it has started, and these, as far as they live."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the living processes `pids` have used, all threads (proc(5))."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def poll(ready: Callable[[], bool], what: str, *, timeout: float) -> None:
    """Return once `ready()`; for states that nobody announces. Asks more rarely the longer it has
    waited: late by at most a fiftieth of the wait, and not itself the load that is measured.
    Raises `BenchFailure` after `timeout` seconds."""
    began = time.monotonic()
    while not ready():
        waited = time.monotonic() - began
        if waited > timeout:
            raise BenchFailure(f"{what}: not within {timeout:g} s")
        time.sleep(min(0.25, max(0.005, waited / 50)))
