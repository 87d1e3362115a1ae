"""sshfs over the SFTP server of OpenSSH. Its defaults, and no ssh in between: nobody encrypts here.
What is closed is on the server.
"""

from __future__ import annotations

import sys

from bench.link.proxy import HOST, Route
from bench.peers.base import START_SECONDS, Foreground
from bench.peers.installing import SFTP, SSHFS
from bench.processes import poll, run


class Sshfs(Foreground):
    name = "sshfs"
    needs = (SSHFS, SFTP)
    _reached_at = 0

    @property
    def version(self) -> str:
        said = run([SSHFS.path(), "--version"], self._env, START_SECONDS)
        return said.partition("SSHFS version ")[2].split()[0]

    def start(self) -> None:
        (self.base / "served").mkdir()
        port = self._port()
        listener = [sys.executable, "-P", "-m", "bench.peers.sftp_listener", str(port), SFTP.path()]
        self._server = self._spawn(listener, self._env, self.base / "server.log")
        poll(lambda: self.network.listens(port), "the SFTP server", timeout=START_SECONDS)
        (self._reached_at,) = self._reached(Route(port))
        self._mount()

    def flush(self) -> None:
        return

    def _mount_command(self) -> list[str]:
        served = f"{HOST}:{self.base / 'served'}"
        options = f"directport={self._reached_at}"
        return [SSHFS.path(), served, str(self.mountpoint), "-f", "-o", options]
