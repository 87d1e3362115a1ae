"""Where chunks are: signed URLs and descriptors, asked for in batches, remembered while fresh.

Knows: the locate request, expiry, who else is asking. Must not know: blocks, ranges, how bytes are
fetched, what the cache holds.

A located chunk is believed after its descriptor hashed to its id. It is remembered by chunk id
alone: a URL authorised through one version serves the same bytes for every version. Several chunks
may be in one object (`Located.offset`): a URL that is refused is refused for all of them.

Concurrency: trio thread only. `_located` is changed without checkpoints. A question in
flight is in `_asking` under each chunk it asks for, so a chunk is asked for once however many
readers of its version want it. The first asker of a version sends the request; it lets every ready
task add its chunks first (one checkpoint). An asker that is cancelled leaves its question
unanswered and set, and whoever waited asks anew.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from remote.protocol.content import BadContent, Manifest, check_descriptor, check_manifest
from remote.protocol.errors import NearlineError, ProtocolError
from remote.protocol.ids import FileId, VersionId
from remote.protocol.messages import (
    SIGNED_URL_SECONDS,
    Located,
    LocatedVersion,
    LocateReply,
    LocateRequest,
    LocateSeveral,
    LocateSeveralReply,
    Span,
    WholeVersion,
)

MAX_QUESTION = 100
MAX_LOCATED = 4096
EXPIRY_MARGIN_SECONDS = 30.0


class LocateApi(Protocol):
    """Both raise `Refused`, `Unreachable`, `ProtocolError`."""

    async def locate(self, request: LocateRequest) -> LocateReply: ...

    async def locate_several(self, request: LocateSeveral) -> LocateSeveralReply: ...


class _Question:
    """One request, open for more chunks until it is sent."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.found: dict[bytes, Located] = {}
        self.error: NearlineError | None = None
        self.is_answered = False
        self.done = trio.Event()


class Locator:
    """Finds chunks of versions; see the module header for the concurrency contract."""

    def __init__(self, api: LocateApi, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._api = api
        self._now_ns = now_ns
        self._located: OrderedDict[bytes, tuple[Located, float]] = OrderedDict()
        self._asking: dict[tuple[VersionId, bytes], _Question] = {}
        self._open: dict[tuple[FileId, VersionId], _Question] = {}

    async def find(
        self, file: FileId, version: VersionId, chunk: bytes, ahead: Sequence[bytes] = ()
    ) -> Located:
        """Where `chunk` of `version` is. When a request is needed it also asks for the chunks in
        `ahead`, as far as they are unknown. Raises what `LocateApi.locate` does."""
        while True:
            located = self.located(chunk)
            if located is not None:
                return located
            question = self._asking.get((version, chunk)) or self._join(file, version, chunk)
            if question is None:
                question = await self._ask(file, version, [chunk, *ahead])
            else:
                await question.done.wait()
            if question.error is not None:
                raise question.error
            if question.is_answered:
                return _pick(question, chunk)

    async def first_look(self, file: FileId, version: VersionId, span: Span | None) -> Manifest:
        """The manifest of `version`; the chunks under `span` become known in the same round trip.
        Raises what `LocateApi.locate` does."""
        request = LocateRequest(file=file, version=version, span=span, manifest=True, bundles=True)
        reply = await self._api.locate(request)
        if reply.manifest is None:
            raise ProtocolError(f"the server sent no manifest for version {version}")
        _check(version, reply.manifest)
        self._remember(reply.chunks)
        return reply.manifest

    async def look_at_several(
        self, wanted: Sequence[tuple[FileId, VersionId]]
    ) -> dict[VersionId, Manifest]:
        """The manifests of small versions, `MAX_WHOLE` at most, whose chunks become known in the
        same round trip. What is refused is left out. Raises what `LocateApi` does."""
        versions = [WholeVersion(*one) for one in wanted]
        request = LocateSeveral(versions=versions, bundles=True)
        reply = await self._api.locate_several(request)
        manifests: dict[VersionId, Manifest] = {}
        for (_, version), found in zip(wanted, reply.found, strict=False):
            if isinstance(found, LocatedVersion):
                _check(version, found.manifest)
                self._remember(found.chunks)
                manifests[version] = found.manifest
        return manifests

    def look_ahead(
        self,
        spawn: Callable[..., object],
        file: FileId,
        version: VersionId,
        chunks: Sequence[bytes],
    ) -> None:
        """Have these `chunks` known before a reader of `version`, who will want them next and in
        this order, comes to them. When one of the first half is unknown all that are get asked for,
        in a task of `spawn` (`start_soon` of a nursery)."""
        if any(self._is_unknown(version, chunk) for chunk in chunks[: (len(chunks) + 1) // 2]):
            spawn(self._ask_ahead, file, version, chunks)

    async def _ask_ahead(self, file: FileId, version: VersionId, chunks: Sequence[bytes]) -> None:
        if any(self._is_unknown(version, chunk) for chunk in chunks):  # nobody asked meanwhile
            await self._ask(file, version, chunks)

    def _is_unknown(self, version: VersionId, chunk: bytes) -> bool:
        return (version, chunk) not in self._asking and self.located(chunk) is None

    def located(self, chunk: bytes) -> Located | None:
        """The location of `chunk`, if it is known and not about to expire."""
        entry = self._located.get(chunk)
        if entry is None or entry[1] <= trio.current_time():
            return None
        self._located.move_to_end(chunk)
        return entry[0]

    def forget(self, chunk: bytes) -> None:
        """Its URL was refused, or serves wrong bytes: sign anew next time, also for what else is in
        the same object."""
        entry = self._located.get(chunk)
        if entry is not None:
            url = entry[0].url
            for item in [item for item, (other, _) in self._located.items() if other.url == url]:
                del self._located[item]

    def _join(self, file: FileId, version: VersionId, chunk: bytes) -> _Question | None:
        """The question about `version` that has not been sent yet, now about `chunk` too."""
        question = self._open.get((file, version))
        if question is None or len(question.chunks) >= MAX_QUESTION:
            return None
        self._add(question, version, chunk)
        return question

    def _add(self, question: _Question, version: VersionId, chunk: bytes) -> None:
        question.chunks.append(chunk)
        self._asking[(version, chunk)] = question

    async def _ask(self, file: FileId, version: VersionId, chunks: Sequence[bytes]) -> _Question:
        question = self._open[(file, version)] = _Question()
        for chunk in dict.fromkeys(chunks):
            if self._is_unknown(version, chunk) and len(question.chunks) < MAX_QUESTION:
                self._add(question, version, chunk)
        try:
            try:
                await trio.lowlevel.checkpoint()
            finally:
                if self._open.get((file, version)) is question:
                    del self._open[(file, version)]
            request = LocateRequest(
                file=file, version=version, chunks=question.chunks, bundles=True
            )
            reply = await self._api.locate(request)
            question.found = self._remember(reply.chunks)
            question.is_answered = True
        except NearlineError as error:
            question.error = error
        finally:
            for chunk in question.chunks:
                del self._asking[(version, chunk)]
            question.done.set()
        return question

    def _remember(self, chunks: Sequence[Located]) -> dict[bytes, Located]:
        found = {}
        for located in chunks:
            try:
                check_descriptor(located.descriptor)
            except BadContent as error:
                raise ProtocolError(f"the server sent a bad descriptor: {error}") from error
            found[located.descriptor.id] = located
            self._located[located.descriptor.id] = (located, self._fresh_until(located))
            self._located.move_to_end(located.descriptor.id)
        while len(self._located) > MAX_LOCATED:
            self._located.popitem(last=False)
        return found

    def _fresh_until(self, located: Located) -> float:
        """Until when to use a URL, on trio's clock. Our wall clock may be wrong, so the lifetime
        read off it is kept between the margin and what servers sign for; a URL that turns out to
        have expired is refused and signed again, which costs a round trip, not an error."""
        lifetime = (located.expires_ns - self._now_ns()) / 1e9
        believable = min(max(lifetime, 2 * EXPIRY_MARGIN_SECONDS), float(SIGNED_URL_SECONDS))
        return trio.current_time() + believable - EXPIRY_MARGIN_SECONDS


def _check(version: VersionId, manifest: Manifest) -> None:
    try:
        check_manifest(manifest)
    except BadContent as error:
        raise ProtocolError(f"version {version} has a bad manifest: {error}") from error


def _pick(question: _Question, chunk: bytes) -> Located:
    located = question.found.get(chunk)
    if located is None:
        raise ProtocolError(f"the server did not say where chunk {chunk.hex()} is")
    return located
