"""The real server's transactions, called in process: every port of a device, without HTTP.

What is simulated is the network (`Network`) and the blob store (a dict); the metadata rules, upload
sessions and change feed are the server's own code, and every message passes through its MessagePack
form, so a message that the wire would refuse is refused here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from sqlalchemy import Connection, event, select

from remote.protocol import messages
from remote.protocol.account_messages import Invite
from remote.protocol.codec import decode_block
from remote.protocol.content import HOLE, Descriptor, Manifest, block_count
from remote.protocol.errors import Problem, Refused, Unreachable, UrlRefused
from server.accounts import accounts, tokens
from server.changes import feed
from server.changes.views import view_of
from server.drive import commits, listing, retention, sharing
from server.maintenance import fsck
from server.metadata.db import Database
from server.metadata.schema import chunks, files, grants, versions
from server.permissions.caller import Caller
from server.storage import places
from server.storage.blobs import BlobKey, BlobStore, Head
from server.uploads import arrivals, bundles, leases, sessions
from server.uploads.quota import Budget, Limits
from tests import remembered
from tests.contract.memory import MemoryBlobStore

remembered.remember()

T = TypeVar("T")
LEASE_NS = 10**9 * 3600
DELAYS = (0, 0, 0.001, 0.01, 0.1, 1)  # seconds of the mock clock


def through_wire(message: object, kind: type[T] | Any) -> T:
    found: T = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind)
    return found


class Storage:
    """All that a server has kept."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self.db, self.blobs = db, blobs
        self.bundled = 0  # chunks that came in bundles

    def content(self, manifest: Manifest, drive: str) -> bytes:
        with self.db.read() as conn:
            return b"".join(
                bytes(piece.length) if piece.id == HOLE else self._plain(conn, drive, piece.id)
                for piece in manifest.pieces
            )

    def _plain(self, conn: Connection, drive: str, chunk: bytes) -> bytes:
        query = select(*places.COLUMNS, chunks.c.descriptor)
        row = conn.execute(query.where(chunks.c.drive == drive, chunks.c.id == chunk)).one()
        descriptor, place = (
            msgspec.msgpack.decode(row.descriptor, type=Descriptor),
            places.place_of(row),
        )
        stored = memoryview(self.blobs.read(place.key, place.offset, place.length))
        blocks = []
        for block in range(block_count(descriptor.length)):
            offset = descriptor.stored_offset(block)
            part = stored[offset : offset + descriptor.stored_lengths[block]]
            blocks.append(bytes(decode_block(descriptor, block, part)))
        return b"".join(blocks)

    def history(self) -> set[bytes]:
        """The content of every uploaded version of every file, in the tree or in the trash."""
        return set(self.versions().values())

    def trash(self) -> set[bytes]:
        """The content of every uploaded version of the files in the trash."""
        with self.db.read() as conn:
            gone = select(versions.c.id).join(files, versions.c.file == files.c.id)
            ids = set(conn.execute(gone.where(files.c.links == 0)).scalars())
        return {data for version, data in self.versions().items() if version in ids}

    def versions(self) -> dict[str, bytes]:
        """The content of every uploaded version."""
        with self.db.read() as conn:
            rows = conn.execute(select(versions).where(versions.c.status == "uploaded")).all()
        return {
            row.id: self.content(msgspec.msgpack.decode(row.manifest, type=Manifest), row.drive)
            for row in rows
        }

    def complaints(self) -> list[str]:
        """The faults that the server's own check finds."""
        found = fsck.run(self.db, self.blobs)
        return [f"{item.kind}: {item.what} ({item.path})" for item in found.findings]


class Server(Storage):
    """The drives of `accounts`, and what devices may ask of them."""

    def __init__(self, directory: Path, accounts_: tuple[str, ...] = ("anna",)) -> None:
        super().__init__(Database(directory / "server.sqlite"), MemoryBlobStore())
        event.listen(self.db._engine, "connect", _do_not_sync)  # this server loses no power
        self.db.migrate()
        self.cursors = feed.Cursors(b"s" * 32)
        with self.db.write() as conn:
            for name in accounts_:
                accounts.insert_account(conn, name, "no password", time.time_ns())

    def copy(self, directory: Path) -> Server:
        """Another server that has the same."""
        self.db.copy_to(directory / "server.sqlite")
        made = Server(directory, ())
        made.blobs = self.blobs.copy()
        return made

    def token(self, device: str, account: str = "anna") -> str:
        with self.db.write() as conn:
            found = accounts.find_account(conn, account)
            assert found is not None
            return tokens.new_device(conn, found[0], device, time.time_ns())[0]

    def caller(self, conn: Connection, token: str) -> Caller:
        return tokens.authenticate(conn, token, time.time_ns())

    def close(self) -> None:
        self.db.close()

    # --- what a test does and asks behind every device's back -------------------------------------

    def share(self, token: str, file: str, account: str, role: messages.Role) -> None:
        """Raises `Refused`: what the server has not heard of, or what cannot be shared."""
        with self.db.write() as conn:
            invited = [Invite(account=account, role=role)]
            sharing.share(conn, self.caller(conn, token), file, invited, time.time_ns())

    def unshare(self, token: str, file: str, account: str) -> None:
        """Raises `Refused` when there is no such grant."""
        with self.db.write() as conn:
            sharing.unshare(conn, self.caller(conn, token), file, account, time.time_ns())

    def granted(self) -> list[str]:
        """Every file that is shared with somebody."""
        with self.db.read() as conn:
            return list(conn.execute(select(grants.c.file)).scalars())

    def forget_feed(self) -> None:
        """Begin the feed anew: whoever asks for earlier changes gets a reset page."""
        with self.db.write() as conn:
            while retention.prune_feed(conn, time.time_ns() + 1, 0, 1000):
                pass

    def drive_of(self, file: str) -> str:
        with self.db.read() as conn:
            return str(conn.execute(select(files.c.drive).where(files.c.id == file)).scalar_one())


@dataclass
class Network:
    """The way from one device to the server. `lose_replies`: the request is carried out, the answer
    does not arrive, so many times. `weather`: requests and answers take their time, so what was
    asked or answered first need not come first. More than `most` requests never end."""

    up: bool = True
    lose_replies: int = 0
    requests: int = field(default=0)
    reached: trio.Event = field(default_factory=trio.Event)  # set at request number `stop_at`
    stop_at: int = 0
    weather: random.Random | None = None
    most: int = 5000

    async def cross(self) -> None:
        await self._dawdle()
        self.requests += 1
        if self.requests == self.stop_at:
            self.reached.set()
            await trio.lowlevel.checkpoint()
        assert self.requests < self.most, "this never ends"
        if not self.up:
            raise Unreachable("partitioned")

    async def answer(self, *, may_be_lost: bool = False) -> None:
        if may_be_lost and self.lose_replies:
            self.lose_replies -= 1
            raise Unreachable("the answer was lost")
        if self.weather is not None:
            await self._dawdle()
            if not self.up:
                raise Unreachable("partitioned before the answer came")

    async def _dawdle(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.weather is not None:
            await trio.sleep(self.weather.choice(DELAYS))


class Port:
    """`ApplyPort` and `UploadPort`, the feed and the listings, of one device."""

    def __init__(self, server: Server, token: str, network: Network) -> None:
        self._server, self._token, self._network = server, token, network

    async def me(self) -> messages.Me:
        await self._network.cross()
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            head = feed.head(conn, caller.drive)
            root = conn.exec_driver_sql(
                "SELECT root FROM drives WHERE id = ?", (caller.drive,)
            ).scalar_one()
        await self._network.answer()
        return messages.Me(
            account=caller.account_name,
            device_id=caller.device,
            drive=caller.drive,
            root=root,
            cursor=self._server.cursors.write(head),
            seq=head.seq,
            used_bytes=0,
            quota_bytes=None,
            now_ns=time.time_ns(),
        )

    async def apply(self, request: messages.ApplyRequest) -> messages.ApplyReply:
        await self._network.cross()
        request = through_wire(request, messages.ApplyRequest)
        with self._server.db.write() as conn:
            caller = self._server.caller(conn, self._token)
            results, _ = commits.apply(conn, caller, request.ops, time.time_ns())
        await self._network.answer(may_be_lost=True)
        return through_wire(messages.ApplyReply(results=results), messages.ApplyReply)

    async def file(
        self, file: str, version: str | None = None, *, manifest: bool = False
    ) -> messages.FileReply:
        await self._network.cross()
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            reply = listing.file(conn, caller, file, version, manifest)
        await self._network.answer()
        return reply

    async def children(self, file: str, cursor: str | None = None) -> messages.ChildrenPage:
        await self._network.cross()
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            page = listing.children(conn, caller, file, cursor, 3)  # small: pages are crossed
        await self._network.answer()
        return page

    async def list_several(self, directories: Sequence[str]) -> messages.ListReply:
        await self._network.cross()
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            reply = listing.several(conn, caller, directories, 5)  # small: some have no room
        await self._network.answer()
        return reply

    async def changes(self, cursor: str | None) -> messages.ChangesPage:
        await self._network.cross()
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            page = feed.pull(conn, self._server.cursors, view_of(conn, caller), cursor)
        await self._network.answer()
        return page

    async def hint(self, since: str) -> messages.Hint:
        """The hint of a socket about everything after `since`: the changes, or only that there
        are."""
        page = await self.changes(since)
        if page.reset or page.more or page.shared is not None:
            return messages.Hint(since=page.cursor, cursor=page.cursor, seq=page.seq)
        return messages.Hint(since=since, cursor=page.cursor, seq=page.seq, changes=page.changes)

    async def start_uploads(self, request: messages.StartUploads) -> messages.StartUploadsReply:
        await self._network.cross()
        request = through_wire(request, messages.StartUploads)
        with self._server.db.write() as conn:
            caller = self._server.caller(conn, self._token)
            terms = sessions.Terms(LEASE_NS, Budget(conn, caller, Limits(1 << 40, 1 << 20)), _sign)
            states = [self._start(conn, caller, item, terms) for item in request.uploads]
        await self._network.answer(may_be_lost=True)
        return messages.StartUploadsReply(uploads=states)  # type: ignore[arg-type]  # every Problem

    def _start(
        self,
        conn: Connection,
        caller: Caller,
        wanted: messages.StartUpload,
        terms: sessions.Terms,
    ) -> messages.UploadState | Problem:
        conn.exec_driver_sql("SAVEPOINT upload")
        try:
            return sessions.start(conn, caller, wanted, terms, time.time_ns())
        except Refused as error:
            conn.exec_driver_sql("ROLLBACK TO SAVEPOINT upload")
            return error.problem
        finally:
            conn.exec_driver_sql("RELEASE SAVEPOINT upload")

    async def start_bundle(self, request: messages.StartBundle) -> messages.StartBundleReply:
        await self._network.cross()
        request = through_wire(request, messages.StartBundle)
        with self._server.db.read() as conn:
            caller = self._server.caller(conn, self._token)
            reply = bundles.start(conn, caller, request, _sign_object, time.time_ns())
        await self._network.answer()
        return through_wire(reply, messages.StartBundleReply)

    async def put_chunk(self, put: messages.PresignedPut, body: bytes | memoryview) -> None:
        await self._network.cross()
        drive, chunk, version = put.url.split("/")
        key, now = BlobKey(drive, bytes.fromhex(chunk)), time.time_ns()
        self._server.blobs.add(key, bytes(body))
        head = Head(len(body), bytes.fromhex(put.headers["sha256"]))
        bundle = bundles.index_of(self._server.blobs, key)
        self._server.bundled += 0 if bundle is None else len(bundle.parts)
        with self._server.db.write() as conn:
            proof = None
            if version:
                promised = leases.promise_of(conn, version, drive, key.chunk, now)
                if promised is None or promised.sha256 != head.sha256:
                    raise UrlRefused("the upload is over")
                proof = arrivals.Proof(version, promised)
            arrival = arrivals.Arrival(key, head, proof=proof, bundle=bundle)
            arrivals.arrived(conn, self._server.blobs, [arrival], now)
        await self._network.answer()


def _do_not_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()


def _sign(drive: str, descriptor: Descriptor, proof: str | None) -> messages.PresignedPut:
    head = Head(descriptor.stored_length, descriptor.sha256)
    return _sign_object(BlobKey(drive, descriptor.id), head, proof)


def _sign_object(key: BlobKey, head: Head, proof: str | None = None) -> messages.PresignedPut:
    return messages.PresignedPut(
        url=f"{key.drive}/{key.chunk.hex()}/{proof or ''}",
        headers={"sha256": head.sha256.hex()},
        expires_ns=time.time_ns() + LEASE_NS,
    )
