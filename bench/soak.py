"""`python -m bench.soak --minutes 240`: two devices of one account work, and everything that may
grow is looked at now and then. Figures as JSON, plots by `bench.plots`.

Knows: what people do with files, the status of a mount, /proc, rows of the state database. Must not
know: what is in a mount's memory: only the size of it.
Invariants: what the work keeps is bounded, so whatever grows without end is not the work's. Errors
that two devices in one directory make of each other are counted, others end the run.

Concurrency: a thread of work a device; the main thread samples. `Tally` is the threads' own each.
"""

from __future__ import annotations

import argparse
import errno
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from bench import machine, memory, trend
from bench.peers.nearline import Nearline
from bench.processes import BenchFailure, family

FILES = 300  # that a device keeps in a directory of its own, and both in the one they share
TABLES = ("node", "entry", "xattr", "layer", "extent", "unsettled", "manifest", "op", "shadow")
EXPECTED = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ESTALE)
MIB = 1 << 20
CACHE = "512MiB"  # so that it is full soon


class Series(msgspec.Struct):
    """Values of one quantity at the times of `Soak.seconds`. `growth` is that of the second half,
    in units an hour."""

    name: str
    unit: str
    values: list[float]
    growth: float = 0.0


class Soak(msgspec.Struct, kw_only=True):
    machine: machine.Machine
    minutes: float
    rate: float
    seed: str
    seconds: list[float]
    series: list[Series]
    done: dict[str, int]
    errors: dict[str, int]


class Worker:
    """One device's work: at most `rate` steps a second in `own` and `both`, until `stop`."""

    def __init__(self, top: Path, name: str, seed: str, rate: float) -> None:
        self._dirs = [top / f"of-{name}", top / "both"]
        self._name, self._rate = name, rate
        self._rng = random.Random(f"{seed}/{name}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"work {name}")
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.fault: OSError | None = None
        self._steps: list[tuple[int, Callable[[Path], None]]] = [
            (30, self._create), (30, self._read), (12, self._edit), (6, self._append),
            (6, self._rename), (6, self._save), (5, self._unlink), (3, self._short_lived),
            (1, self._tree), (1, self._large),
        ]  # fmt: skip

    def start(self) -> None:
        for directory in self._dirs:
            directory.mkdir(exist_ok=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        weights, steps = zip(*self._steps, strict=True)
        began, count = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + count / self._rate - time.monotonic())):
            count += 1
            step = self._rng.choices(steps, weights)[0]
            name = step.__name__.strip("_")
            try:
                step(self._rng.choice(self._dirs))
                self.done[name] += 1
            except OSError as error:
                if error.errno not in EXPECTED:
                    self.fault = error
                    return
                self.errors[f"{name}: {errno.errorcode[error.errno]}"] += 1

    def _new(self, directory: Path) -> Path:
        """Any of a bounded number of names."""
        return directory / f"f{self._rng.randrange(FILES):04}"

    def _any(self, directory: Path) -> Path:
        names = [entry for entry in directory.iterdir() if entry.name.startswith("f")]
        return self._rng.choice(names) if names else self._new(directory)

    def _data(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((100, 4096, 30_000, 300_000)))

    def _create(self, directory: Path) -> None:
        self._new(directory).write_bytes(self._data())

    def _read(self, directory: Path) -> None:
        self._any(directory).read_bytes()

    def _edit(self, directory: Path) -> None:
        with self._any(directory).open("r+b") as stream:
            stream.seek(self._rng.randrange(100))
            stream.write(self._rng.randbytes(50))

    def _append(self, directory: Path) -> None:
        with self._any(directory).open("ab") as stream:
            stream.write(self._rng.randbytes(100))

    def _rename(self, directory: Path) -> None:
        self._any(directory).rename(self._new(directory))

    def _save(self, directory: Path) -> None:
        """As editors do."""
        file = self._any(directory)
        aside = directory / f"t-{self._name}"
        aside.write_bytes(self._data())
        aside.replace(file)

    def _unlink(self, directory: Path) -> None:
        self._any(directory).unlink()

    def _short_lived(self, directory: Path) -> None:
        """Gone before anybody has sent it."""
        file = directory / f"s-{self._name}"
        file.write_bytes(b"soon gone")
        file.unlink()

    def _tree(self, directory: Path) -> None:
        top = directory / f"d{self._rng.randrange(3)}"
        if top.exists():
            shutil.rmtree(top)
        else:
            top.mkdir()
            for number in range(20):
                (top / f"{number}").write_bytes(self._rng.randbytes(500))

    def _large(self, directory: Path) -> None:
        with (directory / "f0000").open("wb") as stream:
            for _ in range(8):
                stream.write(self._rng.randbytes(MIB))


class Watch:
    """Looks at a server and its devices."""

    def __init__(self, devices: dict[str, Nearline], data: Path) -> None:
        self._devices, self._data = devices, data
        self._began = time.monotonic()
        self.seconds: list[float] = []
        self.series: dict[str, Series] = {}

    def look(self) -> None:
        self.seconds.append(time.monotonic() - self._began)
        for name, device in self._devices.items():
            pids = device.pids()
            self._process(f"mount {name}", pids["mount"])
            self._mount(f"mount {name}", device)
        self._process("server", pids["server"])
        size = sum(file.stat().st_size for file in self._data.glob("*.sqlite*"))
        self._note("server: database", size / MIB, "MiB")

    def _process(self, who: str, pid: int) -> None:
        found = memory.of(family(pid))
        self._note(f"{who}: anonymous", found.anonymous / MIB, "MiB")
        self._note(f"{who}: file pages", found.file / MIB, "MiB")
        self._note(f"{who}: shared", found.shared / MIB, "MiB")
        self._note(f"{who}: descriptors", len(list(Path(f"/proc/{pid}/fd").iterdir())), "")
        self._note(f"{who}: threads", len(list(Path(f"/proc/{pid}/task").iterdir())), "")

    def _mount(self, who: str, device: Nearline) -> None:
        status = device.status()
        self._note(f"{who}: journal", status.journal.operations, "")
        self._note(f"{who}: dirty bytes", status.journal.bytes / MIB, "MiB")
        self._note(f"{who}: refused", len(status.refused), "")
        self._note(f"{who}: block cache", status.cache.bytes / MIB, "MiB")
        state = Path(status.state_dir)
        size = sum(file.stat().st_size for file in state.glob("tree.sqlite*"))
        self._note(f"{who}: state database", size / MIB, "MiB")
        with closing(sqlite3.connect(f"file:{state / 'tree.sqlite'}?mode=ro", uri=True)) as db:
            for table in TABLES:
                (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
                self._note(f"{who}: rows of {table}", rows, "")

    def _note(self, name: str, value: float, unit: str) -> None:
        series = self.series.setdefault(name, Series(name, unit, []))
        series.values.append(round(value, 3))


def soak(arguments: argparse.Namespace, base: Path) -> Soak:
    load = machine.load_average()
    first = Nearline(base / "nearline")
    first.mount_options = ["--cache-size", CACHE]
    try:
        first.start()
        second = first.another("second")
        try:
            watch, workers = _work(arguments, {"A": first, "B": second}, base)
        finally:
            second.end_device()
    finally:
        first.stop()
    # the last look is at rest
    hours = [seconds / 3600 for seconds in watch.seconds]
    for series in watch.series.values():
        series.growth = round(trend.late_slope(hours[:-1], series.values[:-1]), 3)
    return Soak(
        machine=machine.describe(base, {"nearline": first.version}, load, first.isolated),
        minutes=arguments.minutes,
        rate=arguments.rate,
        seed=arguments.seed,
        seconds=[round(at, 1) for at in watch.seconds],
        series=list(watch.series.values()),
        done=dict(sum((worker.done for worker in workers), Counter())),
        errors=dict(sum((worker.errors for worker in workers), Counter())),
    )


def _work(
    arguments: argparse.Namespace, devices: dict[str, Nearline], base: Path
) -> tuple[Watch, list[Worker]]:
    workers = [
        Worker(device.mountpoint, name, arguments.seed, arguments.rate)
        for name, device in devices.items()
    ]
    watch = Watch(devices, base / "nearline" / "data")
    tick = threading.Event()
    every = arguments.every or max(1.0, arguments.minutes * 60 / 240)
    end = time.monotonic() + arguments.minutes * 60
    try:
        for worker in workers:
            worker.start()
        while time.monotonic() < end:
            watch.look()
            _fail_with(workers)
            tick.wait(min(every, max(0.0, end - time.monotonic())))
    finally:
        for worker in workers:
            worker.end()
    _fail_with(workers)
    for device in devices.values():
        device.flush()
    watch.look()
    return watch, workers


def _fail_with(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.fault is not None:
            raise BenchFailure(f"the work met {worker.fault}") from worker.fault


def render(found: Soak) -> str:
    """The growth of the second half, by what it is."""
    lines = [
        f"- {found.machine.cpu}, {found.machine.cores} cores, load {found.machine.load}",
        f"- {found.minutes:g} minutes, at most {found.rate:g} steps a second and device",
        f"- done: {found.done}",
        f"- errors of two devices in one directory: {found.errors}",
        "",
        "| what | unit | first | middle | last | growth an hour, second half |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for each in found.series:
        seen = each.values[0], each.values[len(each.values) // 2], each.values[-1]
        cells = " | ".join(f"{value:,.1f}" for value in (*seen, each.growth))
        lines.append(f"| {each.name} | {each.unit} | {cells} |")
    return "\n".join(lines)


def _terminated(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=20.0, help="steps a second and device")
    parser.add_argument("--every", type=float, help="seconds between looks; a 240th of all")
    parser.add_argument("--seed", default="nearline")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="and a PNG of them to this one, with --json")
    arguments = parser.parse_args()
    if arguments.plot and not arguments.json:
        parser.error("--plot needs --json")
    signal.signal(signal.SIGTERM, _terminated)
    base = Path(tempfile.mkdtemp(prefix="nearline-soak-", dir=arguments.scratch))
    try:
        found = soak(arguments, base)
    finally:
        if str(base) not in Path("/proc/self/mounts").read_text():
            shutil.rmtree(base)
    print(render(found))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if arguments.plot:
        draw = [sys.executable, "-m", "bench.plots", "soak", arguments.json, arguments.plot]
        subprocess.run(draw, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
