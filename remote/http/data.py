"""The data path: bytes to and from blob store and edge, by signed URLs.

Knows: PUT of a stored chunk, GET of a range straight into a buffer, what their answers mean. Must
not know: the API and its token (a signed URL is its own permission), what the bytes are.

A signed URL's query is a secret while it lives: it is in no error and in no log line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from remote.http.connectivity import origin_of
from remote.http.lazy_import import Late
from remote.http.pace import AT_ONCE, Pace
from remote.http.transport import (
    REQUEST_ID,
    Transport,
    check_url,
    is_later,
    new_request_id,
    retry_after,
    transport_errors,
)
from remote.protocol.errors import Busy, NearlineError, ProtocolError, Unreachable, UrlRefused
from remote.protocol.messages import PresignedPut

if TYPE_CHECKING:
    import httpx

    from remote.http.carriers import Answer
else:
    httpx = Late("httpx")

Buffer: TypeAlias = bytes | bytearray | memoryview

# A chunk is made so large that it takes seconds; longer than this is worth a line in the log.
SLOW_TRANSFER_SECONDS = 30.0

_SIGN_AGAIN = frozenset({401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)", re.ASCII)


class Truncated(Unreachable):
    """An object was not as long as it must be. Refetch; when it stays so, it is corrupt."""


class DataPath(Transport):
    """The part of `api.ApiClient` that moves bytes."""

    upload_pace: Pace = AT_ONCE
    _edge: str | None = None  # whence content was last read

    async def connect_ahead(self, connections: int) -> None:
        """Have so many connections to the edge that are not in use, if it can be reached: what is
        read next then waits for none. As long as nothing was read the edge is taken to be where the
        API is."""
        url = httpx.URL(self._edge or self.base_url)
        carrier = await self._pools.carrier(url)
        await carrier.connect_ahead(url, connections)

    async def put_chunk(self, put: PresignedPut, body: Buffer) -> None:
        """Store `body` where `put` says. That it is there already is success."""
        check_url(put.url, insecure=self._insecure, pinned=self._is_pinned)
        view = memoryview(body).cast("B")
        length = {"Content-Length": str(len(view)), REQUEST_ID: new_request_id()}
        headers = {**put.headers, **length}
        url = httpx.URL(put.url)
        where = f"upload to {url.host}"
        noted = self._noted("PUT", url.path, length[REQUEST_ID], SLOW_TRANSFER_SECONDS)
        origin = origin_of(put.url)
        with self.connectivity.asking(origin), noted, transport_errors(where):
            carrier = await self._pools.carrier(url)
            async with carrier.exchange(
                "PUT", url, headers, view, self._sent, self.upload_pace
            ) as answer:
                self.connectivity.heard(origin)
                self.transferred.requests += 1
                status, said = answer.status, answer.headers
            if not (200 <= status < 300 or status == 412):
                raise _data_refusal(status, said, where)

    def _sent(self, size: int) -> None:
        self.transferred.uploaded_bytes += size

    async def get_range(
        self, url: str, start: int, end_exclusive: int, into: bytearray | memoryview
    ) -> int:
        """Read bytes [start, end_exclusive) of the object at `url` to the start of `into`, as they
        come, without another copy; give their number, which is always all of them. On an error
        `into` holds rubbish. Nothing is verified here (`codec.decode_block`)."""
        check_url(url, insecure=self._insecure, pinned=self._is_pinned)
        target = memoryview(into).cast("B")[: end_exclusive - start]
        if not 0 <= start < end_exclusive or len(target) != end_exclusive - start:
            raise ValueError(f"[{start}, {end_exclusive}) does not fit {len(into)} bytes")
        signed = httpx.URL(url)
        where = f"download from {signed.host}"
        headers = {
            "Range": f"bytes={start}-{end_exclusive - 1}",
            "Accept-Encoding": "identity",
            REQUEST_ID: new_request_id(),
        }
        origin = self._edge = origin_of(url)
        noted = self._noted("GET", signed.path, headers[REQUEST_ID], SLOW_TRANSFER_SECONDS)
        with self.connectivity.asking(origin), noted, transport_errors(where):
            carrier = await self._pools.carrier(signed)
            async with carrier.exchange("GET", signed, headers) as answer:
                self.connectivity.heard(origin)
                self.transferred.requests += 1
                _check_range(answer, start, end_exclusive, where)
                came = await answer.read_into(target, lambda size: self._received(size, origin))
                if came > len(target):
                    raise Truncated(f"{where}: more came than the {len(target)} bytes asked for")
            if came != len(target):
                raise Truncated(f"{where}: truncated, {came} of {len(target)} bytes came")
        return came

    def _received(self, size: int, origin: str) -> None:
        self.connectivity.heard(origin)
        self.transferred.downloaded_bytes += size


def _check_range(answer: Answer, start: int, end: int, where: str) -> None:
    """Raise unless the answer's body is bytes [start, end), as they are stored."""
    status = answer.status
    if status == 416:
        raise Truncated(f"{where}: truncated, the object ends before {end}")
    if status not in (200, 206):
        raise _data_refusal(status, answer.headers, where)
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ProtocolError(f"{where}: somebody on the way applied {encoding}")
    if status == 200 and start != 0:
        raise ProtocolError(f"{where}: a range was asked for, the whole was answered")
    if status == 206:
        _check_content_range(answer.headers.get("Content-Range", ""), start, end, where)


def _check_content_range(text: str, start: int, end: int, where: str) -> None:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[1]) != start:
        raise ProtocolError(f"{where}: [{start}, {end}) was asked for, {text!r} was answered")
    if int(match[2]) != end - 1:
        raise Truncated(f"{where}: truncated, [{start}, {end}) was asked for, {text} came")


def _data_refusal(status: int, headers: Mapping[str, str], where: str) -> NearlineError:
    if status in _SIGN_AGAIN:
        return UrlRefused(f"{where}: the signed URL was refused ({status})")
    if is_later(status):
        return Busy(f"{where}: answered {status}", status, retry_after(headers))
    return ProtocolError(f"{where}: answered {status}")
