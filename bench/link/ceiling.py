"""`python -m bench.link.ceiling`: what bare TCP brings through the line on this machine.

The line is a process that shares the processors with both ends. What nobody can do, sockets and
nothing else, cannot be asked of a peer: shares of the line are to be read beside this.

Knows: sockets, the line. Must not know: HTTP, peers. Blocking, a thread for each connection.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

from bench.data import MIB
from bench.link.line import Line
from bench.link.proxy import HOST, Route
from bench.link.schedule import symmetric

_DOWN, _UP = b"d", b"u"


def serve(told: Connection, size: int) -> None:
    """Until it is ended: a connection that says `d` is sent `size` bytes, one that says `u` sends
    as many, and is answered with a byte."""
    with socket.create_server((HOST, 0)) as listener:
        told.send(listener.getsockname()[1])
        while True:
            threading.Thread(target=_answer, args=(listener.accept()[0], size), daemon=True).start()


def _answer(sock: socket.socket, size: int) -> None:
    with sock:
        while way := sock.recv(1):
            if way == _DOWN:
                _send(sock, size)
            else:
                _receive(sock, size)
                sock.sendall(b".")


def _send(sock: socket.socket, size: int) -> None:
    piece = memoryview(bytearray(MIB))
    while size:
        size -= sock.send(piece[: min(size, MIB)])


def _receive(sock: socket.socket, size: int) -> None:
    piece = memoryview(bytearray(MIB))
    while size:
        got = sock.recv_into(piece[: min(size, MIB)])
        if not got:
            raise ConnectionError("it ended early")
        size -= got


def _carry(sock: socket.socket, way: bytes, size: int) -> None:
    sock.sendall(way)
    if way == _DOWN:
        _receive(sock, size)
    else:
        _send(sock, size)
        if not sock.recv(1):
            raise ConnectionError("it ended early")


def measure(port: int, way: bytes, size: int, connections: int) -> float:
    """Seconds that `size` bytes take over so many connections, which have been used before."""
    socks = [socket.create_connection((HOST, port)) for _ in range(connections)]
    try:
        with ThreadPoolExecutor(connections) as threads:
            began = time.perf_counter()
            list(threads.map(lambda sock: _carry(sock, way, size), socks))
            return time.perf_counter() - began
    finally:
        for sock in socks:
            sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.link.ceiling")
    parser.add_argument("--delay", type=float, default=40.0, help="a round trip, milliseconds")
    parser.add_argument("--rate", type=float, default=1000.0, help="Mbit/s each way; 0: no limit")
    parser.add_argument("--size", type=int, default=300, help="MiB in all")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 8])
    arguments = parser.parse_args()
    shape = symmetric(arguments.delay / 1000, arguments.rate * 1e6 / 8 if arguments.rate else None)
    for connections in arguments.connections:
        size = arguments.size * MIB // connections
        ours, theirs = Pipe()
        server = Process(target=serve, args=(theirs, size), daemon=True)
        server.start()
        line = Line(None, shape, [Route(ours.recv())])
        try:
            for name, way in (("down", _DOWN), ("up", _UP)):
                seconds = measure(line.ports[0], way, size, connections)
                rate = size * connections / seconds
                share = f", {100 * rate / shape.down_rate:.1f} %" if shape.down_rate else ""
                print(
                    f"{name}, {connections} connections: {rate / 1e6:.1f} MB/s{share}", flush=True
                )
            print(f"    late by {line.counts().late * 1000:.2f} ms on the average")
        finally:
            line.close()
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
