"""A real server on a real socket, and clients that speak the wire's own types to it."""

from __future__ import annotations

import hashlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from blake3 import blake3

from remote.protocol import messages
from remote.protocol.content import (
    BLOCK_SIZE,
    Descriptor,
    Manifest,
    Piece,
    block_count,
    block_hash,
    chunk_id,
)
from remote.protocol.errors import AnyProblem
from server import main
from server.accounts import accounts, tokens
from server.app import Application, create_app
from server.http.certificate import Identity
from server.http.tls import Tls
from server.settings import Settings, Tunables
from tests import remembered

remembered.remember()

T = TypeVar("T")
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Given to clients that speak plain HTTP: loading certificates takes longer than most tests."""
MSGPACK = "application/msgpack"
_numbers = itertools.count(1)


def new_id() -> str:
    """A fresh id, in order of birth."""
    return f"{next(_numbers):012x}7000{'8' + '0' * 15}"


@dataclass
class Chunk:
    """A chunk stored raw."""

    data: bytes
    descriptor: Descriptor

    @property
    def id(self) -> bytes:
        return self.descriptor.id


def make_chunk(data: bytes) -> Chunk:
    blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
    assert len(blocks) == block_count(len(data))
    hashes = b"".join(block_hash(block) for block in blocks)
    descriptor = Descriptor(
        id=chunk_id(len(data), hashes),
        length=len(data),
        codec="raw",
        block_hashes=hashes,
        stored_lengths=[len(block) for block in blocks],
        sha256=hashlib.sha256(data).digest(),
    )
    return Chunk(data, descriptor)


def noise(length: int, seed: str = "") -> bytes:
    """Bytes that are the same for the same seed."""
    return blake3(seed.encode()).digest(length=length)


def manifest_of(*chunks: Chunk) -> Manifest:
    pieces = [Piece(chunk.id, chunk.descriptor.length) for chunk in chunks]
    return Manifest(size=sum(p.length for p in pieces), average=1 << 20, pieces=pieces)


EMPTY = Manifest(size=0, average=1 << 20, pieces=[])


class Failed(Exception):
    """The server answered with a Problem."""

    def __init__(self, status: int, problem: Any) -> None:
        super().__init__(f"{status} {problem}")
        self.status, self.problem = status, problem


@dataclass
class Client:
    """One device. Speaks MessagePack; raises `Failed` for every Problem."""

    http: httpx.Client
    token: str = ""
    me: messages.Me = field(init=False)

    def request(
        self, method: str, path: str, kind: type[T], message: object = None, **query: object
    ) -> T:
        headers = {"Accept": MSGPACK, "Content-Type": MSGPACK}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        content = None if message is None else msgspec.msgpack.encode(message)
        params: Any = {key: value for key, value in query.items() if value is not None}
        got = self.http.request(method, path, headers=headers, content=content, params=params)
        if got.status_code >= 400:
            raise Failed(got.status_code, msgspec.msgpack.decode(got.content, type=AnyProblem))
        return msgspec.msgpack.decode(got.content, type=kind) if got.content else None  # type: ignore[return-value]

    def log_in(self, account: str, password: str = "a secret", device: str = "laptop") -> Client:
        wanted = messages.LoginRequest(account=account, password=password, device=device)
        self.token = self.request("POST", "/v1/login", messages.LoginReply, wanted).token
        self.refresh()
        return self

    def refresh(self) -> messages.Me:
        self.me = self.request("GET", "/v1/me", messages.Me)
        return self.me

    # --- mutations ---

    def batch(self, *ops: messages.Op, keys: list[str] | None = None) -> list[Any]:
        keyed = [
            messages.Keyed(key=keys[index] if keys else new_id(), op=op)
            for index, op in enumerate(ops)
        ]
        reply = self.request(
            "POST", "/v1/changes/apply", messages.ApplyReply, messages.ApplyRequest(ops=keyed)
        )
        assert len(reply.results) == len(ops)
        return reply.results

    def do(self, op: messages.Op) -> messages.Applied:
        """Apply one operation that must succeed."""
        result = self.batch(op)[0]
        assert isinstance(result, messages.Applied), result
        return result

    def refused(self, op: messages.Op) -> Any:
        """Apply one operation that must be refused; returns the Problem."""
        result = self.batch(op)[0]
        assert not isinstance(result, messages.Applied), result
        return result

    def mkdir(self, name: str, parent: str | None = None) -> str:
        return self.make(name, parent, kind="directory", mode=0o755)

    def make(self, name: str, parent: str | None = None, **changes: Any) -> str:
        """Create a file (empty regular, by default); returns its id."""
        op = self.create(name, parent, **changes)
        self.do(op)
        return op.file

    def create(self, name: str, parent: str | None = None, **changes: Any) -> messages.Create:
        fields: dict[str, Any] = {"kind": "file", "mode": 0o644, "mtime_ns": 1} | changes
        if fields["kind"] == "file" and "content" not in fields:
            fields["content"] = messages.Content(version=new_id(), manifest=EMPTY)
        parent = parent or self.me.root
        return messages.Create(**({"file": new_id(), "parent": parent, "name": name} | fields))

    # --- content ---

    def start(self, version: str, file: str, *chunks: Chunk, **more: Any) -> Any:
        upload = messages.StartUpload(
            version=version, file=file, descriptors=[chunk.descriptor for chunk in chunks], **more
        )
        wanted = messages.StartUploads(uploads=[upload])
        return self.request("POST", "/v1/files", messages.StartUploadsReply, wanted).uploads[0]

    def put(self, ticket: messages.ChunkTicket, chunk: Chunk, **changes: Any) -> httpx.Response:
        assert ticket.put is not None
        return self.http.put(
            changes.pop("url", ticket.put.url),
            content=changes.pop("content", chunk.data),
            headers=ticket.put.headers | changes,
        )

    def upload(self, version: str, file: str, *chunks: Chunk, **more: Any) -> int:
        """Start, PUT what is needed; returns how many chunks were."""
        begun = self.start(version, file, *chunks, **more)
        assert isinstance(begun, messages.UploadState), begun
        needed = [t for t in begun.chunks if t.state == "needed"]
        by_id = {chunk.id: chunk for chunk in chunks}
        for ticket in needed:
            assert self.put(ticket, by_id[ticket.id]).status_code == 200
        return len(needed)

    def store(self, name: str, *chunks: Chunk, parent: str | None = None) -> tuple[str, str]:
        """A regular file of these chunks; returns (file, version)."""
        file, version = new_id(), new_id()
        self.upload(version, file, *chunks)
        content = messages.Content(version=version, manifest=manifest_of(*chunks))
        self.make(name, parent, file=file, content=content)
        return file, version

    def children(self, directory: str | None = None) -> dict[str, messages.FileRecord]:
        """The whole directory by name, over as many pages as it takes."""
        found: dict[str, messages.FileRecord] = {}
        cursor = None
        while True:
            path = f"/v1/files/{directory or self.me.root}/children"
            page = self.request("GET", path, messages.ChildrenPage, cursor=cursor)
            found |= {child.entry.name: child.file for child in page.children}
            if page.next is None:
                return found
            cursor = page.next

    def file(self, id: str, **query: object) -> messages.FileReply:
        return self.request("GET", f"/v1/files/{id}", messages.FileReply, **query)

    def locate(self, **fields: Any) -> messages.LocateReply:
        return self.request(
            "POST", "/v1/chunks/locate", messages.LocateReply, messages.LocateRequest(**fields)
        )

    def changes(self, cursor: str | None) -> messages.ChangesPage:
        return self.request("GET", "/v1/changes", messages.ChangesPage, cursor=cursor)


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    app: Application
    data: Path
    server: main.Server
    thread: threading.Thread
    pin: str
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, account: str | None = None, **login: str) -> Client:
        http = httpx.Client(base_url=self.url, timeout=60, verify=PLAIN)
        self.clients.append(http)
        client = Client(http)
        return client.log_in(account, **login) if account else client

    def account(self, name: str) -> Client:
        """A client of a new account, its name made unique. Without Argon2, which is slow."""
        with self.app.service.db.write() as conn:
            unique = f"{name}-{next(_numbers)}"
            accounts.insert_account(conn, unique, "no password", time.time_ns())
        return self.device(unique)

    def device(self, account: str, name: str = "laptop") -> Client:
        """One more device of an account."""
        client = self.client()
        with self.app.service.db.write() as conn:
            found = accounts.find_account(conn, account)
            assert found is not None
            client.token, _ = tokens.new_device(conn, found[0], name, time.time_ns())
        client.refresh()
        return client

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()
        self.thread.join(60)
        assert not self.thread.is_alive(), "the server did not stop"


def run(
    data: Path,
    origin: str | None = None,
    *,
    tls_only: bool = False,
    sock: socket.socket | None = None,
    **tunables: Any,
) -> Running:
    """A server on `data`; `origin` is its public URL, by default where it listens: at `sock`, if
    that is given. With `tls_only` it speaks no plain HTTP."""
    # All tests come from one address, and wait for no refusal.
    tunables = {"refusal_burst": 1_000_000, "refused_seconds": 0.0} | tunables
    sock = sock or socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    app = create_app(Settings(data, origin or url, Tunables(**tunables)))
    up = threading.Event()
    identity = Identity(data)
    tls = Tls(identity.context, only=tls_only)
    server = main.Server(main.configure(app), up.set, app.service.stop_waiting, tls)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert up.wait(60), "the server did not start"
    return Running(url, app, data, server, thread, identity.certificate)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
