"""The life of a mount as its commands see it: real server, real mount, every way of ending."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import json

from mount import holders, mountinfo
from mount.cli import main
from mount.process import processes, registry
from mount.units import render
from tests.conftest import isolate
from tests.system.harness import wait_until

CAN_MOUNT = Path("/dev/fuse").exists() and (os.getuid() == 0 or shutil.which("fusermount3"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse"),
]


class Place:
    """A home, a server with the account `ann`, and a mountpoint."""

    def __init__(self, home: Path) -> None:
        self.home, self.mountpoint = home, home / "mnt"
        self.mountpoint.mkdir()
        self.password = home / "password"
        self.password.write_text("correct horse\n")
        self.server = subprocess.Popen(
            [sys.executable, "-m", "mount.cli", "serve"]
            + ["--data", str(home / "data"), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.server.stdout is not None
        self.url = self.server.stdout.readline().split()[-1]
        given = ["--password-file", str(self.password)]
        assert main(["account", "add", "ann", "--data", str(home / "data"), *given]) == 0
        assert main(["login", self.url, "--account", "ann", *given]) == 0

    def mount(self, *more: str) -> int:
        """In a process of its own, because a command may leave threads behind, and tests fork."""
        words = ["mount", self.url, str(self.mountpoint), *more]
        return subprocess.run([sys.executable, "-m", "mount.cli", *words], check=False).returncode

    def record(self) -> registry.Record:
        record = registry.get(self.mountpoint)
        assert record is not None
        return record

    def kill_mount(self) -> None:
        pid = self.record().pid
        os.kill(pid, signal.SIGKILL)
        assert processes.wait_gone(pid, 10)

    def restore(self) -> None:
        """Whatever a test left: nothing is mounted, and the server runs."""
        self.server.send_signal(signal.SIGCONT)
        record = registry.get(self.mountpoint)
        if record is not None and record.alive:
            os.kill(record.pid, signal.SIGTERM)
            processes.wait_gone(record.pid, 30)
        if mountinfo.mounted_at(self.mountpoint) is not None:
            subprocess.run(["umount", "-l", self.mountpoint], check=False)

    def close(self) -> None:
        self.restore()
        self.server.terminate()
        self.server.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for all of these tests: starting one costs more than a test."""
    with pytest.MonkeyPatch.context() as patch:
        place = Place(isolate(tmp_path_factory.mktemp("unmount"), patch))
        yield place
        place.close()


@pytest.fixture
def place(shared: Place) -> Iterator[Place]:
    yield shared
    shared.restore()


@pytest.fixture
def here(place: Place) -> str:
    """The mountpoint, mounted and its root seen."""
    assert place.mount() == 0
    os.listdir(place.mountpoint)
    return str(place.mountpoint)


def umount(here: str, *more: str) -> int:
    """The exit code of the command, when no process in a mount namespace of its own has a copy of
    the mount: another test's may, because such a namespace begins with all there is."""
    mount = mountinfo.mounted_at(Path(here))
    while (code := main(["umount", here, *more])) and mount and holders.elsewhere(mount):
        wait_until(lambda: not holders.elsewhere(mount), "only this mount namespace has it")
    return code


def test_it_is_usable_when_mount_returns_and_gone_when_umount_does(
    place: Place, here: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (place.mountpoint / "file").write_text("text")
    assert main(["flush", here, "--timeout", "30"]) == 0
    capfd.readouterr()
    assert main(["status", here, "--json"]) == 0
    status = json.decode(capfd.readouterr().out)
    assert (status["state"], status["journal"]["operations"]) == ("online", 0)
    assert place.mount() == 1
    assert "already mounted; run `nearline umount" in capfd.readouterr().err
    pid = place.record().pid
    assert umount(here) == 0
    assert os.listdir(here) == []
    assert registry.started_at(pid) == 0
    assert registry.all_records() == []


def test_a_busy_mount_is_not_unmounted_and_says_who_holds_it(
    place: Place, here: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=here) as busy:
        assert main(["umount", here]) == 1
        assert f"in use: cat ({busy.pid}) of " in capfd.readouterr().err
        assert main(["umount", here, "--now"]) == 1
        busy.communicate()
    assert mountinfo.mounted_at(place.mountpoint) is not None
    assert umount(here) == 0


def test_what_cannot_be_sent_in_time_waits_for_the_next_mount(
    place: Place, here: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place.server.send_signal(signal.SIGSTOP)
    (place.mountpoint / "file").write_text("text")
    assert main(["flush", here, "--timeout", "0.3"]) == 1
    assert "does not have everything" in capfd.readouterr().err
    assert main(["umount", here, "--timeout", "0.3"]) == 1
    assert "it stays mounted" in capfd.readouterr().err
    assert (place.mountpoint / "file").read_text() == "text"
    assert umount(here, "--now") == 0
    place.server.send_signal(signal.SIGCONT)
    assert place.mount() == 0
    assert (place.mountpoint / "file").read_text() == "text"
    assert umount(here, "--timeout", "30") == 0
    assert place.mount("--state", str(place.home / "other"), "--cache", str(place.home / "c")) == 0
    assert (place.mountpoint / "file").read_text() == "text"


def test_a_mount_starts_without_its_server(place: Place, here: str) -> None:
    assert umount(here) == 0
    place.server.send_signal(signal.SIGSTOP)
    assert place.mount() == 0
    (place.mountpoint / "offline").write_text("text")
    assert (place.mountpoint / "offline").read_text() == "text"
    assert umount(here, "--now") == 0


def test_after_a_crash_umount_cleans_up_and_nothing_is_lost(
    place: Place, here: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place.server.send_signal(signal.SIGSTOP)
    (place.mountpoint / "crash").write_text("text")
    place.kill_mount()
    place.server.send_signal(signal.SIGCONT)
    capfd.readouterr()
    assert main(["status", here, "--json"]) == 0
    assert json.decode(capfd.readouterr().out)["state"] == "dead"
    assert place.mount() == 1
    assert f"process is gone; run `nearline umount {here}`" in capfd.readouterr().err
    assert umount(here) == 0
    assert "is kept in" in capfd.readouterr().out
    assert place.mount() == 0
    assert (place.mountpoint / "crash").read_text() == "text"


def test_umount8_ends_it_too(place: Place, here: str) -> None:
    pid = place.record().pid
    command = ["umount", here] if os.getuid() == 0 else ["fusermount3", "-u", here]
    subprocess.run(command, check=True)
    assert processes.wait_gone(pid, 30)
    assert registry.all_records() == []


def unit_commands(name: str, key: str, place: Place) -> list[list[str]]:
    """The commands that the unit `name` runs for `key`, for this mount, without the mark of a
    failure that is none; every program of them is ours."""
    command = f"{sys.executable} -P -m mount.cli"
    found = []
    for line in render(name, "/nearline").splitlines():
        if line.startswith(f"{key}="):
            words = line.partition("=")[2].removeprefix("-").replace("/nearline", command)
            values = {"${DIR}": str(place.mountpoint), "${URL}": place.url}
            values["${OPTIONS}"] = "account=ann"
            found.append([values.get(word, word) for word in words.split()])
    return found


@pytest.mark.parametrize("name", ["user/nearline@.service", "system/nearline@.service"])
def test_a_unit_that_is_stopped_while_the_mount_is_in_use_has_not_failed(
    place: Place, name: str
) -> None:
    """As systemd does it: ExecStop, then SIGTERM, then ExecStopPost; the exit code decides."""
    (start,) = unit_commands(name, "ExecStart", place)
    with subprocess.Popen(start, stderr=subprocess.DEVNULL) as service:
        wait_until(lambda: mountinfo.mounted_at(place.mountpoint) is not None, "it is mounted")
        stays = os.open(place.mountpoint / "open", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(stays, name.encode())
            for stop in unit_commands(name, "ExecStop", place):
                assert subprocess.run(stop, check=False).returncode == 0
            os.write(stays, b" and more")
            service.send_signal(signal.SIGTERM)
            assert service.wait(60) == 0
        finally:
            with contextlib.suppress(OSError):  # nobody serves it any more
                os.close(stays)
        assert mountinfo.mounted_at(place.mountpoint) is None
    for after in unit_commands(name, "ExecStopPost", place):
        subprocess.run(after, check=False, stderr=subprocess.DEVNULL)
    assert place.mount() == 0
    assert (place.mountpoint / "open").read_text() == f"{name} and more"


def test_a_token_that_is_wrong_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEARLINE_TOKEN", "wrong")
    state, cache = place.home / "new" / "state", place.home / "new" / "cache"
    assert place.mount("--state", str(state), "--cache", str(cache)) == 1
    assert f"nearline login {place.url} --account ann" in capfd.readouterr().err
    assert not (place.home / "new").exists()
    assert registry.all_records() == []
