"""Connections whose bytes are received straight into memory that is there already.

Knows: trio's sockets, TLS as the `ssl` module does it in memory. Must not know: HTTP, which
certificate is good (the context says), who waits for how long.

TLS is our own because trio's stream gives one record (16 KiB) at a time, and everything above is
asked for each. Here as much is decrypted before anybody is asked as was wanted.

Raised on the way: OSError (with ssl.SSLError), and trio's ClosedResourceError and
BrokenResourceError. The end of a stream is none of HTTP's unless HTTP says so: a peer that goes
away without a word is noticed by the length.

Concurrency: one task may receive while others send; whoever closes ends both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from typing import Protocol

import trio

# What TLS takes from the socket, or gives to it, at a time.
_PIECE = 256 * 1024

# How much the kernel holds that was not sent before it asks for more. trio's 16 KiB are for who
# wants to change his mind; a body is sent whole, and is asked for it that much more rarely.
_UNSENT = 512 * 1024


class Stream(Protocol):
    """One connection."""

    async def receive_into(self, into: memoryview) -> int:
        """Fill the beginning of `into` with what is there, at least a byte; 0 at the end."""

    async def send(self, view: memoryview) -> int:
        """Send the beginning of `view`; how much of it, at least a byte."""

    def is_readable(self) -> bool:
        """True if there is something to receive, be it the end."""

    def close(self) -> None: ...


class Tcp:
    """A stream without TLS: the bytes on the wire are the caller's."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        with contextlib.suppress(OSError, AttributeError):  # not every system has it
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    async def receive_into(self, into: memoryview) -> int:
        return await self._socket.recv_into(into)

    async def send(self, view: memoryview) -> int:
        return await self._socket.send(view)

    def is_readable(self) -> bool:
        return self._socket.is_readable()

    def close(self) -> None:
        self._socket.close()


class Tls:
    """TLS over one connection; first of all `shake_hands`."""

    def __init__(self, wire: Tcp, context: ssl.SSLContext, host: str | None) -> None:
        self._wire = wire
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._received = memoryview(bytearray(_PIECE))
        self._sending = trio.Lock()  # what is encrypted first is sent first
        self._is_over = False  # the peer has said that it sends no more

    async def shake_hands(self) -> None:
        """Raises ssl.SSLError for who is not the one, and OSError for who goes away."""
        while not self._is_done():
            await self._flush()
            await self._receive()
            if self._in.eof:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        await self._flush()

    def _is_done(self) -> bool:
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def receive_into(self, into: memoryview) -> int:
        """0 at the end, also where the peer says so in TLS and keeps its socket open until it hears
        the same of us."""
        while not (size := self._decrypt(into)) and not (self._is_over or self._in.eof):
            await self._receive()
        if self._out.pending:  # the peer asked for new keys
            await self._flush()
        return size

    def _decrypt(self, into: memoryview) -> int:
        """As much as there is; how many bytes that was."""
        size, wanted, read = 0, len(into), self.object.read
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            while size < wanted:
                got: int = read(wanted - size, into[size:])  # type: ignore[assignment]  # how many
                if not got:
                    self._is_over = True
                    break
                size += got
        return size

    async def send(self, view: memoryview) -> int:
        async with self._sending:
            size = self.object.write(view[:_PIECE])
            await self._send_encrypted()
        return size

    async def _flush(self) -> None:
        async with self._sending:
            if self._out.pending:
                await self._send_encrypted()

    async def _send_encrypted(self) -> None:
        rest = memoryview(self._out.read())
        while rest:
            rest = rest[await self._wire.send(rest) :]

    async def _receive(self) -> None:
        size = await self._wire.receive_into(self._received)
        if size:
            self._in.write(self._received[:size])
        else:
            self._in.write_eof()

    def is_readable(self) -> bool:
        here = self.object.pending() or self._in.pending  # decrypted, or to be
        return self._is_over or bool(here) or self._wire.is_readable()

    def close(self) -> None:
        self._wire.close()
