"""`python -m bench.hostile`: somebody works alone, then beside each attack; one table.

Knows: processes, and what is compared. Must not know: how an attack works (`attacks`), how work is
done (`honest`).

An attacker has a network of its own, behind a cable to the server's: on one machine the server
would tell users apart, and not addresses. Its process is given the lowest priority: in the world it
has a machine of its own, and here it must not take the processor from the server by sharing its
machine. The server is not restarted between attacks, so what one left behind is there in the next.

Needs root, for the network.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from bench import machine
from bench.hostile.attacks import ATTACKS, SOURCES, Outcome, Victim
from bench.hostile.honest import Diary, Errand
from bench.processes import BenchFailure, poll, run, stop
from bench.results import quantile
from remote.http.api import ApiClient
from remote.protocol.codec import decode_block
from remote.protocol.content import block_count
from remote.protocol.messages import LocateRequest, LoginRequest, Span
from server.accounts import accounts

HONEST, HOSTILE = "honest", "hostile"
PASSWORD = "a password of some length"


class Row(msgspec.Struct):
    """Of one attack. `p99`: milliseconds by kind of call. `memory`: MiB above rest at the peak."""

    attack: str
    who: str
    p99: dict[str, float]
    calls: int
    refused: int
    memory: float
    answers: dict[str, int]
    prepared: str


class Figures(msgspec.Struct):
    machine: machine.Machine
    seconds: float
    rate: float
    alone: Row
    attacked: list[Row]
    files: int
    lost: int
    fsck: str


class Cable:
    """A network for attackers, and the address at which they reach this machine."""

    here = "10.66.0.1"

    def __init__(self) -> None:
        self._name = f"hostile{os.getpid()}"

    def __enter__(self) -> Cable:
        there = ("ip", "-n", self._name)
        for command in (
            ("ip", "netns", "add", self._name),
            ("ip", "link", "add", "nlh0", "type", "veth", "peer", "nlh1", "netns", self._name),
            ("ip", "addr", "add", f"{self.here}/16", "dev", "nlh0"),
            ("ip", "link", "set", "nlh0", "up"),
            *((*there, "addr", "add", f"{source}/16", "dev", "nlh1") for source in SOURCES),
            (*there, "link", "set", "nlh1", "up"),
        ):
            run(command, dict(os.environ), timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        run(("ip", "netns", "delete", self._name), dict(os.environ), timeout=30)

    def inside(self, *command: str) -> list[str]:
        """`command`, made to run on the other side."""
        return ["ip", "netns", "exec", self._name, *command]


class Server:
    """`nearline serve` on a directory of its own."""

    def __init__(self, base: Path, cable: Cable) -> None:
        self.data, self.cable = base / "data", cable
        with socket.create_server((cable.here, 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self.url = f"http://{cable.here}:{self.port}"
        for name in (HONEST, HOSTILE):
            accounts.add_account(self.data, name, PASSWORD)
        self.log = base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "mount.cli", "serve", "--data", str(self.data)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", f"{self.cable.here}:{self.port}", "--insecure"],
                stdout=log,
                stderr=log,
            )
        announced = self.data / "server.url"
        poll(announced.exists, "the server", timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def memory(self) -> float:
        """MiB resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


class Peak:
    """The most memory that a server has had while this was open, in MiB."""

    def __init__(self, server: Server) -> None:
        self._server, self._done = server, threading.Event()
        self.most = 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, self._server.memory())


def _work(server: Server, arguments: argparse.Namespace) -> Diary:
    errand = Errand(server.url, HONEST, PASSWORD, arguments.seconds, arguments.rate)
    done = subprocess.run(
        [sys.executable, "-m", "bench.hostile.honest"],
        input=msgspec.json.encode(errand),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BenchFailure(f"who works gave up: {done.stderr.decode()[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Diary)


@contextlib.contextmanager
def _attacked(server: Server, name: str) -> Iterator[list[Outcome]]:
    """While this is open, `server` is attacked; afterwards the list has how that went."""
    victim = Victim(server.url, HOSTILE, PASSWORD, HONEST)
    outcome: list[Outcome] = []
    command = [sys.executable, "-m", "bench.hostile.attacks", name]
    with (
        server.log.open("ab") as log,
        subprocess.Popen(
            server.cable.inside("nice", "-n", "19", *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(victim) + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"ready\n":
            process.wait()
            raise BenchFailure(f"{name} could not be prepared: {server.log.read_text()[-2000:]}")
        try:
            yield outcome
        finally:
            process.stdin.close()
            said = process.stdout.read()
    if process.returncode:
        raise BenchFailure(f"{name}: {server.log.read_text()[-2000:]}")
    outcome.append(msgspec.json.decode(said, type=Outcome))


def _row(name: str, who: str, diary: Diary, memory: float, outcome: Outcome) -> Row:
    p99 = {kind: quantile(took, 0.99) for kind, took in diary.took.items()}
    calls = sum(map(len, diary.took.values()))
    return Row(name, who, p99, calls, diary.refused, memory, outcome.answers, outcome.prepared)


def measure(arguments: argparse.Namespace, base: Path) -> Figures:
    load = machine.load_average()
    made: dict[str, str] = {}
    rows = []
    with Cable() as cable, Server(base, cable) as server:
        _work(server, arguments)  # warms up; not counted
        diary = _work(server, arguments)
        made |= diary.made
        rest = server.memory()
        alone = _row("alone", "", diary, 0.0, Outcome({}, ""))
        for name in arguments.attacks:
            _say(name)
            with _attacked(server, name) as outcome, Peak(server) as peak:
                diary = _work(server, arguments)
            made |= diary.made
            row = _row(name, ATTACKS[name].who, diary, peak.most - rest, outcome[0])
            rows.append(row)
            _say(f"    {worst(row, alone)}, {row.memory:.0f} MiB, {row.answers} {row.prepared}")
        lost = trio.run(_lost, server, made)
    fsck = subprocess.run(
        [sys.executable, "-m", "mount.cli", "admin", "fsck", "--data", str(server.data)],
        capture_output=True,
        text=True,
        check=False,
    )
    versions = {"nearline": machine.nearline_version()}
    described = machine.describe(base, versions, load, isolated=True)
    said = (fsck.stdout or fsck.stderr).strip().splitlines()[-1]
    return Figures(described, arguments.seconds, arguments.rate, alone, rows, len(made), lost, said)


async def _lost(server: Server, made: dict[str, str]) -> int:
    """The number of files that are not there as written, though their commits were answered."""
    lost = 0
    async with ApiClient(server.url, None, insecure=True) as api:
        api.use_token((await api.login(LoginRequest(HONEST, PASSWORD, "check"))).token)
        for file, digest in made.items():
            data = await _content(api, file)
            lost += hashlib.sha256(data).hexdigest() != digest
    return lost


async def _content(api: ApiClient, file: str) -> bytes:
    reply = await api.file(file)
    assert reply.file.version is not None
    span = Span(offset=0, length=reply.file.size)
    asked = LocateRequest(file=file, version=reply.file.version, span=span)
    whole = b""
    for located in (await api.locate(asked)).chunks:
        described, stored = located.descriptor, bytearray(located.descriptor.stored_length)
        await api.get_range(located.url, 0, len(stored), stored)
        for block in range(block_count(described.length)):
            first = described.stored_offset(block)
            part = memoryview(stored)[first : first + described.stored_lengths[block]]
            whole += decode_block(described, block, part)
    return whole


# --- showing ------------------------------------------------------------------------------------


def worst(row: Row, alone: Row) -> str:
    """The kind of call that suffered most, and how much."""
    times = {kind: row.p99[kind] / alone.p99[kind] for kind in row.p99 if kind in alone.p99}
    kind = max(times, key=times.__getitem__)
    return f"{kind} {row.p99[kind]:.0f} ms, {times[kind]:.1f}x"


def render(figures: Figures) -> str:
    kinds = sorted(figures.alone.p99)
    lines = [
        f"- {figures.machine.cpu}, {figures.machine.cores} cores, {figures.machine.versions}, "
        f"load {figures.machine.load}",
        f"- {figures.seconds:g} s of work beside each attack, at most {figures.rate:g} rounds a "
        "second",
        f"- {figures.files} files written, {figures.lost} lost; fsck: {figures.fsck}",
        "",
        "| attack | by | " + " | ".join(f"{kind}, p99 ms" for kind in kinds)
        + " | worst | not now | MiB above rest |",
        "|---|---|" + "--:|" * (len(kinds) + 3),
    ]  # fmt: skip
    for row in [figures.alone, *figures.attacked]:
        cells = [f"{row.p99.get(kind, float('nan')):.1f}" for kind in kinds]
        said = "" if row is figures.alone else worst(row, figures.alone)
        lines.append(
            f"| {row.attack} | {row.who} | {' | '.join(cells)} | {said} | "
            f"{row.refused} of {row.calls} | {row.memory:.0f} |"
        )
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of work beside each attack")
    parser.add_argument("--rate", type=float, default=20.0, help="rounds of work a second, at most")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="on the disk to use")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="nearline-hostile-", dir=arguments.scratch))
    try:
        figures = measure(arguments, base)
    finally:
        shutil.rmtree(base)
    print(render(figures))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    return 1 if figures.lost else 0


if __name__ == "__main__":
    sys.exit(main())
