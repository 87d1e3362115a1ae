"""HTTP as an attacker speaks it: bytes on a socket, as many as go.

Knows: just enough of HTTP/1.1 to send a request made elsewhere and to read past its answer. Must
not know: what is asked. A library would be slower than the server that it is to attack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import trio

# The next request, head and body.
Make = Callable[[], bytes]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READ = 256 * 1024


def request(method: str, target: str, token: str | None = None, body: bytes | None = None) -> bytes:
    """One request; a `body` is MessagePack."""
    lines = [f"{method} {target} HTTP/1.1", "Host: nearline", "Accept: application/msgpack"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/msgpack", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Target:
    """Where the server listens, and from which address of this machine it is attacked."""

    def __init__(self, host: str, port: int, source: str) -> None:
        self.host, self.port, self.source = host, port, source
        self.answers: Counter[str] = Counter()

    async def connect(self, source: str | None = None) -> trio.SocketStream:
        here = source or self.source
        return await trio.open_tcp_stream(self.host, self.port, local_address=here)

    async def hammer(self, make: Make, source: str | None = None) -> None:
        """Send one request after the other, for ever; on a new connection whenever one ends."""
        while True:
            try:
                stream = await self.connect(source)
                async with stream:
                    while True:
                        await stream.send_all(make())
                        self.answers[await read_answer(stream)] += 1
            except (OSError, trio.BrokenResourceError, EOFError):
                self.answers["cut"] += 1
                await trio.sleep(0.01)  # as fast as it goes would only keep this process busy


async def read_answer(stream: trio.SocketStream) -> str:
    """Read one answer to its end; its status. Raises EOFError when the connection ends first."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await _some(stream)
    head, _, body = head.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0:
        left -= len(await _some(stream))
    return head.split(b" ", 2)[1].decode()


async def _some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(_READ)
    if not data:
        raise EOFError
    return bytes(data)
