"""mount/up*.py: what the first start chooses, the server's process, and the whole by Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import mountinfo
from mount.cli import main
from mount.config import Options
from mount.failures import Failure
from mount.starting import registry, up
from mount.starting.up_server import Server

CAN_MOUNT = Path("/dev/fuse").exists() and (os.getuid() == 0 or shutil.which("fusermount3"))


@pytest.mark.parametrize(
    ("user", "account"),
    [("ann", "ann"), ("Ann.Lee", "ann.lee"), ("DOM\\ann", "domann"), ("Ωμ", "me"), ("_x-", "x")],
)
def test_the_account_is_named_like_the_user(user: str, account: str) -> None:
    assert up.account_name(user) == account


def test_other_data_means_other_state(home: Path) -> None:
    one, two = up.Settings(1, "ann", "a"), up.Settings(1, "ann", "b")
    assert up.configure(Path("/m"), one, Options()) == up.configure(Path("/m"), one, Options())
    assert (
        up.configure(Path("/m"), one, Options()).state_dir
        != up.configure(Path("/m"), two, Options()).state_dir
    )


def test_settings_that_are_torn_are_not_made_anew(tmp_path: Path) -> None:
    assert up.load_settings(tmp_path) is None
    (tmp_path / "up.json").write_text('{"port": ')
    with pytest.raises(Failure, match="unreadable"):
        up.load_settings(tmp_path)


def test_a_port_that_is_taken_is_not_chosen() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", up.FIRST_PORT))
        except OSError:
            pass  # somebody else has it already, which is as good
        else:
            other.listen()
        assert up.choose_settings().port != up.FIRST_PORT


def test_a_server_that_cannot_start_says_why(home: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with Server(tmp_path / "data", port) as server:
            server.start()
            with pytest.raises(Failure, match="cannot listen") as caught:
                server.wait_ready()
    assert "\n" not in str(caught.value)


def test_nothing_is_left_of_an_up_that_could_not_mount(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "file").touch()
    assert main(["up", str(tmp_path / "mnt"), "--data", str(tmp_path / "data")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main(["up", str(tmp_path / "new"), "-o", "bogus"]) == 2
    assert not (tmp_path / "new").exists()


class Running:
    """`nearline up` as a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mount.cli", "up", str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.read_until("Ctrl-C sends")

    def read_until(self, words: str) -> str:
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if words in line:
                return seen
        raise AssertionError(f"no {words!r} in: {seen}")

    def end(self, number: int = signal.SIGINT) -> str:
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def place(home: Path) -> Iterator[Path]:
    directory = home / "Nearline"
    yield directory
    if mountinfo.mounted_at(directory) is not None:
        subprocess.run(["umount", "-l", directory], check=False)


@pytest.mark.system
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse")
def test_everything_is_there_at_the_second_start(place: Path) -> None:
    first = Running(place)
    (place / "hello").write_text("hello")
    assert "is unmounted" in first.end()
    assert os.listdir(place) == []
    assert registry.all_records() == []
    second = Running(place)
    assert (place / "hello").read_text() == "hello"
    assert main(["umount", str(place)]) == 0
    assert "was unmounted" in second.process.communicate(timeout=60)[0]
    assert second.process.returncode == 0


@pytest.mark.system
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse")
def test_a_server_that_dies_is_started_again_and_a_busy_mount_still_ends(place: Path) -> None:
    running = Running(place)
    assert os.listdir(place) == []  # seen while online, so it can be written to offline
    server = _child(running.process.pid, "serve")
    os.kill(server, signal.SIGKILL)
    assert "exit code -9" in running.read_until("runs again")
    assert _child(running.process.pid, "serve") != server
    (place / "hello").write_text("hello")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=place) as busy:
        assert f"though it was in use: cat ({busy.pid}) of " in running.end(signal.SIGTERM)
        busy.communicate()
    assert mountinfo.mounted_at(place) is None


def _child(parent: int, word: str) -> int:
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if word in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"{parent} has no child {word}")
