"""Whatever a mount makes on this machine is its user's alone, whatever umask it was started with;
and a start that fails leaves no mount."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import mountinfo
from mount.config import make_config
from mount.options import Options
from mount.process import launch
from tests.system import harness
from tests.system.harness import Device, Site, nearline, noise, run

pytestmark = pytest.mark.new_programs("what another person could see of a program")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Processes that are started meanwhile have this umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One for all tests here, which have devices of their own."""
    with harness.running() as site:
        yield site


def open_to_others(*tops: Path) -> list[str]:
    """Everything at and below `tops` that group or others may read, write or enter."""
    modes: dict[Path, int] = {}
    for path in (path for top in tops for path in (top, *top.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # it was sent, or temporary
            modes[path] = path.lstat().st_mode
    return [f"{path}: {mode:o}" for path, mode in modes.items() if mode & 0o077]


def damage(device: Device) -> None:
    """So that the next mount puts the state aside and salvages it."""
    tree = device.state / "tree.sqlite"
    tree.write_bytes(b"rubbish" + tree.read_bytes()[7:])


def test_whatever_a_mount_makes_is_its_users_alone(site: Site) -> None:
    records = site.home / ".local"
    for mask in (0, 0o022):
        device = site.device(f"umask-{mask:o}")
        with umask(mask):
            device.mount("-o", "metrics-port=0")
            (device.at / f"file {mask:o}").write_bytes(noise(300_000, mask))
            device.flush()
            device.clear_cache()
            assert (device.at / f"file {mask:o}").read_bytes() == noise(300_000, mask)
            (device.at / "unsent").write_bytes(b"in the spool")
            assert open_to_others(device.state, device.cache, records) == []
            device.umount("--now")
            damage(device)
            device.mount()
        assert list(device.state.glob("quarantine-*/report.json"))
        assert open_to_others(device.state, device.cache, records) == []


def test_callers_get_the_modes_that_they_ask_for(site: Site) -> None:
    """The mount's own umask is not theirs."""
    device = site.device("modes")
    device.mount()
    with umask(0):
        run("mkdir", "-m", "1777", device.at / "everybodys")
        run("sh", "-c", f"umask 002; echo >{device.at}/groups; umask 0; echo >{device.at}/all")
    shown = run("stat", "-c", "%a", *(device.at / name for name in ("everybodys", "groups", "all")))
    assert shown.stdout.split() == ["1777", "664", "666"]


# Runs the mount's process, and fails after the kernel has the mount and before it is usable.
FAILING = """
import sys
from mount import daemon, mountinfo
from mount.failures import Failure
from mount.process import daemon_main

class Failing:
    def __init__(self, session):
        assert mountinfo.mounted_at(session.config.mountpoint) is not None
        raise Failure("no pins; do without")

daemon.Pins = Failing
sys.exit(daemon_main.main(sys.argv))
"""


def test_a_start_that_fails_after_mounting_leaves_nothing(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    device = site.device("failing")
    device.at.mkdir()
    options = Options(state_dir=device.state, cache_dir=device.cache, insecure=True)
    config = make_config(site.server.url, device.at, harness.ACCOUNT, options)
    answer, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-P", program, str(write_end)],
        stdin=subprocess.PIPE,
        env=site.env,
        pass_fds=[write_end],
    ) as process:
        os.close(write_end)
        orders = launch.Orders(config, harness._Beginning.made().token)
        launch.Launch(process, answer).order(orders)
        with open(answer, "rb") as told:
            assert b"no pins; do without" in told.read()
    assert mountinfo.mounted_at(device.at) is None
    assert not device.state.exists()
    assert not device.cache.exists()
    device.mount()  # nothing is in the way


def test_nobody_keeps_a_mount_from_starting_by_taking_names_in_shared_directories(
    site: Site, tmp_path: Path
) -> None:
    """With a path to the state that is too long for a socket, and no directory for its user's run
    time: everything that could be shared is somebody else's already."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    (shared / f"nearline-{os.getuid()}").mkdir(mode=0o755)
    if os.getuid() == 0:
        os.chown(shared / f"nearline-{os.getuid()}", 12345, 12345)
    deep = site.base / ("state-" + "x" * 120)
    env = {**site.env, "TMPDIR": str(shared)}
    del env["XDG_RUNTIME_DIR"]
    device = site.device("deep")
    device.at.mkdir()
    where = ["--state", deep, "--cache", device.cache]
    run(nearline(), "mount", site.server.url, device.at, *where, env=env)
    (device.at / "file").write_text("here")
    status = json.loads(run(nearline(), "status", device.at, "--json", env=env).stdout)
    assert status["pid"]
    harness.unmount("umount", device.at, env=env)
    assert [path.name for path in shared.rglob("*")] == [f"nearline-{os.getuid()}"]
