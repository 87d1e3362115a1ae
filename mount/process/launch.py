"""Starting a mount: in this process, or in one of its own that outlives the command.

Knows: how orders reach the mount's process and how it says that it is usable, or why not. Must not
know: what a mount does (`daemon`), what the command prints.

The process is a new program (`python -m mount.process.daemon_main`), not a fork: threads, event
loops and open files of the command do not leak into it, and it loads its modules while the command
is still checking. It reads `Orders` from standard input, so that the token is neither in its
arguments nor its environment, and answers with one `Outcome` on a pipe: usable, or the one line
that says why not. When that pipe closes without an answer, the process died.

Until it is usable it stays in the process group of the command: an automounter that has mount(8)
mount lets only its own process group see the mountpoint; all others wait for the mount. Then it
takes a session of its own (`leave_group`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import DecodeError, Struct, json

from mount import credentials
from mount.config import MountConfig
from mount.failures import Failure, UsageFailure

# In the state directory.
LOG_NAME = "mount.log"
# -P: what lies in the directory that the command is run in must not be taken for our modules.
COMMAND = [sys.executable, "-P", "-m", "mount.process.daemon_main"]


class Orders(Struct, frozen=True):
    """The task of the mount's process. With `parent`, it ends when that process ends."""

    config: MountConfig
    token: str
    parent: int | None = None


class Outcome(Struct, frozen=True):
    """The result of the start. `error` is empty when the mount is usable."""

    error: str = ""
    exit_code: int = 0


def encode_orders(orders: Orders) -> bytes:
    return json.encode(orders, enc_hook=os.fspath)


def decode_orders(data: bytes) -> Orders:
    return json.decode(data, type=Orders, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    return Path(value) if issubclass(kind, Path) else value


@dataclass
class Launch:
    """A mount's process that has been started and waits for its orders."""

    process: subprocess.Popen[bytes]
    answer: int  # read end of the pipe on which the Outcome comes

    def order(self, orders: Orders) -> None:
        """Give the orders. A process that is gone already is found by `wait`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(encode_orders(orders))

    def wait(self, log: Path) -> None:
        """Return when the mount is usable; raise the `Failure` that says why it is not."""
        with open(self.answer, "rb", closefd=False) as stream:
            line = stream.readline()
        try:
            outcome = json.decode(line, type=Outcome)
        except DecodeError as error:
            self.process.wait()
            raise Failure(
                f"the mount's process ended ({self._ending()}) before it was usable; see {log}"
            ) from error
        if outcome.error:
            self.process.wait()
            raise (UsageFailure if outcome.exit_code == 2 else Failure)(outcome.error)

    def _ending(self) -> str:
        code = self.process.returncode
        return f"signal {-code}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def launched() -> Iterator[Launch]:
    """A mount's process, loading its modules; it is ended again if the block raises."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [*COMMAND, str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            pass_fds=[write_end],
        )
    finally:
        os.close(write_end)
    try:
        yield Launch(process, read_end)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(read_end)


def leave_group() -> None:
    """Be out of reach of the signals that a terminal sends to the command's process group."""
    os.setsid()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != credentials.ENVIRONMENT}
