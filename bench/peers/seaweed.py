"""SeaweedFS with its S3 gateway: the object store of peers that bring none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bench.peers.installing import WEED

KEY, SECRET = "bench", "benchmark-secret"
ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]


class Ports:
    """Where its parts listen; it wants to know all of them."""

    def __init__(self, ports: list[int]) -> None:
        self.s3, self.master, self.volume, self.filer, *self.grpc = ports

    COUNT = 7


def command(base: Path, ports: Ports) -> list[str]:
    """The command that starts the server, with everything it keeps in `base`."""
    base.mkdir()
    identity = {"name": "bench", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    config = base / "s3.json"
    config.write_text(json.dumps({"identities": [{**identity, "actions": ACTIONS}]}))
    master, volume, filer = ports.grpc
    return [
        WEED.path(), "server", f"-dir={base}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={ports.master}", f"-master.port.grpc={master}",
        f"-volume.port={ports.volume}", f"-volume.port.grpc={volume}",
        f"-filer.port={ports.filer}", f"-filer.port.grpc={filer}",
        "-s3", f"-s3.port={ports.s3}", f"-s3.config={config}",
        "-master.telemetry=false", "-volume.max=100", "-master.volumeSizeLimitMB=1000",
    ]  # fmt: skip


def version() -> str:
    done = subprocess.run([WEED.path(), "version"], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[2:3])
