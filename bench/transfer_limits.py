"""`python -m bench.transfer_limits`: how exactly limits are kept, over real sockets and 10 seconds.

Knows: the client's parts that move bytes, and an edge in a process of its own. Must not know: a
mount. Printed are bytes a second against the limit, once per direction and limit, the most that
moved within any one second, and how even the transfers were (the least against the most).
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection

import trio

from remote.http.api import ApiClient
from remote.protocol.messages import PresignedPut
from remote.protocol.sizes import parse_size, rate_text
from remote.transfer.throttle import (
    DOWNLOAD_PORTIONS_PER_SECOND,
    UPLOAD_PORTIONS_PER_SECOND,
    Throttle,
)

TRANSFERS = 8
BODY = 1 << 20
_PIECE = 256 * 1024


def main() -> None:
    """Measure each limit in both directions, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m bench.transfer_limits")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rates", nargs="*", default=["200K", "2M", "20M"])
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    edge = multiprocessing.Process(target=_edge, args=(theirs,))
    edge.start()
    try:
        port: int = ours.recv()
        print(f"{'':10} {'limit':>10} {'moved':>10} {'off by':>7} {'burst':>7} {'even':>5}")
        for rate in map(parse_size, given.rates):
            for name in ("up", "down"):
                trio.run(_measure, name, f"http://127.0.0.1:{port}", rate, given.seconds)
    finally:
        edge.terminate()
        edge.join()


# --- the edge -----------------------------------------------------------------------------------


def _edge(ready: Connection) -> None:
    trio.run(_listen, ready)


async def _listen(ready: Connection) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    ready.send(listener.socket.getsockname()[1])
    await trio.serve_listeners(_serve, [listener])


async def _serve(stream: trio.SocketStream) -> None:
    """Take every PUT and answer every GET of a range."""
    body, received = bytes(BODY), b""
    try:
        while True:
            while b"\r\n\r\n" not in received:
                more = await stream.receive_some(65536)
                if not more:
                    return
                received += more
            head, _, received = received.partition(b"\r\n\r\n")
            lines = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
            if head.startswith(b"PUT"):
                left = int(lines["content-length"]) - len(received)
                while left > 0:
                    left -= len(await stream.receive_some(_PIECE))
                received = b""
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                start, end = map(int, lines["range"].removeprefix("bytes=").split("-"))
                said = f"Content-Length: {end - start + 1}\r\nContent-Range: bytes {start}-{end}/*"
                answer = f"HTTP/1.1 206 Partial Content\r\n{said}\r\n\r\n"
                await stream.send_all(answer.encode() + body[: end - start + 1])
    except trio.BrokenResourceError:
        return


# --- the client ---------------------------------------------------------------------------------


class _Noting(Throttle):
    """Notes what it lets pass, and when."""

    passed: list[tuple[float, int]]

    async def take(self, most: int, *claim: object) -> int:
        portion = await super().take(most)
        self.passed.append((time.monotonic(), portion))
        return portion


async def _measure(name: str, url: str, rate: int, seconds: float) -> None:
    per_second = UPLOAD_PORTIONS_PER_SECOND if name == "up" else DOWNLOAD_PORTIONS_PER_SECOND
    throttle = _Noting(rate, portions_per_second=per_second)
    throttle.passed = []
    moved = [0] * TRANSFERS
    async with ApiClient(url, None, insecure=True) as client:
        client.upload_pace = throttle
        step = (
            partial(_put, client, url, min(BODY, rate // 16))
            if name == "up"
            else partial(_get, client, url, throttle)
        )
        await throttle.take(rate)  # part of what was saved up
        with trio.move_on_after(1 + seconds):
            async with trio.open_nursery() as nursery:
                for number in range(TRANSFERS):
                    nursery.start_soon(_go_on, step, moved, number)
    begin = throttle.passed[0][0] + 1  # what was saved up is gone by then
    passed = [(at, size) for at, size in throttle.passed if at >= begin]
    total = sum(size for _, size in passed)
    real = total / seconds
    burst = max(sum(size for at, size in passed if t <= at < t + 1) for t, _ in passed)
    print(
        f"{name:10} {rate_text(rate):>10} {rate_text(round(real)):>10} {real / rate - 1:7.1%}"
        f" {burst / rate:7.2f} {min(moved) / max(moved):5.2f}"
    )


async def _go_on(step: Callable[[], Awaitable[int]], moved: list[int], number: int) -> None:
    while True:
        moved[number] += await step()


async def _put(client: ApiClient, url: str, size: int) -> int:
    put = PresignedPut(url=f"{url}/chunk", headers={}, expires_ns=0)
    await client.put_chunk(put, bytes(size))
    return size


async def _get(client: ApiClient, url: str, throttle: Throttle) -> int:
    size = await throttle.take(BODY)
    await client.get_range(f"{url}/chunk", 0, size, bytearray(size))
    return size


if __name__ == "__main__":
    main()
