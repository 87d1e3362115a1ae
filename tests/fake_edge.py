"""A server and edge in memory for tests of the read path: implements
`remote.transfer.download.EdgeApi`.

Files are made from bytes with `add`; `faults` are taken one for each GET, in order, before an
undisturbed answer is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio
from blake3 import blake3

from remote.protocol.codec import encode_chunk
from remote.protocol.content import HOLE, Descriptor, Manifest, Piece
from remote.protocol.errors import Busy, NotFound, Refused, Unreachable, UrlRefused
from remote.protocol.messages import (
    Located,
    LocatedVersion,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
)

Fault = str  # "truncate", "corrupt", "refuse", "late", "down", "busy"


def noise(length: int, seed: bytes = b"") -> bytes:
    """Incompressible bytes, the same every time."""
    return blake3(b"noise" + seed).digest(length)


def version_name(number: int) -> str:
    return f"{number:032x}"


@dataclass
class FakeEdge:
    faults: list[Fault] = field(default_factory=list)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    stored: dict[bytes, tuple[Descriptor, bytes]] = field(default_factory=dict)
    bundled: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    objects: dict[bytes, bytes] = field(default_factory=dict)
    locates: list[LocateRequest] = field(default_factory=list)
    located_together: list[list[str]] = field(default_factory=list)
    gets: list[tuple[bytes, int, int]] = field(default_factory=list)
    connected_ahead: list[int] = field(default_factory=list)
    served: int = 0
    serial: int = 0
    corrupt_for_ever: set[bytes] = field(default_factory=set)
    is_down: bool = False
    hold: trio.Event | None = None  # when set, answers wait for it
    cut_short: int | None = None  # how much a truncated answer brings; default half
    lifetime_ns: int = 300_000_000_000

    def add(self, version: str, content: bytes, cuts: Sequence[int], average: int = 65536) -> None:
        """A version with `content`, cut into chunks of the lengths `cuts`, cycled; a chunk of
        zeros only becomes a hole."""
        pieces: list[Piece] = []
        for plain in _cut(content, cuts):
            if plain.count(0) == len(plain):
                if pieces and pieces[-1].id == HOLE:
                    pieces[-1] = Piece(HOLE, pieces[-1].length + len(plain))
                else:
                    pieces.append(Piece(HOLE, len(plain)))
                continue
            encoded = encode_chunk(plain)
            self.stored[encoded.descriptor.id] = (encoded.descriptor, bytes(encoded.body))
            pieces.append(Piece(encoded.descriptor.id, len(plain)))
        self.manifests[version] = Manifest(len(content), average, pieces)

    def bundle(self, *versions: str, gap: int = 0) -> bytes:
        """Put the chunks of these versions into one object, `gap` bytes between them; its name."""
        chunks = [piece.id for version in versions for piece in self.manifests[version].pieces]
        name, content = blake3(b"".join(chunks)).digest(), b""
        for chunk in dict.fromkeys(chunk for chunk in chunks if chunk != HOLE):
            self.bundled[chunk] = name, len(content)
            content += self.stored[chunk][1] + bytes(gap)
        self.objects[name] = content
        return name

    async def locate(self, request: LocateRequest) -> LocateReply:
        await trio.lowlevel.checkpoint()
        self.locates.append(request)
        if self.hold is not None:
            await self.hold.wait()
        if self.is_down:
            raise Unreachable("cannot connect to fake: connection refused")
        manifest = self.manifests.get(request.version)
        if manifest is None:
            raise Refused(NotFound(message="no such version"))
        ids = list(request.chunks) + (_under(manifest, request) if request.span else [])
        self.serial += 1
        return LocateReply(
            chunks=[self._located(chunk, request.bundles) for chunk in dict.fromkeys(ids)],
            manifest=manifest if request.manifest else None,
        )

    async def locate_several(self, request: LocateSeveral) -> LocateSeveralReply:
        await trio.lowlevel.checkpoint()
        self.located_together.append([item.version for item in request.versions])
        if self.hold is not None:
            await self.hold.wait()
        if self.is_down:
            raise Unreachable("cannot connect to fake: connection refused")
        self.serial += 1
        found = [self._whole(item.version, request.bundles) for item in request.versions]
        return LocateSeveralReply(found=found)

    def _whole(self, version: str, bundles: bool) -> LocatedVersion | NotFound:
        manifest = self.manifests.get(version)
        if manifest is None:
            return NotFound(message="no such version")
        ids = dict.fromkeys(piece.id for piece in manifest.pieces if piece.id != HOLE)
        return LocatedVersion(manifest=manifest, chunks=[self._located(id, bundles) for id in ids])

    def _located(self, chunk: bytes, bundles: bool) -> Located:
        name, offset = self.bundled.get(chunk, (chunk, 0)) if bundles else (chunk, 0)
        return Located(
            descriptor=self.stored[chunk][0],
            url=f"http://edge.test/{name.hex()}?n={self.serial}",
            offset=offset,
            expires_ns=time.time_ns() + self.lifetime_ns,
        )

    async def connect_ahead(self, connections: int) -> None:
        self.connected_ahead.append(connections)

    async def get_range(self, url: str, start: int, end: int, into: bytearray | memoryview) -> int:
        chunk = bytes.fromhex(url.split("/")[-1].split("?")[0])
        fault = self.faults.pop(0) if self.faults else ""
        await trio.lowlevel.checkpoint()
        self.gets.append((chunk, start, end))
        if self.hold is not None:
            await self.hold.wait()
        if self.is_down or fault == "down":
            raise Unreachable("cannot connect to edge.test: connection refused")
        if fault == "refuse":
            raise UrlRefused("403")
        if fault == "busy":
            raise Busy("edge.test: answered 503", 503)
        if fault == "late":
            for _ in range(20):
                await trio.lowlevel.checkpoint()
        came = end - start
        if fault == "truncate":
            came = came // 2 if self.cut_short is None else self.cut_short
        self.served += came
        content = self.objects[chunk] if chunk in self.objects else self.stored[chunk][1]
        memoryview(into)[:came] = memoryview(content)[start : start + came]
        if fault == "corrupt" or chunk in self.corrupt_for_ever:
            into[came // 2] ^= 0xFF
        if came < end - start:
            raise Unreachable("truncated")
        return came


def _cut(content: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    offset = number = 0
    while offset < len(content):
        length = cuts[number % len(cuts)]
        yield content[offset : offset + length]
        offset, number = offset + length, number + 1


def _under(manifest: Manifest, request: LocateRequest) -> list[bytes]:
    assert request.span is not None
    start, found = 0, []
    for piece in manifest.pieces:
        inside = start < request.span.offset + request.span.length
        if inside and start + piece.length > request.span.offset and piece.id != HOLE:
            found.append(piece.id)
        start += piece.length
    return found
