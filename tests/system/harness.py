"""A real server process, real mounts, and the certainty that nothing of them is left behind.

Knows: the command line, where its logins are kept, and how to end whatever it
started. Must not know: what any test proves, anything inside the processes.

A `Site` is one server with its data, one person's home, and that person's devices: mounts of one
account with state and cache of their own. Everything lies under one temporary directory, and every
process started for it carries that home in its environment, which is how the site finds what is
left of them, also of a daemon whose record was lost.

Every site begins as a copy of what the commands have made once (`_Beginning`): making an account
takes two processes, and there are a hundred sites.

No call can hang: commands have timeouts, and a test that takes longer than `TEST_SECONDS` has its
daemons killed (`Site.kill_daemons`), so that system calls stuck in a mount come back as errors.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import trio
from msgspec import to_builtins

from mount import credentials, mountinfo
from mount.control import client, messages
from mount.failures import Failure
from mount.process import unmount as unmounting
from remote.http.api import ApiClient
from remote.protocol import backoff
from remote.protocol.messages import LoginRequest
from tests.ports import free_port
from tests.system.processes import (
    COMMAND_SECONDS,
    PATIENCE_SECONDS,
    Trouble,
    environment,
    nearline,
    run,
    start,
    tail,
    wait_until,
)

TEST_SECONDS = 360.0
ENDING_SECONDS = 10.0
ACCOUNT, PASSWORD = "anna", "correct horse"

T = TypeVar("T")


def noise(size: int, seed: int = 0) -> bytes:
    """`size` pseudo-random bytes, always the same for the same `seed`."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


class Server:
    """`nearline serve` on `data`, at the same port through every restart."""

    def __init__(self, site: Site, public_url: str | None, port: int) -> None:
        self._site = site
        self.data = site.base / "data"
        self.log = site.base / "server.log"
        self.address = f"127.0.0.1:{port}"
        self.url = public_url or f"http://{self.address}"
        self._public_url = public_url
        self._process: subprocess.Popen[str] | None = None
        self.was_stopped = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it says that it serves."""
        public = [] if self._public_url is None else ["--public-url", self._public_url]
        with self.log.open("a") as log:
            self._process = start(
                [nearline(), "serve", "--data", self.data, "--listen", self.address, *public],
                env=self._site.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("Nearline serves at"):
            raise Trouble(f"the server did not start: {line!r} {tail(self.log)}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it with the signal `how`; the exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        self.was_stopped = True
        process.send_signal(how)
        try:
            code = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise Trouble(f"the server did not end at {how.name}: {tail(self.log)}") from error
        finally:
            assert process.stdout is not None
            process.stdout.close()
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


@dataclass
class Device:
    """One mount: `at` is its folder. `options` are given to every `mount`."""

    site: Site
    name: str
    options: list[str] = field(default_factory=list)

    @property
    def at(self) -> Path:
        return self.site.base / self.name

    @property
    def state(self) -> Path:
        return self.site.base / f"state-{self.name}"

    @property
    def cache(self) -> Path:
        return self.site.base / f"cache-{self.name}"

    @property
    def log(self) -> str:
        """The daemon's log so far."""
        file = self.state / "mount.log"
        return file.read_text() if file.exists() else ""

    def mount(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Returns when the mount is usable."""
        self.at.mkdir(exist_ok=True)
        where = ["--state", str(self.state), "--cache", str(self.cache)]
        words = [*where, *self.site.plainly, *self.options, *more]
        return self.site.cli("mount", self.site.server.url, str(self.at), *words, check=check)

    def umount(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ("umount", str(self.at), *more)
        if check:
            return unmount(*command, env=self.site.env)
        return self.site.cli(*command, check=False)

    # Asked hundreds of times, so without starting a command for it; `test_commands` does.

    def end(self) -> None:
        """Unmount without flushing, as `nearline umount --now` does. Raises `Failure`."""

        def tried() -> bool:
            try:
                unmounting.unmount(self.at, now=True)
            except Failure as error:
                if not is_copied(str(error)):
                    raise
                return False
            return True

        with mock.patch.dict(os.environ, self.site.env, clear=True):
            wait_until(tried, f"only this mount namespace has {self.at}")

    def flush(self, seconds: float = COMMAND_SECONDS) -> None:
        """Returns when the server has everything that was written here."""
        self._ask(messages.FlushRequest(seconds), line_timeout=seconds)

    def status(self) -> dict[str, Any]:
        """The output of `nearline status --json` while the mount answers."""
        found: dict[str, Any] = to_builtins(self._ask(messages.StatusRequest(), COMMAND_SECONDS))
        return found

    def _ask(self, request: messages.Request, line_timeout: float) -> messages.Reply:
        try:
            return client.ask(messages.socket_path(self.state), request, line_timeout=line_timeout)
        except Failure as error:
            raise Trouble(f"{request} of {self.name}: {error}") from error

    @property
    def downloaded(self) -> int:
        return int(self.status()["transferred"]["downloaded_bytes"])

    @property
    def uploaded(self) -> int:
        return int(self.status()["transferred"]["uploaded_bytes"])

    def clear_cache(self) -> None:
        """Forget every block, here and in the kernel: the next read is a cold one."""
        self._ask(messages.CacheClearRequest(), COMMAND_SECONDS)
        drop_page_cache(self.at)

    def sees(self, name: str, content: bytes | None = None) -> Path:
        """Wait until `name` is here (with `content`); its path."""
        path = self.at / name

        def there() -> bool:
            return path.lstat() is not None and (content is None or path.read_bytes() == content)

        self.shows(there, f"{name} on {self.name}")
        return path

    def misses(self, name: str) -> None:
        """Wait until `name` is not here."""
        path = self.at / name

        def missing() -> bool:
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return True
            return False

        self.shows(missing, f"no {name} on {self.name}")

    def shows(self, condition: Callable[[], T], what: str, seconds: float = PATIENCE_SECONDS) -> T:
        """Wait until what is looked at in this mount is so. That something is not there yet is no
        failure; nor is that the server cannot be reached, where a test has cut it off before."""

        def looked() -> T | None:
            try:
                return condition()
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno != errno.ENETUNREACH or not self.site.was_cut_off:
                    raise
                return None

        return wait_until(looked, what, seconds)  # type: ignore[return-value]  # a true one

    def goes_offline(self) -> None:
        """Wait until the mount knows that it is."""
        wait_until(lambda: self.status()["state"] == "offline", f"{self.name} is offline")

    def comes_online(self) -> None:
        """Wait until it is again: the longer it was not, the later is its next try."""
        wait_until(
            lambda: self.status()["state"] == "online",
            f"{self.name} is online",
            backoff.CAP_SECONDS + PATIENCE_SECONDS,
        )

    @property
    def mounted(self) -> bool:
        return mountinfo.mounted_at(self.at) is not None

    @property
    def pid(self) -> int:
        return int(self.status()["pid"])

    def kill(self) -> None:
        """The daemon, without a word; the mount stays, and is dead."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the daemon is gone")


def is_copied(said: str) -> bool:
    """True if an unmount was refused because another mount namespace has a copy."""
    return "in a namespace of its own" in said


def unmount(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`nearline WORDS`, which unmount something, once no process in a mount namespace of its own
    has a copy of that: another test's may, because such a namespace begins with all there is."""

    def tried() -> subprocess.CompletedProcess[str] | None:
        done = run(nearline(), *words, check=False, **options)
        return None if is_copied(done.stderr) else done

    done = wait_until(tried, f"only this mount namespace has what {words} end")
    if done.returncode:
        raise Trouble(f"{words} gave {done.returncode}: {done.stdout} {done.stderr}")
    return done


def drop_page_cache(below: Path) -> None:
    """Forget the kernel's copies of the regular files in the directory `below`."""
    for path in below.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class Site:
    """Server, home and devices under `base`. `public_url` is where clients find the server when it
    is not where it listens (`port`)."""

    def __init__(
        self, base: Path, *, public_url: str | None = None, port: int | None = None
    ) -> None:
        self.base = base
        self.home = base / "home"
        runtime = base / "run"
        for directory in (self.home, runtime):
            directory.mkdir(mode=0o700)
        self.env = environment(self.home, runtime)
        self.password_file = base / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.proxied = public_url is not None
        self.server = Server(self, public_url, port or free_port())
        self.devices: list[Device] = []

    def start(self) -> None:
        """Serve, with an account that this home is logged in to."""
        beginning = _Beginning.made()
        shutil.copytree(beginning.data, self.server.data)
        with mock.patch.dict(os.environ, self.env, clear=True):
            credentials.save(self.server.url, ACCOUNT, beginning.token)
        self.server.start()
        if not self.proxied:
            with mock.patch.dict(os.environ, self.env, clear=True):
                credentials.keep_certificate(self.server.url, self.certificate)

    @property
    def certificate(self) -> str:
        """By which this site's server is known."""
        return (self.server.data / "server.certificate").read_text()

    @property
    def was_cut_off(self) -> bool:
        """True if a test may have kept a mount from reaching the server."""
        return self.proxied or self.server.was_stopped

    @property
    def plainly(self) -> list[str]:
        """Options for commands where a proxy of ours looks into the traffic."""
        return ["--insecure"] if self.proxied else []

    def person(self, account: str) -> None:
        """One more account, that this home is logged in to. From the second on, a mount needs
        `--account`."""
        self.cli("account", "add", account, "--data", self.server.data, *self.by_password)
        self.login(account)

    def login(self, account: str = ACCOUNT) -> None:
        words = ["--account", account, *self.by_password, *self.plainly]
        self.cli("login", self.server.url, *words)

    @property
    def by_password(self) -> list[str]:
        return ["--password-file", str(self.password_file)]

    def device(self, name: str, *options: str) -> Device:
        """A device that has not mounted yet."""
        device = Device(self, name, list(options))
        self.devices.append(device)
        return device

    def cli(
        self, *words: str | Path, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """`nearline WORDS` as the person of this site."""
        return run(nearline(), *words, env=self.env, check=check, seconds=seconds)

    def ask(self, question: Callable[[ApiClient], Awaitable[T]], account: str = ACCOUNT) -> T:
        """Ask the server as one more device of the account, past every mount and proxy."""

        async def asked() -> T:
            url = f"http://{self.server.address}"
            async with ApiClient(url, None, pin=self.certificate) as nobody:
                login = await nobody.login(LoginRequest(account, PASSWORD, "the tests"))
                return await question(nobody.with_token(login.token))

        return trio.run(asked)

    # --- the end ----------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Every process that was started with this site's home, zombies excepted."""
        mark = b"\0HOME=" + os.fsencode(self.home) + b"\0"
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):  # gone meanwhile, or not ours to read
                    if mark in b"\0" + Path("/proc", entry, "environ").read_bytes():
                        found.append(int(entry))
        return found

    def mounts(self) -> list[Path]:
        under = (mount.mountpoint for mount in mountinfo.mounts())
        return [path for path in under if path.is_relative_to(self.base)]

    def kill_daemons(self) -> None:
        """Whatever waits in a mount of this site gets an error, at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> list[str]:
        """Unmount and stop everything, whatever state it is in; what had to be forced."""
        complaints = []
        for device in self.devices:
            if device.mounted:
                try:
                    device.end()
                except (Failure, Trouble) as error:
                    complaints.append(str(error))
        for path in self.mounts():
            complaints.append(f"{path} was left mounted")
            subprocess.run(["umount", "-l", path], check=False, timeout=COMMAND_SECONDS)
        try:
            self.server.stop()
        except Trouble as error:
            complaints.append(str(error))
        with contextlib.suppress(Trouble):  # one that is ending is not left
            wait_until(lambda: not self.processes(), "every process has ended", ENDING_SECONDS)
        for pid in self.processes():
            complaints.append(f"process {pid} was left: {_command_line(pid)}")
        self.kill_daemons()
        return complaints + self.faults()

    def faults(self) -> list[str]:
        """Exceptions that no process expected, from the logs."""
        logs = (file for file in self._log_files() if file.exists())
        lines = (line for file in logs for line in file.read_text(errors="replace").splitlines())
        return [f"a fault was logged: {line}" for line in lines if '"exception": ' in line]

    def _log_files(self) -> list[Path]:
        return [self.server.log, *self.base.glob("state-*/mount.log")]

    def logs(self) -> Iterator[tuple[str, str]]:
        """(title, last lines) of every log, for the report of a test that failed."""
        for file in [*self._log_files(), *self.base.glob("state-*/mount.stderr")]:
            if file.exists() and (text := tail(file)):
                yield f"{file.parent.name}/{file.name}", text


@dataclass(frozen=True)
class _Beginning:
    """The data of a server that knows one account, and a token of that account."""

    data: Path
    token: str

    @classmethod
    @functools.cache
    def made(cls) -> _Beginning:
        """Once for all sites of this process."""
        base = Path(tempfile.mkdtemp(prefix="nearline-beginning-"))
        atexit.register(shutil.rmtree, base, ignore_errors=True)
        env, data, password = environment(base, base), base / "data", base / "password"
        password.write_text(PASSWORD + "\n")
        where = ["--data", str(data)]
        run(nearline(), "account", "add", ACCOUNT, *where, "--password-file", password, env=env)
        token = run(nearline(), "admin", "token", "add", ACCOUNT, "a test", *where, env=env)
        return cls(data, token.stdout.strip())


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")
    except OSError:
        return "gone meanwhile"


RUNNING: list[Site] = []  # for the watchdog and for reports of failures; one test at a time


@contextlib.contextmanager
def running(*, public_url: str | None = None, port: int | None = None) -> Iterator[Site]:
    """A started site without devices. Ends everything; fails when something had to be forced."""
    base = Path(tempfile.mkdtemp(prefix="nearline-"))
    site = Site(base, public_url=public_url, port=port)
    RUNNING.append(site)
    try:
        site.start()
        yield site
    finally:
        complaints = site.end()
        RUNNING.remove(site)
        if not site.mounts():
            shutil.rmtree(base, ignore_errors=True)
    if complaints:
        raise Trouble("; ".join(complaints))
