"""A mount's process: launching and being launched, with a made-up mount inside."""

from __future__ import annotations

import errno
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mount.config import MountConfig, make_config
from mount.failures import Failure, UsageFailure
from mount.options import Options
from mount.process import launch, preflight, processes, registry
from mount.process.daemon_main import explain
from mount.process.directories import Directories
from remote.protocol import errors

pytestmark = pytest.mark.slow

# Runs daemon_main with a `mount.daemon` whose `run` does what the mount's account is called.
PROGRAM = """
import os, sys, types, trio
from mount.process import daemon_main
from mount.failures import UsageFailure
from remote.protocol import errors

async def run(config, token, *, answering, ready):
    assert token == "secret"
    if config.account == "refused":
        raise ExceptionGroup("", [errors.Refused(errors.Unauthorized())])
    if config.account == "bug":
        raise ExceptionGroup("", [KeyError("what")])
    if config.account == "usage":
        raise UsageFailure("no; do it otherwise")
    if config.account == "crash":
        os.abort()
    with trio.open_signal_receiver(15) as signals:
        answering()
        ready()
        async for _ in signals:
            return

async def check_server(config, token):
    if config.account == "offline":
        raise errors.Unreachable("cannot connect")

fake = types.ModuleType("mount.daemon")
fake.run = run
sys.modules["mount.daemon"] = fake
daemon_main._load = lambda: None
daemon_main.check_server = check_server
sys.exit(daemon_main.main(sys.argv))
"""


@pytest.fixture
def config(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountConfig:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(launch, "COMMAND", [sys.executable, "-P", str(program)])
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    return make_config("http://localhost:1", mountpoint, "ann", Options())


def start(config: MountConfig, account: str = "ann", parent: int | None = None) -> launch.Launch:
    """Start, and wait until it is usable."""
    named = make_config(config.url, config.mountpoint, account, Options(state_dir=config.state_dir))
    with launch.launched() as started:
        started.order(launch.Orders(named, "secret", parent))
        started.wait(config.state_dir / launch.LOG_NAME)
    return started


def end(started: launch.Launch) -> None:
    started.process.terminate()
    assert started.process.wait() == 0


def test_orders_survive_the_pipe(config: MountConfig) -> None:
    orders = launch.Orders(config, "secret", 5)
    assert launch.decode_orders(launch.encode_orders(orders)) == orders


def test_a_mount_from_start_to_end(config: MountConfig) -> None:
    started = start(config)
    record = registry.get(config.mountpoint)
    assert record is not None
    assert (record.pid, record.alive) == (started.process.pid, True)
    assert preflight.identity(config.state_dir) == preflight.Identity(config.url, "ann")
    with pytest.raises(Failure, match=r"the mount at .* is using"):
        start(config)
    assert registry.get(config.mountpoint) == record
    end(started)
    assert not record.alive
    assert registry.get(config.mountpoint) is None
    for name in (launch.LOG_NAME, "identity.json"):
        assert (config.state_dir / name).stat().st_mode & 0o077 == 0


def test_the_token_is_nowhere_to_be_seen(config: MountConfig) -> None:
    started = start(config)
    about = Path(f"/proc/{started.process.pid}")
    assert b"secret" not in (about / "cmdline").read_bytes() + (about / "environ").read_bytes()
    end(started)
    files = [file for file in config.state_dir.rglob("*") if file.is_file()]
    assert all(b"secret" not in file.read_bytes() for file in files)


@pytest.mark.parametrize(
    ("account", "kind", "words"),
    [
        ("refused", Failure, "run `nearline login http://localhost:1 --account refused`"),
        ("offline", Failure, "cannot connect; check the URL"),
        ("usage", UsageFailure, "do it otherwise"),
    ],
)
def test_a_first_start_that_fails_leaves_nothing(
    config: MountConfig, account: str, kind: type[Failure], words: str
) -> None:
    with pytest.raises(kind, match=words):
        start(config, account)
    assert not config.state_dir.exists()
    assert registry.all_records() == []


def test_later_starts_do_not_ask_the_server(config: MountConfig) -> None:
    named = make_config(
        config.url, config.mountpoint, "offline", Options(state_dir=config.state_dir)
    )
    with Directories(config):
        preflight.remember_identity(named)
    end(start(config, "offline"))


def test_a_bug_is_in_the_log(config: MountConfig) -> None:
    with pytest.raises(Failure, match="KeyError: 'what'; see "):
        start(config, "bug")
    assert "Traceback" in (config.state_dir / launch.LOG_NAME).read_text()


def test_a_crash_is_said(config: MountConfig) -> None:
    with pytest.raises(Failure, match=f"signal {int(signal.SIGABRT)}"):
        start(config, "crash")
    record = registry.get(config.mountpoint)
    assert record is not None
    assert not record.alive


def test_an_error_before_the_orders_ends_the_process(config: MountConfig) -> None:
    with pytest.raises(Failure, match="wrong"), launch.launched() as started:
        raise Failure("wrong; so there")
    assert started.process.returncode is not None


def test_a_mount_ends_with_its_parent(config: MountConfig, tmp_path: Path) -> None:
    """The parent is a process in between, which starts the mount and is killed."""
    orders = tmp_path / "orders"
    code = f"""
import os, signal
from pathlib import Path
from mount.process import launch
launch.COMMAND = {launch.COMMAND!r}
config = launch.decode_orders(Path({str(orders)!r}).read_bytes()).config
with launch.launched() as started:
    started.order(launch.Orders(config, "secret", os.getpid()))
    started.wait(config.state_dir)
print(started.process.pid, flush=True)
signal.pause()
"""
    orders.write_bytes(launch.encode_orders(launch.Orders(config, "")))
    between = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert between.stdout is not None
    pid = int(between.stdout.readline())
    assert registry.started_at(pid)
    between.kill()
    between.communicate()
    assert processes.wait_gone(pid, 10)


def test_a_full_disk_is_explained(config: MountConfig) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    for error in (OSError(errno.ENOSPC, "No space left on device"), full):
        assert "make room" in str(explain(error, config))


def test_a_locked_account_is_not_told_to_log_in(config: MountConfig) -> None:
    for said, words in (
        ("the token has expired: log in", "run `nearline login"),
        ("the account is locked; ask who runs the server", "locked; ask who runs the server"),
    ):
        refused = errors.Refused(errors.Unauthorized(message=said))
        assert words in str(explain(refused, config))
        assert ("nearline login" in str(explain(refused, config))) == (";" not in said)


def test_errors_are_explained_in_one_line(config: MountConfig) -> None:
    nested = ExceptionGroup("", [ExceptionGroup("", [errors.Unreachable("no\nroute")])])
    assert str(explain(nested, config)).startswith("no route; check")
    assert isinstance(explain(KeyboardInterrupt(), config), KeyboardInterrupt)
