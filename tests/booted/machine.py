"""A machine that boots: systemd as process 1, on this machine's own files and kernel.

Knows: how to start one in namespaces (`boot.sh`), run commands in it, power it off, and take all of
it away again. Must not know: what any test proves.

Invariants: this machine's files are only read: what is written goes to a tmpfs. No process in there
sees this machine's network, processes or mounts, and none may change the kernel's settings. The
disk (`files`) outlives a power off: `boot` again is the same machine, the next day.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.system.harness import Trouble, wait_until

TMPFS = Path("/dev/shm")  # an overlay's upper layer may not be in its lower one
BOOT = Path(__file__).with_name("boot.sh")
PROJECT = BOOT.parents[2]
PROGRAM = "/opt/nearline"
PYTHON = "/usr/bin/python3"
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
SECONDS = 90.0  # for a boot, a power off, or a command

COMMAND = f"""#!{PROGRAM}/bin/python -I
import sys
from mount.cli import main
sys.exit(main())
"""
_UP = ("running", "degraded")


def missing() -> str:
    """Names the programs that this machine lacks for another one to boot here; "" for none."""
    if os.getuid() != 0:
        return "needs root"
    if _cgroups() is None:
        return "needs a mounted cgroup2"
    if not TMPFS.is_mount():
        return f"needs a tmpfs at {TMPFS}"
    for needed in ("/lib/systemd/systemd", "/dev/fuse", "/dev/autofs", PYTHON):
        if not Path(needed).exists():
            return f"needs {needed}"
    for program in ("unshare", "nsenter", "setpriv", "ip", "fusermount3"):
        if shutil.which(program) is None:
            return f"needs {program}"
    version = subprocess.run([PYTHON, "--version"], capture_output=True, text=True, check=True)
    if version.stdout.split()[1].split(".")[:2] != list(map(str, sys.version_info[:2])):
        return f"needs {PYTHON} to be a Python {sys.version_info[0]}.{sys.version_info[1]}"
    return ""


def _cgroups() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return Path(place)
    return None


class Machine:
    """One machine, from its making to its `remove`."""

    def __init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="nearline-booted-", dir=TMPFS))
        self._place.chmod(0o755)
        cgroups = _cgroups()
        assert cgroups is not None
        self._cgroup = cgroups / self._place.name
        self._cgroup.mkdir()
        self._outside: subprocess.Popen[bytes] | None = None
        self._console = self._place / "console"
        self._blank("etc/systemd/system")  # nothing that is enabled on this machine
        wants = self.files / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir()
        (wants / "remote-fs.target").symlink_to("/lib/systemd/system/remote-fs.target")
        self.write("/etc/fstab", "")

    @property
    def files(self) -> Path:
        """The files that differ from this machine's, as an overlay's upper layer."""
        return self._place / "files"

    def _blank(self, directory: str) -> None:
        made = self.files / directory
        made.mkdir(parents=True)
        os.setxattr(made, "trusted.overlay.opaque", b"y")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the machine, written while it is off or on."""
        if self._outside is not None:
            self.run(f"mkdir -p {Path(path).parent} && cat >{path} && chmod {mode:o} {path}", text)
            return
        file = self.files / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def forget(self, path: str) -> None:
        """Take a file off the disk while the machine is off."""
        (self.files / path).unlink()

    @property
    def is_off(self) -> bool:
        return self._outside is None

    def boot(self) -> None:
        """Returns when everything that is to be started has been, or has failed."""
        for name in ("root", "work"):
            shutil.rmtree(self._place / name, ignore_errors=True)
        joining = f"echo $$ >{self._cgroup}/cgroup.procs && exec sh {BOOT} {self._place}"
        with self._console.open("ab") as console:
            self._outside = subprocess.Popen(
                ["sh", "-c", joining], stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        wait_until(self._is_up, f"the machine is up: {self._console.read_text()}", SECONDS)

    def _is_up(self) -> bool:
        assert self._outside is not None
        if self._outside.poll() is not None:
            raise Trouble(f"the machine did not start: {self._console.read_text()}")
        asked = self.run("systemctl is-system-running", check=False)
        return asked.strip() in _UP

    def _init(self) -> int:
        """The machine's process 1, by this machine's number."""
        assert self._outside is not None
        children = Path(f"/proc/{self._outside.pid}/task/{self._outside.pid}/children")
        with contextlib.suppress(FileNotFoundError):
            if numbers := children.read_text().split():
                return int(numbers[0])
        return 0

    def run(self, command: str, input: str = "", *, check: bool = True) -> str:
        """Runs `command` by a shell of root's in the machine; returns its output on both
        channels."""
        words = ["nsenter", "-t", str(self._init()), "-m", "-p", "-u", "-i", "-n", "-C", "env"]
        words += ["-i", "HOME=/root", *ENVIRONMENT, "sh", "-c", f"cd /; {command}"]
        try:
            done = subprocess.run(
                words,
                input=input,
                text=True,
                errors="replace",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Trouble(f"{command} took over {SECONDS:g} s: {error.stdout!r}") from error
        if check and done.returncode:
            raise Trouble(f"{command} gave {done.returncode}: {done.stdout}")
        return done.stdout

    def state(self, unit: str) -> str:
        """`active`, `inactive`, `failed`, ..."""
        return self.run(f"systemctl is-active {unit}", check=False).strip()

    def power_off(self) -> None:
        """As a person does; returns when it is off."""
        self.run("systemctl poweroff", check=False)
        self.await_off()

    def await_off(self) -> None:
        assert self._outside is not None
        try:
            self._outside.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Trouble("the machine does not end") from error
        self._outside = None

    def pull_the_plug(self) -> None:
        """Every process at once, without a word. What is on the disk stays there."""
        assert self._outside is not None
        if init := self._init():
            os.kill(init, signal.SIGKILL)
        self.await_off()

    def remove(self) -> None:
        if self._outside is not None:
            self.pull_the_plug()
        deadline = time.monotonic() + SECONDS
        for cgroup in (*sorted(self._cgroup.rglob("*/"), reverse=True), self._cgroup):
            while cgroup.is_dir() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    cgroup.rmdir()
        shutil.rmtree(self._place)

    def install(self) -> None:
        """A copy of this project as `scripts/install-system` leaves it, without the network: the
        packages are those of the working copy. Compiled beforehand, for all to read: what
        somebody with a strict umask has compiled is their own."""
        packages = [path for path in sys.path if path.endswith("site-packages")]
        paths = "\\n".join([str(PROJECT), *packages])
        self.run(
            f"{PYTHON} -m venv --without-pip {PROGRAM} && "
            f"printf '{paths}\\n' >$(echo {PROGRAM}/lib/python3*/site-packages)/project.pth && "
            f"cd {PROJECT} && {PYTHON} -m compileall -q mount cache remote server && "
            "chmod -R go+rX mount cache remote server && "
            f"{PROGRAM}/bin/python -I -m mount.units && "
            f"scripts/install-helper {PROGRAM} && systemctl daemon-reload"
        )
        self.write(f"{PROGRAM}/bin/nearline", COMMAND, 0o755)
