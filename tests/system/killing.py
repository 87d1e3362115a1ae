"""The killer: writers at work, deaths at random moments, and what must be true after each.

Knows: the order of a round. Must not know: when who is killed (`kill_plan`), how (`kill_victims`),
what writers do (`kill_writer`), what they were promised (`kill_model`, `kill_verifier`), what may
be sent again (`kill_sent`).

Everything random comes from the seed; only the moments at which processes get to run do not, so a
seed repeats a schedule and not its outcome.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mount.failures import Failure
from tests.system.harness import Device, Site, Trouble, wait_until
from tests.system.kill_model import Node, World, content_broken, names_broken
from tests.system.kill_plan import Plan, plan_of
from tests.system.kill_sent import Store
from tests.system.kill_verifier import COMMON, Broken, look, read_ledger, resolve, unexpected
from tests.system.kill_victims import ENDING_SECONDS, Victims, pause

WRITERS = 3
DEAD_SECONDS = 5.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Killer:
    """`begin`, then `round` after `round`, with an `audit` now and then. `device` is one that was
    never mounted. `worlds` are what was seen last, one for each writer."""

    site: Site
    device: Device
    seed: int
    worlds: list[World] = field(default_factory=list)
    number: int = 0
    was_offline: bool = False  # the writers' mount may not have found the server yet

    def __post_init__(self) -> None:
        self.victims = Victims(self.site, self.device)
        self.tally = self.victims.tally

    @property
    def ledgers(self) -> Path:
        """Of this round; those before it are kept, to look into what broke."""
        return self.site.base / "ledgers" / f"{self.number:04}"

    def begin(self) -> None:
        self.victims.mount()
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
            self.victims.restart(plan)
            self._check(killed_ns, self.was_offline or "server" in plan.victims)
            self.was_offline = "server" in plan.victims
            self.victims.start_server()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Broken, Trouble, Failure, OSError) as error:
            if keep := os.environ.get("NEARLINE_KILL_KEEP"):
                left = shutil.ignore_patterns("*.sock", "blobs", "cache-*", self.device.name)
                shutil.copytree(self.site.base, keep, dirs_exist_ok=True, ignore=left)
            where = f"seed {self.seed}, round {self.number}, {what}"
            raise Broken(f"{where}\n{type(error).__name__}: {error}") from error

    # --- checks -----------------------------------------------------------------------------------

    def _check(self, killed_ns: int | None, was_offline: bool) -> None:
        """Check that the mount shows what was promised."""
        ledgers = [self.ledgers / f"{world.writer}.ledger" for world in self.worlds]
        told = list(map(read_ledger, self.worlds, ledgers))
        done = sum(one.done for one in told)
        self.victims.sent.operations += done
        self.tally["operations"] += done
        failed = [what for one in told for what in unexpected(one, killed_ns, was_offline)]
        failed += [f"refused: {one}" for one in self.victims.status().refused]
        if failed:
            raise Broken("\n".join(failed))
        seen = look(self.device.at, WRITERS)
        pairs = zip(told, seen, strict=True)
        self.worlds = [resolve(one, names, self._read) for one, names in pairs]

    def _read(self, path: str) -> bytes:
        """Bytes may be only on the server by now, if it has acknowledged them."""
        try:
            return (self.device.at / path).read_bytes()
        except OSError as error:
            if error.errno != errno.ENETUNREACH:
                raise
        self.tally["files read from the server"] += 1
        self.victims.start_server()
        wait_until(lambda: self.victims.status().state == "online", "online again")
        return (self.device.at / path).read_bytes()

    def audit(self) -> None:
        """The server has everything, as a device sees that knows nothing yet, and got it once."""
        with self._explained("audit"):
            self.device.flush()
            problems = [f"refused: {item}" for item in self.victims.status().refused]
            problems += self._seen_by_another()
            uploaded = self.victims.status().transferred.uploaded_bytes
            store = Store.read(self.site.server.data / "blobs", self.site.server.log)
            sent = self.victims.sent.plus(uploaded, self.victims.received())
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

    # --- deaths -----------------------------------------------------------------------------------

    def _let_write_and_kill(self, plan: Plan) -> int | None:
        """When the mount was killed, if it was. The writers have ended."""
        killed_ns = None
        with self._writers():
            pause(plan.after)
            for number, victim in enumerate(plan.victims):
                pause(plan.gap if number else 0.0)
                if victim == "mount":
                    killed_ns = self.victims.kill_mount()
                else:
                    self.victims.kill_server()
            pause(plan.linger if killed_ns is None else 0.0)
        return killed_ns

    @contextlib.contextmanager
    def _writers(self) -> Iterator[None]:
        self.ledgers.mkdir(parents=True)
        for world in self.worlds:
            (self.ledgers / f"{world.writer}.world").write_bytes(msgspec.json.encode(world))
        words = [str(self.device.at), str(self.ledgers), f"{self.seed} {self.number}"]
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
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the mount
                writer.wait(ENDING_SECONDS)
            writer.stdin.close()
            writer.stdout.close()

    def _await(self, writer: subprocess.Popen[bytes]) -> None:
        """The writers end when they are told to, or find the mount dead. A dead mount may hang
        until it is taken away (`mount.process.unmount` has why); then at the latest they end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            writer.wait(ENDING_SECONDS if self.victims.mount_lives else DEAD_SECONDS)
        if writer.returncode is None and not self.victims.mount_lives:
            self.tally["dead mounts that hung until umount"] += 1
            self.device.umount()
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(ENDING_SECONDS)
        if writer.returncode is None:
            writer.send_signal(signal.SIGUSR1)
            pause(1.0)  # for what it says of itself
        if writer.returncode != 0:
            raise Trouble(f"the writers ended with {writer.returncode} (None: not at all)")
