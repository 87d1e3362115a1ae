"""FUSE_INIT: what the kernel and libfuse agree on, less what would lose bytes, and with what makes
small writes cheap.

Knows: the messages of FUSE_INIT (linux/fuse.h), pyfuse3's descriptor of the device. Must not know:
what is mounted.

ASYNC_DIO. Writes by libaio or io_uring through O_DIRECT go past the page cache. Linux forgets the
pages of such a range before the write and again after it, but after it only where the write was a
synchronous one: whatever another program has read meanwhile stays as it was, for ever, and one byte
written into such a page writes all of it back over what was acknowledged. libfuse asks for
asynchronous ones wherever the kernel has them, and pyfuse3 has no way to say no. Without, the
kernel sends each when its caller asks for it, waits, and forgets the pages: io_submit(2) returns
when the write is done, as on many file systems, and io_uring waits on a thread of its own. Nothing
that is not O_DIRECT changes.

HANDLE_KILLPRIV_V2. With the write-back cache, Linux asks before every write(2) whether the file has
`security.capability`, and remembers no answer, unless the file system has said that it takes
setuid, setgid and capabilities away itself, as `operations` does. libfuse before 3.17 does not know
that word and pyfuse3 does not say it.

So libfuse talks to us for that one message: its descriptor is a socket of ours until the kernel has
been given the amended answer, and then the device again. From then on nothing of this is left. An
answer that we do not understand is passed on as it is.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pyfuse3
import structlog
import trio

log = structlog.get_logger(__name__)

ASYNC_DIO = 1 << 15
HANDLE_KILLPRIV_V2 = 1 << 28
# The operation.
INIT = 26
# Bytes; the kernel wants room for 8 KiB at least, an INIT has about 100.
LARGEST = 1 << 16
# Length, operation, number.
_REQUEST = struct.Struct("=IIQ")
# After the head: major, minor, max_readahead, flags.
_ASKED = struct.Struct("=40xIIII")
# Length, error, number, major, minor, max_readahead, flags.
_REPLY = struct.Struct("=IiQIIII")
_FLAGS_AT = _REPLY.size - 4


def offered(request: bytes) -> int:
    """The flags that the kernel's INIT has; 0 for anything else."""
    if len(request) < _ASKED.size or _REQUEST.unpack_from(request)[1] != INIT:
        return 0
    flags: int = _ASKED.unpack_from(request)[3]
    return flags


def amended(request: bytes, reply: bytes) -> bytes | None:
    """libfuse's answer to the kernel's INIT, as it is to be; None for anything else."""
    if len(request) < _REQUEST.size or len(reply) < _REPLY.size:
        return None
    _, operation, number = _REQUEST.unpack_from(request)
    _, error, answered, _, _, _, agreed = _REPLY.unpack_from(reply)
    if operation != INIT or error or answered != number:
        return None
    flags = agreed & ~ASYNC_DIO | offered(request) & HANDLE_KILLPRIV_V2
    return reply[:_FLAGS_AT] + struct.pack("=I", flags) + reply[_REPLY.size :]


async def agree() -> bool:
    """Have libfuse and the kernel agree as the header says. To be called between `pyfuse3.init` and
    `pyfuse3.main`.

    False when it could not be done: they agree in `main`, on all that both know. The mount is
    slower then, O_DIRECT is not for writing, and everything else is right."""
    device = find_device()
    if device is None:
        log.warning("small_writes_are_slower", why="the device was not found", direct_writes=False)
        return False
    kernel = os.dup(device)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with trio.socket.from_stdlib_socket(ours) as libfuse, theirs:
        os.dup2(theirs.fileno(), device, inheritable=False)
        try:
            return await _relay(kernel, libfuse)
        finally:
            os.dup2(kernel, device, inheritable=False)
            os.close(kernel)


def find_device() -> int | None:
    """The descriptor that libfuse reads requests from; None when it is not to be told."""
    found = []
    for entry in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []:
        try:
            if os.readlink(f"/proc/self/fd/{entry}") == "/dev/fuse":
                found.append(int(entry))
        except FileNotFoundError:
            continue  # the listing's own
    return found[0] if len(found) == 1 else None


async def _relay(kernel: int, libfuse: trio.socket.SocketType) -> bool:
    """One request to libfuse, and the answer back. mount(2) has left an INIT there; whatever else
    there could be is handed on as it is."""
    await trio.lowlevel.wait_readable(kernel)
    request = os.read(kernel, LARGEST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await libfuse.send(request)
        reply = await libfuse.recv(LARGEST)
        nursery.cancel_scope.cancel()
    changed = amended(request, reply)
    os.write(kernel, reply if changed is None else changed)
    if changed is None:
        log.warning("small_writes_are_slower", why="it was no FUSE_INIT", direct_writes=False)
    else:
        quick = bool(offered(request) & HANDLE_KILLPRIV_V2)
        log.info("agreed_with_the_kernel", small_writes="fast" if quick else "slower")
    return changed is not None
