"""The first words with the kernel (FUSE INIT), in which ours ask for more than pyfuse3 does.

Knows: the INIT exchange (linux/fuse.h), how libfuse takes a descriptor for a mountpoint. Must not
know: how that descriptor came to be (`attach`), what the file system answers.

WHY. With the write-back cache, Linux asks before every write(2) whether the file has
`security.capability`, and remembers no answer, unless the file system has said that it takes
setuid, setgid and capabilities away itself (FUSE_HANDLE_KILLPRIV_V2). libfuse before 3.17 does not
know that word and pyfuse3 does not say it.

HOW. We mount, and read the kernel's INIT. libfuse, told to use one end of a socket pair as its
device, is given it and answers there; we add the word, write the answer to the device, and put the
device in the place of the socket: the descriptor's number stays, so that libfuse and pyfuse3 go on
with it. From then on nothing of this is left.

Invariants: when anything is not as described, nothing is mounted by us and libfuse does it all, as
it would have; the mount is then slower, and right. An answer that we do not understand is passed on
as it is. What was told is written before the next request can be answered.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import structlog
import trio

from mount import attach

log = structlog.get_logger(__name__)

KIND = "nearline"
PATIENCE_SECONDS = 10.0  # the kernel asks at once, and libfuse answers at once

_INIT = 26  # the opcode
HANDLE_KILLPRIV_V2 = 1 << 28
_REQUEST = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_ASKED = struct.Struct("=IIII")  # major, minor, max_readahead, flags; more follows
_HEAD = struct.Struct("=IiQ")  # length, error, unique
_FLAGS = struct.Struct("=I")
_FLAGS_AT = _HEAD.size + 12  # after major, minor, max_readahead
_ANSWER_BYTES = _HEAD.size + 64  # since 7.23; the older, shorter ones are left alone
_MOST = 1 << 16


@dataclass(frozen=True)
class Connection:
    """pyfuse3's session, and whose the mount is."""

    mountpoint: Path
    attached: bool  # by us, so that libfuse does not know of the mount

    def close(self, *, unmount: bool) -> None:
        pyfuse3.close(unmount=unmount)
        if unmount and self.attached:
            attach.detach(self.mountpoint)


async def connect(
    operations: pyfuse3.Operations, mountpoint: Path, options: Set[str], source: str
) -> Connection:
    """Mount, in the place of `pyfuse3.init`. Raises what that raises."""
    try:
        device = attach.attach(mountpoint, options, source, KIND)
    except OSError as problem:
        return _by_libfuse(operations, mountpoint, options, source, problem)
    try:
        await _greet(operations, device, options)
    except (OSError, RuntimeError, trio.TooSlowError) as problem:
        attach.detach(mountpoint)
        return _by_libfuse(operations, mountpoint, options, source, problem)
    finally:
        os.close(device)
    return Connection(mountpoint, attached=True)


def _by_libfuse(
    operations: pyfuse3.Operations,
    mountpoint: Path,
    options: Set[str],
    source: str,
    problem: Exception,
) -> Connection:
    log.info("small writes are slower: libfuse has mounted", why=str(problem) or repr(problem))
    escaped = source.replace(",", "\\,")
    words = {*options, f"fsname={escaped}", f"subtype={KIND}"}
    pyfuse3.init(operations, str(mountpoint), words)
    return Connection(mountpoint, attached=False)


async def _greet(operations: pyfuse3.Operations, device: int, options: Set[str]) -> None:
    asked = _read(device)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.detach()  # libfuse's from here on
    with ours:
        try:
            pyfuse3.init(operations, f"/dev/fd/{number}", set(options))
        except BaseException:
            os.close(number)
            raise
        try:
            ours.send(asked)
            answer = await _answer(ours)
            os.write(device, amended(asked, answer))
            os.dup2(device, number, inheritable=False)
        except BaseException:
            pyfuse3.close(unmount=False)
            raise
    log.info("greeted the kernel", small_writes="fast" if offered(asked) else "slower")


def _read(device: int) -> bytes:
    poll = select.poll()
    poll.register(device, select.POLLIN)
    if not poll.poll(PATIENCE_SECONDS * 1000):
        raise TimeoutError("the kernel asks nothing")
    return os.read(device, _MOST)


async def _answer(ours: socket.socket) -> bytes:
    """libfuse's. Its loop is ended then, as it waits for the next request: that is not for the
    socket any more."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, 1)
            await trio.lowlevel.wait_readable(ours)
            answer = ours.recv(_MOST)
            nursery.cancel_scope.cancel()
    return answer


def offered(asked: bytes) -> bool:
    """Does the kernel's INIT say that it knows FUSE_HANDLE_KILLPRIV_V2?"""
    if len(asked) < _REQUEST.size + _ASKED.size or _REQUEST.unpack_from(asked)[1] != _INIT:
        return False
    flags: int = _ASKED.unpack_from(asked, _REQUEST.size)[3]
    return bool(flags & HANDLE_KILLPRIV_V2)


def amended(asked: bytes, answer: bytes) -> bytes:
    """The answer to the INIT `asked`, with the flag if it can have it."""
    if not offered(asked) or len(answer) != _ANSWER_BYTES:
        return answer
    length, error, _unique = _HEAD.unpack_from(answer)
    if error or length != _ANSWER_BYTES:
        return answer
    result = bytearray(answer)
    (flags,) = _FLAGS.unpack_from(result, _FLAGS_AT)
    _FLAGS.pack_into(result, _FLAGS_AT, flags | HANDLE_KILLPRIV_V2)
    return bytes(result)
