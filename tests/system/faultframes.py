"""Faults of the frames of a WebSocket on their way from the server.

Knows: where a frame begins and ends (RFC 6455, 5.2). Must not know: sockets, what a frame says.
Pure.
"""

from __future__ import annotations

from typing import Literal

Mischief = Literal["duplicate", "reorder", "drop", "delay"]

CONTROL = 0x8  # opcodes from here on are pings, pongs and the end: they pass untouched


class Frames:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._bytes += data
        found = []
        while (size := self._size()) is not None and len(self._bytes) >= size:
            found.append(bytes(self._bytes[:size]))
            del self._bytes[:size]
        return found

    def _size(self) -> int | None:
        """Of the frame at the beginning; None: not enough of it is here. A server masks nothing."""
        if len(self._bytes) < 2:
            return None
        length = self._bytes[1] & 0x7F
        extra = {126: 2, 127: 8}.get(length, 0)
        if len(self._bytes) < 2 + extra:
            return None
        if extra:
            length = int.from_bytes(self._bytes[2 : 2 + extra], "big")
        return 2 + extra + length


class Distorter:
    """`distort(frame)` says which frames go on in its place."""

    def __init__(self, mischief: Mischief | None) -> None:
        self._mischief, self._held = mischief, list[bytes]()

    def distort(self, frame: bytes) -> list[bytes]:
        if self._mischief is None or frame[0] & 0x0F >= CONTROL:
            return [frame]
        if self._mischief == "duplicate":
            return [frame, frame]
        if self._mischief == "drop":
            return []
        self._held.append(frame)
        if self._mischief == "reorder" and len(self._held) >= 2:
            return [self._held.pop(), *self.late()]
        return []

    def late(self) -> list[bytes]:
        """Frames that were held back, now that the fault is over."""
        held, self._held = self._held, []
        return held
