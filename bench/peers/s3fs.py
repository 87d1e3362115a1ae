"""s3fs over SeaweedFS. Its defaults, with a cache on the disk. What is closed is on the server."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.link.proxy import HOST, Route
from bench.link.schedule import Shape
from bench.peers import seaweed
from bench.peers.base import START_SECONDS, Foreground
from bench.peers.installing import S3FS, WEED
from bench.processes import poll, run

BUCKET = "bench"
_MAKE = """
import sys, botocore.session
botocore.session.get_session().create_client(
    "s3", endpoint_url=sys.argv[1], region_name="us-east-1",
    aws_access_key_id=sys.argv[2], aws_secret_access_key=sys.argv[3],
).create_bucket(Bucket=sys.argv[4])
"""


class S3fs(Foreground):
    name = "s3fs"
    needs = (S3FS, WEED)

    def __init__(self, base: Path, shape: Shape | None = None) -> None:
        super().__init__(base, shape)
        self._url = ""

    @property
    def version(self) -> str:
        said = run([S3FS.path(), "--version"], self._env, START_SECONDS).split("\n")[0]
        return f"{said.partition('V')[2].split()[0]} (SeaweedFS {seaweed.version()})"

    def start(self) -> None:
        ports = seaweed.Ports([self._port() for _ in range(seaweed.Ports.COUNT)])
        command = seaweed.command(self.base / "objects", ports)
        self._server = self._spawn(command, self._env, self.base / "server.log")
        poll(lambda: self.network.listens(ports.s3), "SeaweedFS", timeout=START_SECONDS)
        (reached,) = self._reached(Route(ports.s3, http=True))
        self._url = f"http://{HOST}:{reached}"
        keys = self.base / "keys"
        keys.touch(0o600)
        keys.write_text(f"{seaweed.KEY}:{seaweed.SECRET}\n")
        make = [sys.executable, "-c", _MAKE, self._url, seaweed.KEY, seaweed.SECRET, BUCKET]
        run(self.network.inside(make), self._env, START_SECONDS)
        self._mount()

    def flush(self) -> None:
        return

    def _mount_command(self) -> list[str]:
        options = f"url={self._url},use_path_request_style,passwd_file={self.base / 'keys'}"
        options += f",use_cache={self.base / 'cache'}"
        return [S3FS.path(), BUCKET, str(self.mountpoint), "-f", "-o", options]
