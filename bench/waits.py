"""`python -m bench.waits`: how long one who asks each 10 ms waits while others do what is large.

Asked are `statvfs` and `statx` past the kernel's caches, of which the mount answers both from its
tables: what they wait for is somebody else's work. Knows: the `Peer` of this project, clocks. Must
not know: what a mount does meanwhile. The one who asks is a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import machine
from bench.data import MIB, write_source
from bench.peers.nearline import Nearline
from bench.processes import BenchFailure, poll

EVERY_SECONDS = 0.01
QUIET_SECONDS = 1.0
READERS = 200
READER_BYTES = 4 * MIB
SOON = 300.0
_AT_FDCWD, _AT_STATX_FORCE_SYNC, _STATX_BASIC = -100, 0x2000, 0x7FF


# --- the one who asks ---------------------------------------------------------------------------


def probe(top: Path) -> None:
    """Ask until told to end; the seconds that each question took, as JSON."""
    statx, room = ctypes.CDLL(None, use_errno=True).statx, ctypes.create_string_buffer(256)
    path = os.fsencode(top / "asked")
    took: dict[str, list[float]] = {"statvfs": [], "stat": []}
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    print("asks", flush=True)
    due = time.perf_counter()
    while not stop.is_set():
        began = time.perf_counter()
        os.statvfs(top)
        middle = time.perf_counter()
        if statx(_AT_FDCWD, path, _AT_STATX_FORCE_SYNC, _STATX_BASIC, room):
            raise OSError(ctypes.get_errno(), "statx")
        took["statvfs"].append(middle - began)
        took["stat"].append(time.perf_counter() - middle)
        due = max(due + EVERY_SECONDS, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    print(json.dumps(took))


def waited(name: str, peer: Nearline, work: Callable[[], object]) -> None:
    """Do the work beside one who asks, and print how long that one waited."""
    command = [sys.executable, "-m", "bench.waits", "--probe", str(peer.mountpoint)]
    asker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    asker.stdout.readline()
    cpu, queued, began = peer.cpu(), _queued(peer), time.perf_counter()
    try:
        work()
    finally:
        seconds, used = time.perf_counter() - began, peer.cpu() - cpu
        queued = _queued(peer) - queued
        time.sleep(QUIET_SECONDS)  # what goes on after the work has been answered counts
        asker.terminate()
        said, _ = asker.communicate()
    line = f"{name:14} {seconds:7.2f} s {used:7.2f} s cpu {queued:6.2f} s queued"
    for kind, took in json.loads(said).items():
        took.sort()
        shown = [took[int(len(took) * part)] for part in (0.5, 0.95, 0.99)] + [took[-1]]
        line += f"  {kind}: " + " ".join(f"{1000 * value:7.1f}" for value in shown)
    print(f"{line}  (load {machine.load_average():.1f})", flush=True)


def _queued(peer: Nearline) -> float:
    """Seconds that the mount's main thread could run and had no processor (proc(5), schedstat):
    what a busy machine adds to every wait."""
    pid = peer.pids()["mount"]
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9


# --- what others do -----------------------------------------------------------------------------


def measure(peer: Nearline, base: Path, entries: int, only: list[str]) -> None:
    """Every wanted situation, on one mount with a directory of so many entries."""
    wanted = set(only)
    here = peer.mountpoint
    (here / "asked").touch()
    (here / "marks").mkdir()
    peer.flush()
    if "alone" in wanted:
        waited("alone", peer, lambda: time.sleep(3))
    if wanted & {"listing", "reset", "reset-used", "rename", "rmrf", "drop", "list-again"}:
        peer.fill("large", entries)
        _await_name(here / "large")
        _many(peer, here, base, entries, wanted)
    if wanted & {"cold", "warm"}:
        _readers(peer, base, wanted)


def _many(peer: Nearline, here: Path, base: Path, entries: int, wanted: set[str]) -> None:
    waited("listing", peer, lambda: _listed(here / "large", entries))
    if "drop" in wanted:
        _look(here / "large")
        waited("drop", peer, machine.drop_caches)
    for name, used in (("reset", False), ("reset-used", True)):
        if name in wanted:
            _look(here / "large")
            waited(name, peer, partial(_reset, peer, here, used, entries))
    if "list-again" in wanted:
        waited("list-again", peer, lambda: _listed(here / "large", entries))
    if wanted & {"rename", "rmrf"}:
        _listed(here / "large", entries)
        other = peer.another("b")
        try:
            there = other.mountpoint
            if "rename" in wanted:
                _look(here / "large")
                waited("rename", peer, lambda: _renamed(there, here))
                (there / "moved").rename(there / "large")
                _await_name(here / "large")
            if "rmrf" in wanted:
                _look(here / "large")
                waited("rmrf", peer, lambda: _removed(other, there, here))
        finally:
            other.end_device()


def _look(directory: Path) -> None:
    """Have the kernel hold every entry."""
    for entry in os.scandir(directory):
        entry.stat(follow_symlinks=False)


def _listed(directory: Path, entries: int) -> None:
    found = len(os.listdir(directory))
    if found != entries:
        raise BenchFailure(f"{found} of {entries} entries are listed")


def _reset(peer: Nearline, here: Path, used: bool, entries: int) -> None:
    """As if the server's database had been restored. `used`: somebody is in the directory."""
    peer.forget_feed()
    mark = f"reset-{used}"
    peer.fill(f"marks-{mark}", 0)
    _await_name(here / f"marks-{mark}")
    if used:
        _look(here / "large")
        _listed(here / "large", entries)


def _renamed(there: Path, here: Path) -> None:
    (there / "large").rename(there / "moved")
    _await_name(here / "moved")


def _removed(other: Nearline, there: Path, here: Path) -> None:
    shutil.rmtree(there / "large")
    other.flush()
    poll(lambda: "large" not in os.listdir(here), "the end of the directory", timeout=SOON)


def _await_name(path: Path) -> None:
    poll(lambda: path.name in os.listdir(path.parent), f"{path.name} here", timeout=SOON)


def _readers(peer: Nearline, base: Path, wanted: set[str]) -> None:
    here = peer.mountpoint / "read"
    here.mkdir()
    files = [here / f"{number:03}" for number in range(READERS)]
    for file in files:
        write_source(file, "random", f"waits/{file.name}", READER_BYTES)
    peer.flush()
    peer.cold()
    os.listdir(here)
    if "cold" not in wanted:
        _read_side_by_side(files)
    for name in ("cold", "warm", "warm"):
        if name in wanted:
            machine.drop_caches()
            os.listdir(here)
            waited(name, peer, lambda: _read_side_by_side(files))


def _read_side_by_side(files: list[Path]) -> None:
    readers = [
        subprocess.Popen(["dd", f"if={file}", "of=/dev/null", "bs=1M"], stderr=subprocess.DEVNULL)
        for file in files
    ]
    if sum(abs(reader.wait()) for reader in readers):
        raise BenchFailure("a reader failed")


SITUATIONS = ("alone", "listing", "drop", "reset", "reset-used", "rename", "rmrf", "cold", "warm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.waits", description=__doc__)
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    given = parser.parse_args()
    if given.probe:
        probe(given.probe)
        return 0
    base = Path(tempfile.mkdtemp(prefix="nearline-waits-", dir=given.scratch))
    peer = Nearline(base / "a")
    try:
        peer.start()
        print("milliseconds waited: middle, 95 and 99 of 100, longest")
        measure(peer, base, given.entries, given.only)
    finally:
        peer.stop()
        if str(base) not in Path("/proc/self/mounts").read_text():
            shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
