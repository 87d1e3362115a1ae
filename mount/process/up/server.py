"""The embedded server as a child process of `nearline up`.

Knows: how the process is started, how it says that it serves, where its last words are. Must not
know: when it is to be started again (`supervisor`), what it serves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cache.metadata.durable import make_private
from mount.failures import Failure
from mount.process.embedded import PARENT, READY_FD

STOPPING_SECONDS = 10.0


class Server:
    """The embedded server as a child process. Leaving the context ends it."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self._data_dir, self._port = data_dir, port
        self._answer = -1
        self._log_start = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self._data_dir / "server.log"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; it says on a pipe when it serves."""
        make_private(self._data_dir)
        self._answer, write_end = os.pipe()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(self.log, flags, 0o600)
        self._log_start = os.fstat(log).st_size
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mount.cli", "serve"]
                + ["--data", str(self._data_dir), "--listen", f"127.0.0.1:{self._port}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, READY_FD: str(write_end), PARENT: str(os.getpid())},
                start_new_session=True,
                pass_fds=[write_end],
            )
        finally:
            os.close(write_end)
            os.close(log)

    def wait_ready(self) -> None:
        """Return when it serves; raise the `Failure` that it died of."""
        assert self.process is not None
        with open(self._answer, "rb") as answer:
            if answer.readline():
                return
        self.process.wait()
        raise Failure(f"the server did not start: {self._last_words()}")

    def _last_words(self) -> str:
        """The last line that it logged in this run: its own one-line failure, if it had one."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line]
        last = lines[-1].removeprefix("nearline: ") if lines else "it said nothing"
        return last if lines and lines[-1].startswith("nearline: ") else f"{last}; see {self.log}"

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
