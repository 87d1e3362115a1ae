"""The command's side of the control socket: one blocking question, its progress, its answer.

Knows: how to ask and how an answer can fail to come. Must not know: trio (a command that only asks
must start at once), what the answer means, or anything of the mount's directory tree: a mount whose
process is dead or wedged must never hang the one who asks about it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import DecodeError

from mount.control import messages
from mount.failures import Failure

# How long a question that needs no waiting may take: a loaded machine, not a wedged mount.
PROMPT_SECONDS = 10.0
# One for which the mount asks the server a few things first.
SERVER_SECONDS = 90.0


class NotAnswering(Failure):
    """Nobody answers on the control socket: the mount's process is gone, or not there yet."""


class MountRefused(Failure):
    """The mount answered that it could not. `timed_out`: not within the time that was given."""

    def __init__(self, failed: messages.Failed) -> None:
        super().__init__(failed.message)
        self.timed_out = failed.kind == "timeout"


def ask(
    path: Path,
    request: messages.Request,
    *,
    on_progress: Callable[[messages.Progress], None] | None = None,
    line_timeout: float | None = PROMPT_SECONDS,
) -> messages.Reply:
    """Send `request` to the mount listening on `path` and return its last answer.

    `line_timeout` is the longest wait for the next line in seconds; None waits for ever. Raises
    `NotAnswering` and `MountRefused`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(line_timeout)
            _connect(sock, path)
            sock.sendall(messages.encode(request))
            for line in _lines(sock):
                answer = messages.decode_answer(line)
                if isinstance(answer, messages.Failed):
                    raise MountRefused(answer)
                if not isinstance(answer, messages.Progress):
                    return answer
                if on_progress is not None:
                    on_progress(answer)
    except (OSError, DecodeError) as error:
        raise NotAnswering(f"the mount does not answer on {path}: {error}") from error
    raise NotAnswering(f"the mount ended without answering on {path}")


def _connect(sock: socket.socket, path: Path) -> None:
    with messages.reachable(path) as name:
        sock.connect(name)


def _lines(sock: socket.socket) -> Iterator[bytes]:
    with sock.makefile("rb") as stream:
        yield from stream


def status(path: Path) -> messages.Status:
    """The mount's status; raises as `ask` does."""
    answer = ask(path, messages.StatusRequest())
    assert isinstance(answer, messages.Status)
    return answer


def check_token(path: Path) -> str:
    """Have the mount ask the server whether it accepts its token, and take the kept one if it does
    not. How it goes on, in words; raises as `ask` does."""
    from mount.control.account_messages import ReloadTokenRequest  # most commands do without

    done = ask(path, ReloadTokenRequest(), line_timeout=SERVER_SECONDS)
    assert isinstance(done, messages.Done)
    return done.message


def answers(path: Path) -> bool:
    """True if something accepts connections on `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PROMPT_SECONDS)
        try:
            _connect(sock, path)
        except OSError:
            return False
    return True
