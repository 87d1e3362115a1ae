"""`nearline up`: from nothing to a folder, and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import mountinfo
from tests.mount.process.up.test_start import UP
from tests.system import harness
from tests.system.harness import COMMAND_SECONDS, wait_until


class Up:
    """`nearline up` for a person who has nothing yet."""

    def __init__(self, base: Path) -> None:
        self.home, runtime = base / "home", base / "run"
        for directory in (self.home, runtime):
            directory.mkdir(mode=0o700)
        self.env = harness.environment(self.home, runtime)
        self.at = self.home / "Nearline"
        self.said = base / "said"
        self.port = harness.free_port()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it says that the folder can be used."""
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP, str(self.port)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        process = self.process
        wait_until(
            lambda: "Ctrl-C" in self.said.read_text() or process.poll() is not None, "it is up"
        )
        assert process.poll() is None, self.said.read_text()

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(COMMAND_SECONDS)


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="nearline-up-", ignore_cleanup_errors=True) as base:
        up = Up(Path(base))
        yield up
        if up.process is not None and up.process.poll() is None:
            os.killpg(up.process.pid, signal.SIGKILL)
            up.process.wait()
        if mountinfo.mounted_at(up.at) is not None:
            subprocess.run(["umount", "-l", up.at], check=True, timeout=20)


def test_up_keeps_a_file_through_ctrl_c(up: Up) -> None:
    up.start()
    assert mountinfo.mounted_at(up.at) is not None
    (up.at / "note").write_text("kept")
    large = harness.noise(10_000_000, 1)
    (up.at / "large").write_bytes(large)
    assert up.interrupt() == 0, up.said.read_text()
    assert mountinfo.mounted_at(up.at) is None
    assert os.listdir(up.at) == []
    up.start()
    assert (up.at / "note").read_text() == "kept"
    assert (up.at / "large").read_bytes() == large
    status = harness.run(harness.nearline(), "status", up.at, "--json", env=up.env).stdout
    assert '"operations": 0' in status
    assert up.interrupt() == 0, up.said.read_text()
    assert "Traceback" not in up.said.read_text()
