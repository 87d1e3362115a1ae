"""The killer: writers at work, deaths at random moments, and what must be true after each.

Knows: the schedule, and how processes are found, killed and started. Must not know: what writers do
(`kill_writer`), what they were promised (`kill_model`, `kill_verifier`), what may be sent again
(`kill_sent`).

Everything random comes from the seed; only the moments at which processes get to run do not, so a
seed repeats a schedule and not its outcome.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from mount.asked import control_client
from mount.asked.control_messages import Status, socket_path
from mount.failures import Failure
from tests.system.harness import Device, Site, Trouble, nearline, run, wait_until
from tests.system.kill_model import Node, World, content_broken, names_broken
from tests.system.kill_sent import Sent, Store
from tests.system.kill_verifier import COMMON, Broken, look, read_ledger, settle, unexpected

WRITERS = 3
ENDING_SECONDS = 15.0
ROOT = Path(__file__).resolve().parents[2]
RECEIVED = "nearline_blob_received_bytes_total "

Victim = Literal["mount", "server"]
Return = Literal["before the mount", "after the mount", "after the check"]


@dataclass(frozen=True)
class Plan:
    """One round. Times are in seconds: `after` the writers began, `gap` between two victims,
    `linger` that they go on when only the server died. `again` are moments at which the mount is
    killed once more: 0 is when its restart begins, 1 is about when it is usable, later ones find it
    replaying. `server_again` is the same for the server, which comes back `server_back`. `by_hand`:
    a dead mount is taken away with umount(8)."""

    victims: tuple[Victim, ...]
    after: float
    gap: float
    linger: float
    again: tuple[float, ...]
    server_again: tuple[float, ...]
    server_back: Return
    by_hand: bool


def plan_of(seed: int, number: int) -> Plan:
    rng = random.Random(f"{seed} {number}")
    alone: list[tuple[Victim, ...]] = [("mount",)] * 5 + [("server",)] * 2
    both: list[tuple[Victim, ...]] = [("mount", "server"), ("server", "mount")]
    returns: list[Return] = ["before the mount", "after the mount", "after the check"]
    return Plan(
        victims=rng.choice(alone + both),
        after=rng.choice([rng.uniform(0.0, 0.3), rng.uniform(0.0, 1.5)]),
        gap=rng.choice([0.0, rng.uniform(0.0, 0.3)]),
        linger=rng.uniform(0.0, 0.5),
        again=tuple(rng.uniform(0.0, 2.0) for _time in range(rng.choice([0, 0, 0, 0, 1, 1, 2]))),
        server_again=(rng.uniform(0.1, 1.5),) if rng.random() < 0.3 else (),
        server_back=rng.choice(returns),
        by_hand=rng.random() < 0.7,
    )


def pause(seconds: float) -> None:
    """Let a random time pass. It waits for nothing: any moment is as good as another."""
    threading.Event().wait(seconds)


@dataclass
class Killer:
    """`begin`, then `round` after `round`, with an `audit` now and then. `device` is one that was
    never mounted. `worlds` are what was seen last, one for each writer."""

    site: Site
    device: Device
    seed: int
    sent: Sent = field(default_factory=Sent)
    tally: Counter[str] = field(default_factory=Counter)
    worlds: list[World] = field(default_factory=list)
    number: int = 0
    was_offline: bool = False  # the writers' mount may not have found the server yet
    mount_lives: bool = True
    server_lives: bool = True
    start_seconds: float = 1.0  # what a start takes here and now

    @property
    def ledgers(self) -> Path:
        """Of this round; those before it are kept, to look into what broke."""
        return self.site.base / "ledgers" / f"{self.number:04}"

    def begin(self) -> None:
        began = time.monotonic()
        self.device.mount()
        self.start_seconds = time.monotonic() - began
        (self.device.at / COMMON).mkdir()
        for writer in range(WRITERS):
            (self.device.at / f"w{writer}").mkdir(0o755)
            top = Node("directory", 0o755)
            self.worlds.append(World(writer, 0, {f"w{writer}": 0}, {0: top}))

    def round(self) -> None:
        """Raises `Broken`, with all that is needed to look into it."""
        self.number += 1
        plan = plan_of(self.seed, self.number)
        with self._explained(str(plan)):
            killed_ns = self._let_write_and_kill(plan)
            self._restart(plan)
            self._check(killed_ns, self.was_offline or "server" in plan.victims)
            self.was_offline = "server" in plan.victims
            self._start_server()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Broken, Trouble, Failure, OSError) as problem:
            if keep := os.environ.get("NEARLINE_KILL_KEEP"):
                left = shutil.ignore_patterns("*.sock", "blobs", "cache-*", self.device.name)
                shutil.copytree(self.site.base, keep, dirs_exist_ok=True, ignore=left)
            where = f"seed {self.seed}, round {self.number}, {what}"
            raise Broken(f"{where}\n{type(problem).__name__}: {problem}") from problem

    # Checks.

    def _check(self, killed_ns: int | None, was_offline: bool) -> None:
        """What the mount shows is what was promised."""
        ledgers = [self.ledgers / f"{world.writer}.ledger" for world in self.worlds]
        told = list(map(read_ledger, self.worlds, ledgers))
        done = sum(one.done for one in told)
        self.sent.operations += done
        self.tally["operations"] += done
        failed = [what for one in told for what in unexpected(one, killed_ns, was_offline)]
        failed += [f"refused: {one}" for one in self._status().refused]
        if failed:
            raise Broken("\n".join(failed))
        seen = look(self.device.at, WRITERS)
        pairs = zip(told, seen, strict=True)
        self.worlds = [settle(one, names, self._read) for one, names in pairs]

    def _read(self, path: str) -> bytes:
        """Bytes may be only on the server by now, if it has acknowledged them."""
        try:
            return (self.device.at / path).read_bytes()
        except OSError as problem:
            if problem.errno != errno.ENETUNREACH:
                raise
        self.tally["files read from the server"] += 1
        self._start_server()
        wait_until(lambda: self._status().state == "online", "online again", 60)
        return (self.device.at / path).read_bytes()

    def audit(self) -> None:
        """The server has everything, as a device sees that knows nothing yet, and got it once."""
        with self._explained("audit"):
            self.device.flush()
            problems = [f"refused: {one}" for one in self._status().refused]
            problems += self._seen_by_another()
            uploaded = self._status().transferred.uploaded_bytes
            store = Store.read(self.site.server.data / "blobs", self.site.server.log)
            sent = self.sent.plus(uploaded, self._received())
            problems += sent.broken(store)
            self.tally["finished chunks sent again"] = len(store.again)
            self.tally["chunks"] = store.chunks
            if problems:
                raise Broken("\n".join(problems))

    def _seen_by_another(self) -> list[str]:
        other = self.site.device(f"fresh{self.number}")
        other.mount()
        problems = []
        for world, seen in zip(self.worlds, look(other.at, WRITERS), strict=True):
            problems += [f"on another device: {what}" for what in names_broken(world, seen)]
            for path in seen.keys() & world.names.keys():
                if world.at(path).kind == "file" and not problems:
                    problems += content_broken(world, path, (other.at / path).read_bytes())
        other.umount("--now")
        self.site.devices.remove(other)
        for directory in (other.state, other.cache):
            shutil.rmtree(directory)
        return problems

    # Deaths.

    def _let_write_and_kill(self, plan: Plan) -> int | None:
        """When the mount was killed, if it was. The writers have ended."""
        killed_ns = None
        with self._writers():
            pause(plan.after)
            for number, victim in enumerate(plan.victims):
                pause(plan.gap if number else 0.0)
                if victim == "mount":
                    killed_ns = self._kill_mount()
                else:
                    self._kill_server()
            pause(plan.linger if killed_ns is None else 0.0)
        return killed_ns

    @contextlib.contextmanager
    def _writers(self) -> Iterator[None]:
        self.ledgers.mkdir(parents=True)
        for world in self.worlds:
            (self.ledgers / f"{world.writer}.world").write_bytes(msgspec.json.encode(world))
        words = [self.device.at, self.ledgers, f"{self.seed} {self.number}"]
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.system.kill_writer", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            if writer.stdout.readline() != b"ready\n":
                raise Trouble("the writers did not start")
            yield
            writer.stdin.close()
            self._await(writer)
        finally:
            writer.kill()
            writer.wait()
            writer.stdin.close()
            writer.stdout.close()

    def _await(self, writer: subprocess.Popen[bytes]) -> None:
        """The writers end when they are told to, or find the mount dead. A dead mount may hang
        until it is taken away (`mount.starting.unmount` has why); then at the latest they end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            writer.wait(ENDING_SECONDS)
        if writer.returncode is None and not self.mount_lives:
            self.tally["dead mounts that hung until umount"] += 1
            self.device.umount()
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(ENDING_SECONDS)
        if writer.returncode is None:
            writer.send_signal(signal.SIGUSR1)
            pause(1.0)  # for what it says of itself
        if writer.returncode != 0:
            raise Trouble(f"the writers ended with {writer.returncode} (None: not at all)")

    def _status(self) -> Status:
        return control_client.status(socket_path(self.device.state))

    def _received(self) -> int:
        with urllib.request.urlopen(f"{self.site.server.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith(RECEIVED))

    def _kill_mount(self) -> int:
        status = self._status()
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

    def _kill_server(self) -> None:
        self.sent.received += self._received()
        self.sent.kills += 1
        self.tally["deaths of the server"] += 1
        self.site.server.kill()
        self.server_lives = False

    # Restarts, and deaths during them.

    def _restart(self, plan: Plan) -> None:
        if not self.server_lives:
            for moment in plan.server_again:
                self._start_and_kill_server(moment)
            if plan.server_back == "before the mount":
                self._start_server()
        if "mount" in plan.victims:
            for moment in plan.again:
                self._clear(plan.by_hand)
                self._start_and_kill_mount(moment)
            self._clear(plan.by_hand)
            self.device.mount()
            self.mount_lives = True
        if plan.server_back == "after the mount":
            self._start_server()

    def _clear(self, by_hand: bool) -> None:
        """A mount that is dead is in the way of the next one."""
        if not self.device.mounted:
            return
        if by_hand:
            run("umount", "-l", self.device.at)
        else:
            self.device.umount()

    def _start_server(self) -> None:
        if not self.server_lives:
            self.site.server.start()
            self.server_lives = True

    def _start_and_kill_mount(self, moment: float) -> None:
        words = ["mount", self.site.server.url, self.device.at]
        where = ["--state", self.device.state, "--cache", self.device.cache]
        command = subprocess.Popen(
            [nearline(), *words, *where], env=self.site.env, stderr=subprocess.DEVNULL
        )
        pause(moment * self.start_seconds)
        with contextlib.suppress(Failure):  # not there yet: it has sent nothing
            self.sent.uploaded += self._status().transferred.uploaded_bytes
        self._kill(self._pids(b"mount.starting.daemon_main"))
        self.tally["deaths of a starting mount"] += 1
        command.wait(ENDING_SECONDS)
        # One that was started after we had looked.
        self._kill(self._pids(b"mount.starting.daemon_main"))

    def _start_and_kill_server(self, moment: float) -> None:
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
