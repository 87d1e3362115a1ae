"""The server as a process: start, the URL it tells, one per data directory, and a quick end."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.accounts.accounts import add_account
from server.accounts.devices import issue_token
from server.main import AlreadyServed, CannotListen, serve
from server.settings import BadSettings, Settings, read_config

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from pathlib import Path
from server.main import serve
serve(Path(sys.argv[1]), sys.argv[2], ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@contextmanager
def process(
    data: Path, listen: str = "127.0.0.1:0", program: str = PROGRAM
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", program, str(data), listen]
    root = str(Path(__file__).parents[2])
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert running.stdout is not None
    try:
        yield running, running.stdout.readline().strip()
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def test_a_server_starts_tells_its_url_and_ends_when_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    add_account(data, "anna", "a secret")
    token = issue_token(data, "anna", "here")
    with process(data) as (running, url):
        assert (data / "server.url").read_text() == url + "\n"
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/me", headers=headers).json()["account"] == "anna"
        with pytest.raises(AlreadyServed, match="another server"):
            serve(data, "127.0.0.1:0")
        assert (data / "server.url").exists()
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stdout is not None
        assert running.stdout.read() == "ended\n"
    assert not (data / "server.url").exists()


def test_a_killed_server_starts_again(tmp_path: Path) -> None:
    with process(tmp_path) as (running, _):
        running.kill()
        running.wait(60)
    with process(tmp_path) as (running, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0


def test_what_is_secret_is_readable_by_the_owner_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with process(data):
        pass
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for path in (data / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_server_shuts_others_out_of_data_that_was_there(tmp_path: Path, no_umask: None) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    add_account(data, "anna", "a secret")
    (data / "server.log").touch()
    for path in data.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    data.chmod(0o755)
    with process(data):
        assert [path for path in (data, *data.rglob("*")) if path.stat().st_mode & 0o077] == []


def test_data_that_others_write_in_is_not_served(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with process(tmp_path) as (running, url):
        assert url == ""
        assert running.wait(60) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListen, match="in use"):
            serve(tmp_path / "data", listen)


@pytest.mark.parametrize("listen", ["", "8750", "host", "127.0.0.1:x", "127.0.0.1:99999", ":1"])
def test_an_address_that_is_none(tmp_path: Path, listen: str) -> None:
    with pytest.raises(BadSettings, match="HOST:PORT"):
        serve(tmp_path / "data", listen)


@pytest.mark.parametrize(
    "url", ["", "host", "ftp://host", "http://", "http://host/path", "http://u@host", "http://h?x"]
)
def test_a_public_url_is_an_origin(tmp_path: Path, url: str) -> None:
    with pytest.raises(BadSettings):
        Settings(tmp_path, url)


def test_configuration_is_strict(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('public_url = "https://files.example"\nupload_days = 3\n')
    assert read_config(config).upload_days == 3
    assert read_config(None).upload_days == 7
    for wrong in ("upload_dayz = 3", "upload_days = 0", "upload_days = 'x'", "="):
        config.write_text(wrong)
        with pytest.raises(BadSettings, match=r"config\.toml"):
            read_config(config)
    with pytest.raises(BadSettings, match="cannot read"):
        read_config(tmp_path / "nothing.toml")
