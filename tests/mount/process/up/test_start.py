"""mount/up*.py: what the first start chooses, the server's process, and the whole by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount import credentials, mountinfo
from mount.cli import main
from mount.control import client
from mount.failures import Failure
from mount.options import Options
from mount.process import registry
from mount.process.up import start
from mount.process.up.server import Server
from tests.ports import free_port

pytestmark = pytest.mark.slow

CAN_MOUNT = Path("/dev/fuse").exists() and (os.getuid() == 0 or shutil.which("fusermount3"))


@pytest.mark.parametrize(
    ("user", "account"),
    [("ann", "ann"), ("Ann.Lee", "ann.lee"), ("DOM\\ann", "domann"), ("Ωμ", "me"), ("_x-", "x")],
)
def test_the_account_is_named_like_the_user(user: str, account: str) -> None:
    assert start.account_name(user) == account


def test_other_data_means_other_state(home: Path) -> None:
    one, two = start.Settings(1, "ann", "a"), start.Settings(1, "ann", "b")
    assert start.configure(Path("/m"), one, Options()) == start.configure(
        Path("/m"), one, Options()
    )
    assert (
        start.configure(Path("/m"), one, Options()).state_dir
        != start.configure(Path("/m"), two, Options()).state_dir
    )


def test_the_mount_trusts_the_server_of_this_data_only(home: Path, tmp_path: Path) -> None:
    """Whatever answers at the port, and whatever was known of it before."""
    config = start.configure(Path("/m"), start.Settings(1, "ann", "a"), Options())
    credentials.keep_certificate(config.url, "that of another")
    with pytest.raises(Failure, match="start the server on this data again"):
        start._trusting(tmp_path, config)
    (tmp_path / "server.certificate").write_text("ours")
    assert start._trusting(tmp_path, config).pin == "ours"
    assert credentials.certificate(config.url) == "ours"


def test_settings_that_are_torn_are_not_made_anew(tmp_path: Path) -> None:
    assert start.load_settings(tmp_path) is None
    (tmp_path / "up.json").write_text('{"port": ')
    with pytest.raises(Failure, match="unreadable"):
        start.load_settings(tmp_path)


def test_a_port_that_is_taken_is_not_chosen() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", start.FIRST_PORT))
        except OSError:
            pass  # somebody else has it already, which is as good
        else:
            other.listen()
        assert start.choose_settings().port != start.FIRST_PORT


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


# The port that `up` likes best is everybody's: who has it once may not find it free again.
UP = """
import sys
from mount.cli import main
from mount.process.up import start
start.FIRST_PORT = int(sys.argv[1])
sys.exit(main(["up", *sys.argv[2:]]))
"""


class Running:
    """`nearline up` as a process."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-c", UP, str(port), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = self.read_until("Ctrl-C sends")
        self.url = said.partition("served from this machine at ")[2].partition(".\n")[0]

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
        said, _ = self.process.communicate(timeout=120)
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
    port = free_port()
    first = Running(place, port)
    (place / "hello").write_text("hello")
    assert "is unmounted" in first.end()
    assert os.listdir(place) == []
    assert registry.all_records() == []
    assert first.url == f"http://127.0.0.1:{port}"
    second = Running(place, port)
    assert (place / "hello").read_text() == "hello"
    assert main(["umount", str(place)]) == 0
    assert "was unmounted" in second.process.communicate(timeout=120)[0]
    assert second.process.returncode == 0


@pytest.mark.system
@pytest.mark.skipif(not CAN_MOUNT, reason="needs /dev/fuse")
def test_a_server_that_dies_is_started_again_and_a_busy_mount_still_ends(place: Path) -> None:
    running = Running(place, free_port())
    assert os.listdir(place) == []  # seen while online, so it can be written to offline
    server = _child(running.process.pid, "serve")
    with Thief(int(running.url.rpartition(":")[2])) as thief:
        os.kill(server, signal.SIGKILL)
        thief.steal()
        (place / "hello").write_text("hello")
        until(lambda: len(thief.got) > 3 and "another program answers" in reason(place))
    for item in thief.got:
        assert item.startswith(b"\x16\x03")  # the beginning of TLS, and nothing else
        assert b"HTTP" not in item
    assert "runs again" in running.read_until("runs again")
    assert _child(running.process.pid, "serve") != server
    assert main(["flush", str(place), "--timeout", "50"]) == 0
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=place) as busy:
        assert f"though it was in use: cat ({busy.pid}) of " in running.end(signal.SIGTERM)
        busy.communicate()
    assert mountinfo.mounted_at(place) is None


class Thief:
    """Another program, which takes the server's port as soon as it is free and answers everybody
    in plain HTTP. It has nothing that a program of another user would not have, so whose it is
    makes no difference. `got` is what each connection brought."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._thread = threading.Thread(target=self._serve)
        self.got: list[bytes] = []

    def __enter__(self) -> Thief:
        return self

    def steal(self) -> None:
        def bound() -> bool:
            with contextlib.suppress(OSError):
                self._listener.bind(("127.0.0.1", self._port))
                return True
            return False

        until(bound)
        self._listener.listen()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(10)
                self.got.append(sock.recv(65536))
                sock.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")


def reason(place: Path) -> str:
    record = registry.get(place)
    assert record is not None
    return client.status(Path(record.control)).reason or ""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def _child(parent: int, word: str) -> int:
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if word in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"{parent} has no child {word}")
