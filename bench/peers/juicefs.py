"""JuiceFS, with Valkey for what it knows of files and SeaweedFS for their content.

Its defaults, but no trash, no backups of its metadata and no reports of use. What is closed is on
the server: it writes through. All three are behind one line, where there is one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.link.proxy import HOST, Route
from bench.link.schedule import Shape
from bench.peers import seaweed
from bench.peers.base import START_SECONDS, Foreground
from bench.peers.installing import JUICEFS, VALKEY, WEED
from bench.processes import poll, run, stop


class JuiceFS(Foreground):
    name = "juicefs"
    needs = (JUICEFS, VALKEY, WEED)

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self._env["HOME"] = str(base)
        self._meta = ""
        self._valkey: subprocess.Popen[bytes] | None = None

    @property
    def version(self) -> str:
        said = run([JUICEFS.path(), "--version"], self._env, START_SECONDS).split()[2]
        return f"{said.partition('+')[0]} (SeaweedFS {seaweed.version()})"

    def start(self) -> None:
        meta = self._port()
        ports = seaweed.Ports([self._port() for _ in range(seaweed.Ports.COUNT)])
        kept = self.base / "valkey"
        kept.mkdir()
        words = ["--bind", HOST, "--port", str(meta), "--dir", str(kept)]
        words += ["--appendonly", "yes", "--save", ""]
        self._valkey = self._spawn([VALKEY.path(), *words], self._env, self.base / "valkey.log")
        command = seaweed.command(self.base / "objects", ports)
        self._server = self._spawn(command, self._env, self.base / "server.log")
        poll(lambda: self.network.listens(meta), "Valkey", timeout=START_SECONDS)
        poll(lambda: self.network.listens(ports.s3), "SeaweedFS", timeout=START_SECONDS)
        to_meta, to_s3 = self._reached(Route(meta), Route(ports.s3, http=True))
        self._meta = f"redis://{HOST}:{to_meta}/1"
        with self.nearby():
            bucket = f"http://{HOST}:{to_s3}/juicefs"
            words = ["format", "--storage", "s3", "--bucket", bucket, "--trash-days", "0"]
            words += ["--access-key", seaweed.KEY, "--secret-key", seaweed.SECRET]
            format = self.network.inside([JUICEFS.path(), *words, self._meta, "bench"])
            run(format, self._env, START_SECONDS)
        self._mount()

    def flush(self) -> None:
        return

    def pids(self) -> dict[str, int]:
        assert self._valkey is not None
        return {**super().pids(), "metadata": self._valkey.pid}

    def _mount_command(self) -> list[str]:
        command = [JUICEFS.path(), "mount", self._meta, str(self.mountpoint), "--no-usage-report"]
        command += ["--cache-dir", str(self.base / "cache"), "--backup-meta", "0", "--no-syslog"]
        return [*command, "--metrics", f"{HOST}:{self._port()}"]

    def _stop_servers(self) -> None:
        super()._stop_servers()
        stop(self._valkey)
