"""mount/process/processes.py: what other programs are told, and learning that one has ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mount.process import processes


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        processes.sd_notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    processes.sd_notify("READY=1")


def test_the_end_of_a_process_is_seen() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert not processes.wait_gone(child.pid, 0)
        child.communicate()
        assert processes.wait_gone(child.pid, 10)


def test_a_child_whose_parent_has_ended_before_it_could_ask_ends() -> None:
    code = (
        "from mount.process import processes;"
        f" processes.die_with_parent({os.getpid()} + 1); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b""
