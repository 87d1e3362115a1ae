"""The proxy's process, as who measures sees it: started, asked, reshaped, ended.

Knows: how it is spoken to. Must not know: which peer is behind it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

import msgspec

from bench.link.proxy import Counts, Order, Ports, Route, Setup
from bench.link.schedule import Shape
from bench.processes import BenchFailure, Network

_SHORT = Shape()


class Line:
    """A line of `shape` in `network` (None: this process's own), with a port of its own before each
    of `routes`."""

    def __init__(self, network: Network | None, shape: Shape, routes: Sequence[Route]) -> None:
        self.shape = shape
        command = [sys.executable, "-P", "-m", "bench.link.proxy"]
        self._process = subprocess.Popen(
            command if network is None else network.inside(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for us; it ends with its standard input
        )
        answer = self._ask(Setup(shape, list(routes)))
        self.ports = msgspec.json.decode(answer, type=Ports).ports

    def counts(self) -> Counts:
        return msgspec.json.decode(self._ask(Order()), type=Counts)

    def reshape(self, shape: Shape) -> None:
        self.shape = shape
        self._ask(Order(shape))

    @contextlib.contextmanager
    def short(self) -> Iterator[None]:
        """While this is open, the line is as short as it can be: for preparing."""
        shape = self.shape
        self.reshape(_SHORT)
        try:
            yield
        finally:
            self.reshape(shape)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, what: Setup | Order) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(what) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise BenchFailure("the proxy is gone") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchFailure("the proxy ended")
        return answer
