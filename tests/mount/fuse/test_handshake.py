"""The agreement of kernel and libfuse at FUSE_INIT, without either of them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import SimpleNamespace
from unittest import mock

import pyfuse3
import pytest
import trio

from mount.fuse import handshake
from mount.fuse.attributes import Ownership
from mount.fuse.handshake import ASYNC_DIO, HANDLE_KILLPRIV_V2, INIT, amended, offered
from mount.fuse.invalidator import LookupCounts
from mount.fuse.operations import FileSystem

OTHERS = 1 << 16 | 1 << 0 | 1 << 3  # write-back cache, asynchronous reads, atomic O_TRUNC
LOOKUP = 1


def request(operation: int = INIT, number: int = 7, flags: int = OTHERS) -> bytes:
    head = struct.pack("=IIQ", 104, operation, number) + bytes(24)
    return head + struct.pack("=IIII", 7, 45, 1 << 17, flags).ljust(64, b"\0")


def reply(flags: int, number: int = 7, error: int = 0) -> bytes:
    head = struct.pack("=IiQIIII", 80, error, number, 7, 31, 1 << 17, flags)
    return head + bytes(range(80 - len(head)))


def test_one_flag_is_taken_away_and_nothing_else() -> None:
    agreed = reply(OTHERS | ASYNC_DIO)
    assert amended(request(), agreed) == reply(OTHERS)
    assert amended(request(), reply(OTHERS)) == reply(OTHERS)


def test_one_is_added_where_the_kernel_knows_it() -> None:
    knows = request(flags=OTHERS | HANDLE_KILLPRIV_V2)
    assert amended(knows, reply(OTHERS)) == reply(OTHERS | HANDLE_KILLPRIV_V2)
    assert amended(knows, reply(ASYNC_DIO)) == reply(HANDLE_KILLPRIV_V2)
    said_already = reply(OTHERS | HANDLE_KILLPRIV_V2)
    assert amended(knows, said_already) == said_already


def test_the_kernel_says_what_it_knows() -> None:
    assert offered(request()) == OTHERS
    assert offered(request(LOOKUP)) == 0
    assert offered(request()[:50]) == 0


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(LOOKUP), reply(ASYNC_DIO)),
        (request(number=8), reply(ASYNC_DIO)),
        (request(), reply(ASYNC_DIO, error=-errno.EPROTO)),
        (request(), reply(ASYNC_DIO)[:16]),
        (b"", reply(ASYNC_DIO)),
    ],
)
def test_what_is_no_answer_to_an_init_is_left_alone(asked: bytes, answered: bytes) -> None:
    assert amended(asked, answered) is None


@pytest.mark.parametrize(("operation", "done"), [(INIT, True), (LOOKUP, False)])
async def test_libfuse_talks_to_us_for_one_message_and_then_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, operation: int, done: bool
) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def libfuse() -> None:
        """`pyfuse3.main`: answers what it reads, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(device.fileno())
            assert os.read(device.fileno(), 1 << 16) == request(operation)
            os.write(device.fileno(), reply(OTHERS | ASYNC_DIO))

    monkeypatch.setattr(pyfuse3, "main", libfuse)
    with kernel, device, mock.patch.object(handshake, "find_device", device.fileno):
        kernel.send(request(operation))
        with trio.fail_after(60):
            assert await handshake.agree() is done
        assert kernel.recv(1 << 16) == reply(OTHERS if done else OTHERS | ASYNC_DIO)
        kernel.send(b"next")
        assert os.read(device.fileno(), 100) == b"next"
        os.write(device.fileno(), b"answer")
        assert kernel.recv(100) == b"answer"


async def test_without_the_device_nothing_is_done() -> None:
    with mock.patch.object(handshake, "find_device", return_value=None):
        assert not await handshake.agree()


async def test_direct_writing_is_refused_where_bytes_could_be_lost_by_it() -> None:
    session = SimpleNamespace(
        replayer=SimpleNamespace(asked=lambda: None),
        subscriber=SimpleNamespace(active=lambda: None),
        tree=SimpleNamespace(node=lambda ino: None),
        edits=None,
        shares=SimpleNamespace(check_writable=lambda node: None),
    )
    system = FileSystem(session, LookupCounts(), Ownership(None, None, 0))  # type: ignore[arg-type]  # the part of it that is used
    context = pyfuse3.RequestContext()
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await system.open(7, os.O_RDWR | os.O_DIRECT, context)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await system.create(1, b"a", 0o644, os.O_WRONLY | os.O_DIRECT, context)
    assert refused.value.errno == errno.EINVAL
