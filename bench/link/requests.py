"""Counts the requests in what an HTTP/1.1 client sends. Pure; bodies are passed over, not kept.

Knows: heads, Content-Length, chunked bodies, Upgrade (RFC 9112). Must not know: what is asked.
What is no HTTP, or has been upgraded, counts nothing more: `Requests.lost` says so.
"""

from __future__ import annotations

import re

HEAD_LIMIT = 64 * 1024
_METHOD = re.compile(rb"[A-Z]{1,20} \S+ HTTP/1\.[01]\r\n")


class Requests:
    """`count` is the number of complete heads so far, `lost` that the rest cannot be followed."""

    def __init__(self) -> None:
        self.count = 0
        self.lost = False
        self._head = b""
        self._skip = 0  # bytes of a body that are still to come
        self._chunked = False

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.lost:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            elif self._chunked:
                at = self._chunk(data, at)
            else:
                at = self._more_head(data, at)

    def _more_head(self, data: bytes, at: int) -> int:
        """Take what of a head is in `data`; where what follows begins."""
        before = len(self._head)
        self._head += data[at : at + HEAD_LIMIT]
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0:
            self.lost = len(self._head) > HEAD_LIMIT
            return at + len(self._head) - before
        used = end + 4 - before
        head, self._head = self._head[: end + 2], b""
        self._begin(head)
        return at + used

    def _begin(self, head: bytes) -> None:
        if not _METHOD.match(head):
            self.lost = True
            return
        self.count += 1
        fields = {}
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        if b"upgrade" in fields.get(b"connection", b"").lower():
            self.lost = True
        elif b"chunked" in fields.get(b"transfer-encoding", b"").lower():
            self._chunked = True
        elif (length := fields.get(b"content-length", b"0")).isdigit():
            self._skip = int(length)
        else:
            self.lost = True

    def _chunk(self, data: bytes, at: int) -> int:
        """Take what of a chunk's first line is in `data`; where what follows begins."""
        end = data.find(b"\n", at)
        if end < 0:
            self._head += data[at:]
            self.lost = len(self._head) > HEAD_LIMIT
            return len(data)
        line, self._head = (self._head + data[at:end]).strip(), b""
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            self.lost = True
            return end + 1
        if size:
            self._skip = size + 2  # with its line end
        else:
            # Trailers are as good as never there; the empty line that ends the body is.
            self._chunked = False
            self._skip = 2
        return end + 1
