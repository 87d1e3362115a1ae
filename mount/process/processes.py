"""Small truths about processes: living only as long as a parent, telling systemd, ending one.

Knows: prctl(2), sd_notify(3), signals. Must not know: what the processes do.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys

# linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to send this process SIGTERM when `parent` ends (Linux; elsewhere nothing).

    `parent` is told by the parent itself: if it ended before this call, we end now."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise SystemExit(0)


def sd_notify(message: str) -> None:
    """Tell systemd, if it started us, for example `READY=1` (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(message.encode())


def wait_gone(pid: int, timeout: float) -> bool:
    """True if process `pid`, not necessarily a child, ends within `timeout` seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(descriptor)
