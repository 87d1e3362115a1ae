"""Attacks on a server: a table, each for ever until it is ended.

`python -m bench.hostile.attacks NAME`, started by `__main__`, takes a `Victim` as JSON from the
first line of standard input, prepares, says "ready", and attacks until its input ends. Then it
writes how the server answered, as JSON.

Knows: which calls are dear, or were. Must not know: how the server defends itself. What it refuses
while an attack is prepared is taken as it is: the attack goes on with what it could make.

Attackers come from `SOURCES`, the first of them unless it says otherwise.
"""

from __future__ import annotations

import functools
import itertools
import os
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from bench.hostile.raw import Make, Target, request
from cache.metadata.operations import new_id
from remote.http.api import ApiClient
from remote.http.transport import Timeouts
from remote.protocol.account_messages import Invite, MakeLink, ShareRequest
from remote.protocol.codec import encode_chunk
from remote.protocol.content import HOLE, Descriptor, Manifest, Piece
from remote.protocol.errors import NearlineError, Refused, Retry, Unavailable
from remote.protocol.messages import (
    Applied,
    ApplyRequest,
    Content,
    Create,
    Keyed,
    Link,
    LoginRequest,
    Op,
    Rename,
    StartUpload,
    StartUploads,
    Unlink,
    UploadState,
)

Who = Literal["account", "visitor", "address"]

BATCH = 1000
DEEP = 10_000
MANY_NAMES = 15_000
MANY_FILES = 50_001
TRICKLED = 16 * 1024 * 1024
SOURCES = tuple(f"10.66.{number // 250 + 1}.{number % 250 + 1}" for number in range(200))


class Victim(msgspec.Struct):
    """`account` is the hostile one, `friend` who works on the server, by names; with passwords."""

    url: str
    account: str
    password: str
    friend: str


class Outcome(msgspec.Struct):
    """Counts of each status answered; "cut" is a connection that ended without an answer.
    `prepared`: what could be made of what was wanted."""

    answers: dict[str, int]
    prepared: str


class Attacker:
    """The hostile account's client, for preparing; and where to attack."""

    def __init__(self, api: ApiClient, victim: Victim, root: str, token: str) -> None:
        parts = urlsplit(victim.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.api, self.victim, self.root, self.token = api, victim, root, token
        self.target = Target(parts.hostname, parts.port, SOURCES[0])
        self.prepared = ""

    def post(self, path: str, message: msgspec.Struct) -> bytes:
        return request("POST", path, self.token, msgspec.msgpack.encode(message))

    async def apply(self, ops: Sequence[Op]) -> list[bool]:
        """True for each that was applied; sent in batches, again while it is for later."""
        done: list[bool] = []
        while len(done) < len(ops):
            keyed = [Keyed(key=new_id(), op=op) for op in ops[len(done) : len(done) + BATCH]]
            try:
                results = (await self.api.apply(ApplyRequest(keyed))).results
            except NearlineError as error:
                if error.retry is not Retry.LATER:
                    raise
                await trio.sleep(0.1)
                continue
            for result in results:
                if isinstance(result, Unavailable):
                    break
                done.append(isinstance(result, Applied))
        return done

    async def chain(self, depth: int, name: str | None = None) -> list[str]:
        """Directories in each other, as deep as the server lets; their ids from the top."""
        name = name or os.urandom(3).hex()
        ids = [new_id() for _ in range(depth)]
        ops = [
            directory(id, parent, name) for id, parent in zip(ids, [self.root, *ids], strict=False)
        ]
        made = 0
        for first in range(0, depth, BATCH):
            done = await self.apply(ops[first : first + BATCH])
            made += done.index(False) if False in done else len(done)
            if False in done:
                break
        return ids[:made]


def directory(id: str, parent: str, name: str) -> Create:
    return Create(file=id, parent=parent, name=name, kind="directory", mode=0o755, mtime_ns=0)


# Prepares; gives what is to be run beside each other, for ever.
Attack = Callable[[Attacker], Awaitable[list[Callable[[], Awaitable[None]]]]]


@dataclass(frozen=True)
class Entry:
    who: Who
    attack: Attack


# --- an account ---------------------------------------------------------------------------------


async def deep_renames(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Six batches of renames at a time, as deep as directories go."""
    ids = await self.chain(DEEP)
    self.prepared = f"depth {len(ids)}"
    here = ids[-2] if len(ids) > 1 else self.root
    files = [new_id() for _ in range(6)]
    await self.apply([directory(file, here, f"0{file}") for file in files])

    def batches(file: str) -> Make:
        numbers = itertools.count()

        def make() -> bytes:
            ops = []
            for number in itertools.islice(numbers, BATCH):
                old, new = f"{number}{file}", f"{number + 1}{file}"
                op = Rename(file=file, parent=here, name=old, new_parent=here, new_name=new)
                ops.append(Keyed(key=new_id(), op=op))
            return self.post("/v1/changes/apply", ApplyRequest(ops))

        return make

    return [functools.partial(self.target.hammer, batches(file)) for file in files]


async def deep_trash(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """The trash, with what was deleted deep inside directories with long names."""
    ids = await self.chain(4000, "n" * 200)
    self.prepared = f"depth {len(ids)}"
    here = ids[-2] if len(ids) > 1 else self.root
    gone = [new_id() for _ in range(100)]
    await self.apply([directory(id, here, id) for id in gone])
    await self.apply([Unlink(file=id, parent=here, name=id) for id in gone])
    ask = request("GET", "/v1/trash?limit=1", self.token)
    return [functools.partial(self.target.hammer, lambda: ask)] * 4


async def link_passwords(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Sixty links with a password at a time: each is a hash to be made."""
    folder = new_id()
    await self.apply([directory(folder, self.root, "linked")])
    ask = self.post(f"/v1/files/{folder}/links", MakeLink(password="a password of a link"))
    return [functools.partial(self.target.hammer, lambda: ask)] * 60


async def names_tried(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Sharing with one name after the other, to find out which there are."""
    folder = new_id()
    await self.apply([directory(folder, self.root, "offered")])

    def make() -> bytes:
        users = [Invite(os.urandom(4).hex(), "viewer") for _ in range(100)]
        return self.post(f"/v1/files/{folder}/share", ShareRequest(users))

    return [functools.partial(self.target.hammer, make)] * 16


async def unasked_shares(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Deep directories, all shared with somebody who did not ask for them, again and again."""
    ids = (await self.chain(2000))[-200:]
    self.prepared = f"{len(ids)} directories"
    asked = ShareRequest([Invite(self.victim.friend, "editor")])
    shares = itertools.cycle(self.post(f"/v1/files/{id}/share", asked) for id in ids)
    return [functools.partial(self.target.hammer, lambda: next(shares))] * 4


async def tiny_promises(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """A hundred thousand chunks of a few bytes promised, and more uploads begun all the time."""
    numbers = itertools.count()

    def make() -> bytes:
        chunks = [_tiny(number) for number in itertools.islice(numbers, BATCH)]
        upload = StartUpload(version=new_id(), file=new_id(), parent=self.root, descriptors=chunks)
        return self.post("/v1/files", StartUploads(uploads=[upload]))

    return [functools.partial(self.target.hammer, make)] * 4


def _tiny(number: int) -> Descriptor:
    return encode_chunk(b"%d" % number).descriptor


# --- a visitor of a link ------------------------------------------------------------------------


async def _linked(self: Attacker, ops: Callable[[str], Iterator[Op]], password: str | None) -> str:
    """The path of a link to a folder with all that in it."""
    folder = new_id()
    await self.apply([directory(folder, self.root, folder), *ops(folder)])
    made = await self.api.make_link(folder, MakeLink(password=password))
    return urlsplit(made.url).path + "/" + folder


async def archives(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """The archive of a folder that holds too much for one."""

    def ops(folder: str) -> Iterator[Op]:
        return (directory(new_id(), folder, str(number)) for number in range(MANY_FILES))

    path = await _linked(self, ops, None)
    ask = request("GET", f"{path}/zip")
    return [functools.partial(self.target.hammer, lambda: ask)] * 8


async def pages_of_names(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """The page of a folder with a file of many names."""
    file = new_id()

    def ops(folder: str) -> Iterator[Op]:
        content = Content(version=new_id(), manifest=Manifest(0, 1 << 20, []))
        yield Create(
            file=file, parent=folder, name="0", kind="file", mode=0o644, mtime_ns=0, content=content
        )
        yield from (
            Link(file=file, parent=folder, name=str(number)) for number in range(1, MANY_NAMES)
        )

    path = await _linked(self, ops, None)
    ask = request("GET", path)
    return [functools.partial(self.target.hammer, lambda: ask)] * 8


async def small_ranges(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """A byte at a time of a file in very many pieces."""
    folder, chunk = new_id(), encode_chunk(b"x")
    file, version = new_id(), new_id()
    await self.apply([directory(folder, self.root, folder)])
    start = StartUpload(version=version, file=file, parent=folder, descriptors=[chunk.descriptor])
    state = (await self.api.start_uploads(StartUploads(uploads=[start]))).uploads[0]
    assert isinstance(state, UploadState), state
    for ticket in state.chunks:
        if ticket.put is not None:
            await self.api.put_chunk(ticket.put, chunk.body)
    for half in (200_000, 20_000, 2_000, 1):
        pieces = [Piece(chunk.descriptor.id, 1), Piece(HOLE, 1)] * half
        content = Content(version=version, manifest=Manifest(2 * half, 1 << 20, pieces))
        op = Create(
            file=file, parent=folder, name="f", kind="file", mode=0o644, mtime_ns=0, content=content
        )
        try:
            if (await self.apply([op]))[0]:
                break
        except Refused:
            continue
    self.prepared = f"{2 * half} pieces"
    made = await self.api.make_link(file, MakeLink())
    path = urlsplit(made.url).path
    ask = request("GET", f"{path}/{file}/download")
    signed = await _location(self.target, ask)
    part = request("GET", signed).replace(b"\r\n\r\n", b"\r\nRange: bytes=1-1\r\n\r\n")
    return [functools.partial(self.target.hammer, lambda: part)] * 8


async def _location(target: Target, ask: bytes) -> str:
    """Path and query of where the answer to `ask` points."""
    async with await target.connect() as stream:
        await stream.send_all(ask)
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
    found = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"location:"))
    parts = urlsplit(found.split(b":", 1)[1].strip().decode())
    return f"{parts.path}?{parts.query}"


# --- an address without an account --------------------------------------------------------------


async def trickled_logins(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Large bodies for a login, all but a byte of each, held open."""
    head = f"POST /v1/login HTTP/1.1\r\nHost: n\r\nContent-Length: {TRICKLED}\r\n\r\n".encode()

    async def hold() -> None:
        while True:
            try:
                async with await self.target.connect() as stream:
                    await stream.send_all(head)
                    for _ in range(TRICKLED // 65536 - 1):
                        await stream.send_all(bytes(65536))
                    for _ in range(65535):
                        await trio.sleep(1)
                        await stream.send_all(b"x")
            except (OSError, trio.BrokenResourceError):
                self.target.answers["cut"] += 1
                await trio.sleep(0.05)

    return [hold] * 40


async def idle_connections(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Three thousand connections that say nothing, made again when they are cut."""

    async def hold() -> None:
        while True:
            try:
                async with await self.target.connect() as stream:
                    await stream.receive_some()
            except (OSError, trio.BrokenResourceError):
                pass  # refused or reset: that is an answer too
            self.target.answers["cut"] += 1
            await trio.sleep(0.5)

    return [hold] * 3000


async def tls_and_rubbish(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Six hundred connections over TLS that ask for a little and go on with rubbish, which has to
    be decrypted and kept somewhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = request("GET", "/healthz") + os.urandom(900_000)

    async def hold() -> None:
        while True:
            try:
                async with await self.target.connect() as plain:
                    stream = trio.SSLStream(plain, context, https_compatible=True)
                    await stream.send_all(said)
                    while await stream.receive_some():
                        pass
            except (OSError, trio.BrokenResourceError):
                pass  # refused or reset: that is an answer too
            self.target.answers["cut"] += 1
            await trio.sleep(0.5)

    return [hold] * 600


async def unlimited_paths(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Paths that look like those which nobody counts, as long as they may be."""
    rest = "x" * 7000
    asks = itertools.cycle(
        request("GET", path + rest) for path in ("/healthz", "/readyz", "/chunks/", "/blobs/")
    )
    return [functools.partial(self.target.hammer, lambda: next(asks))] * 16


async def guessed_passwords(self: Attacker) -> list[Callable[[], Awaitable[None]]]:
    """Passwords of the account that works, from two hundred addresses."""

    def make() -> bytes:
        tried = LoginRequest(self.victim.friend, os.urandom(8).hex(), "guess")
        return request("POST", "/v1/login", None, msgspec.msgpack.encode(tried))

    return [functools.partial(self.target.hammer, make, source) for source in SOURCES]


ATTACKS: dict[str, Entry] = {
    "renames, deep": Entry("account", deep_renames),
    "trash, deep": Entry("account", deep_trash),
    "links with passwords": Entry("account", link_passwords),
    "names tried by sharing": Entry("account", names_tried),
    "shares unasked": Entry("account", unasked_shares),
    "tiny chunks promised": Entry("account", tiny_promises),
    "archives too large": Entry("visitor", archives),
    "pages of many names": Entry("visitor", pages_of_names),
    "small ranges": Entry("visitor", small_ranges),
    "logins trickled": Entry("address", trickled_logins),
    "connections idle": Entry("address", idle_connections),
    "TLS and rubbish": Entry("address", tls_and_rubbish),
    "paths not counted": Entry("address", unlimited_paths),
    "passwords guessed": Entry("address", guessed_passwords),
}


async def attack(name: str, victim: Victim) -> Outcome:
    """Prepare, say so, attack until standard input ends."""
    timeouts = Timeouts(read=300)
    async with ApiClient(victim.url, None, insecure=True, timeouts=timeouts) as api:
        login = LoginRequest(victim.account, victim.password, name)
        reply = await api.login(login)
        api.use_token(reply.token)
        attacker = Attacker(api, victim, (await api.me()).root, reply.token)
        running = await ATTACKS[name].attack(attacker)
        print("ready", flush=True)
        attacker.target.answers = Counter()
        async with trio.open_nursery() as nursery:
            for item in running:
                nursery.start_soon(item)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    return Outcome(dict(attacker.target.answers), attacker.prepared)


def main() -> None:
    # What is answered goes to standard output, and what the client logs must not.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    victim = msgspec.json.decode(sys.stdin.readline(), type=Victim)
    outcome = trio.run(attack, sys.argv[1], victim)
    print(msgspec.json.encode(outcome).decode(), flush=True)


if __name__ == "__main__":
    main()
