"""The daemon's answers to commands about people, over a real tree and a made-up server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
import trio
import trio.testing

from cache.metadata.operations import Op
from cache.metadata.tree import ROOT
from mount import credentials
from mount.control import dispatch
from mount.control import messages as control_messages
from mount.control.account_messages import (
    AccountRequest,
    Emptied,
    LeaveRequest,
    LinksRequest,
    LogRequest,
    MakeLinkRequest,
    ReloadTokenRequest,
    RestoreRequest,
    RevokeDeviceRequest,
    RevokeLinkRequest,
    RotateRequest,
    ShareRequest,
    Shares,
    SharesRequest,
    TrashEmptyRequest,
    TrashRequest,
    TrashRestoreRequest,
    UnshareRequest,
)
from mount.control.context import CommandContext, one_of
from mount.failures import Failure
from mount.session.relogin import Relogin
from remote.protocol import account_messages, errors, messages
from remote.protocol.errors import Refused, Unauthorized, Unreachable
from tests.cache.state import ROOT_FILE, State, new_file

LINK = account_messages.LinkInfo(
    id="1" * 32, file=ROOT_FILE, name="n", created_ns=1, expires_ns=None, has_password=False,
    max_downloads=None, downloads=0,
)  # fmt: skip


class Server:
    """Stands where `ApiClient` does. `replies[name]` is what that method gives: a value, an error,
    or a list of them to be given one after the other."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.tokens: list[str | None] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments))
            reply = self.replies[name]
            if callable(reply):
                reply = reply(*arguments, **named)
            if isinstance(reply, list):
                reply = reply.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        return call

    @property
    def token(self) -> str | None:
        return self.tokens[-1] if self.tokens else None

    def use_token(self, token: str) -> None:
        self.tokens.append(token)

    def with_token(self, _token: str) -> Server:
        return self

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


class Replayer:
    """`flush` returns when the test says so."""

    def __init__(self) -> None:
        self.waiting_because: str | None = None
        self.flushed: list[Callable[[Op], bool]] = []
        self.begun, self.done = trio.Event(), trio.Event()

    async def flush(self, which: Callable[[Op], bool]) -> None:
        self.flushed.append(which)
        self.begun.set()
        await self.done.wait()


class Session:
    """The parts of `mount.session.session.Session` that commands use."""

    def __init__(self, state: State, server: Server) -> None:
        self.db, self.tree, self.journal = state.db, state.tree, state.journal
        self.client, self.replayer = server, Replayer()
        self.relogin: Relogin
        self.uploader = SimpleNamespace(progress={})
        self.subscriber = SimpleNamespace(is_offline=False, sync=self._sync)
        self.events: list[str] = []
        self.adopted: list[Any] = []

    @property
    def offline_because(self) -> str | None:
        return "no route" if self.subscriber.is_offline else None

    async def ensure_listed(self, ino: int) -> None:
        return None

    def require_online(self) -> None:
        if self.subscriber.is_offline:
            raise Unreachable("offline: no route")

    async def _sync(self) -> None:
        self.events.append("sync")


class Site:
    """One mount's commands."""

    def __init__(self, state: State) -> None:
        self.state, self.server = state, Server()
        self.session = Session(state, self.server)
        self.session.replayer.done.set()
        config = SimpleNamespace(
            read_only=False, url="http://localhost:1", account="Anna", mountpoint=Path("/m")
        )
        self.config: Any = config
        self.session.relogin = Relogin(
            self.config,
            self.server,  # type: ignore[arg-type]  # ditto
            state.db,
            self.session.adopted.append,
            lambda: self.session.events.append("taken"),
        )
        self.context = CommandContext(self.config, self.session, self.told)  # type: ignore[arg-type]  # ditto
        self.reports: list[control_messages.Progress] = []

    async def told(self) -> None:
        self.session.events.append("told")

    async def report(self, progress: control_messages.Progress) -> None:
        self.reports.append(progress)

    async def ask(self, request: AccountRequest) -> Any:
        return await dispatch.answer(self.context, request, self.report)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    found = State(tmp_path)
    yield found
    found.close()


@pytest.fixture
async def site(state: State) -> Site:
    return Site(state)


def applied(*_: Any) -> messages.ApplyReply:
    change = messages.Change(drive="e" * 32, seq=1, at_ns=1, device="d" * 32, files=[], entries=[])
    return messages.ApplyReply([messages.Applied(change=change)])


def test_every_request_has_its_answerer() -> None:
    assert set(dispatch.ANSWERERS) == set(get_args(AccountRequest))


def test_requests_and_answers_survive_the_socket() -> None:
    tags = [item.__struct_config__.tag for item in get_args(control_messages.Request)]
    assert len(set(tags)) == len(tags)
    request = RestoreRequest(path="a", version="x", at=[1, 2])
    assert control_messages.decode_request(control_messages.encode(request)) == request
    for kind in get_args(control_messages.Answer):
        assert msgspec.json.schema(kind)


# --- before: the server knows what the person sees ----------------------------------------------


async def test_what_was_just_written_goes_first(site: Site, nursery: trio.Nursery) -> None:
    """Only then is the server asked about it."""
    file, other = await site.state.save("a"), await site.state.save("b")
    replayer = site.session.replayer
    replayer.done = trio.Event()
    site.server.replies["shares"] = account_messages.SharesReply("anna", [])
    done = trio.Event()

    async def run() -> None:
        await site.ask(SharesRequest("a"))
        done.set()

    nursery.start_soon(run)
    await replayer.begun.wait()
    picked = {op.ino for op in site.state.journal if replayer.flushed[0](op)}
    assert picked == {file.ino}
    assert other.ino not in picked
    assert site.server.calls == []
    replayer.done.set()
    await done.wait()
    assert site.server.named("shares") == [(file.file,)]


async def test_nothing_waits_when_the_server_has_it(site: Site) -> None:
    record = site.state.born("a")
    site.server.replies["shares"] = account_messages.SharesReply("anna", [])
    assert await site.ask(SharesRequest("a")) == Shares(path="a", owner="anna", grants=[])
    assert site.session.replayer.flushed == []
    assert site.server.named("shares") == [(record.id,)]


async def test_what_is_reached_otherwise_is_told_by_its_path(site: Site) -> None:
    team = site.state.born("team", kind="directory")
    other = site.state.born("other", seq=2, kind="directory")
    known, unknown = (
        account_messages.Reached(
            account="ben", role="editor", file="a" * 32, parent=parent, name="plan"
        )
        for parent in (other.id, "b" * 32)
    )
    reply = account_messages.SharesReply("anna", [], [known, unknown], True)
    site.server.replies |= {"unshare": None, "shares": reply}
    told = await site.ask(UnshareRequest("team", "ben"))
    assert [item.path for item in told.reached] == ["other/plan", None]
    assert told.more_reached
    assert site.server.named("unshare") == [(team.id, "ben")]


async def test_what_was_given_out_by_another_name_is_told_with_that(site: Site) -> None:
    """By its path, if the folder where it was is known here."""
    folder = site.state.born("folder", kind="directory")
    file = site.state.born("plan~", seq=2)
    known, unknown = (
        account_messages.Entry(folder.id, "plan"),
        account_messages.Entry("b" * 32, "plan"),
    )
    grant = account_messages.Grant(
        file=file.id, account="ben", role="viewer", granted_by="anna", at_ns=1, was=known
    )
    link = msgspec.structs.replace(LINK, file=file.id, name="plan~")
    listed = [msgspec.structs.replace(link, was=was) for was in (known, unknown, None)]
    site.server.replies |= {
        "shares": account_messages.SharesReply("anna", [grant]),
        "links": account_messages.LinksReply(listed),
    }
    (shared,) = (await site.ask(SharesRequest("plan~"))).grants
    assert (shared.path, shared.was_name, shared.was_path) == ("plan~", "plan", "folder/plan")
    links = (await site.ask(LinksRequest())).links
    assert {item.path for item in links} == {"plan~"}
    told = [(item.was_name, item.was_path) for item in links]
    assert told == [("plan", "folder/plan"), ("plan", None), (None, None)]


async def test_what_waits_is_reported_and_given_up_when_offline(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    node = await site.state.save("a")
    (op,) = site.state.journal
    site.session.uploader.progress[op.key] = SimpleNamespace(bytes_done=3, bytes_total=9)
    site.session.replayer.done = trio.Event()
    async with trio.open_nursery() as nursery:

        async def go_offline() -> None:
            await trio.sleep(2.5)
            site.session.subscriber.is_offline = True

        nursery.start_soon(go_offline)
        with pytest.raises(Failure, match="try again when"):
            await site.ask(SharesRequest("a"))
    assert [(item.bytes_done, item.bytes_total) for item in site.reports] == [(3, 9), (3, 9)]
    assert site.server.calls == []
    assert site.state.tree.find(node.ino) is not None


async def test_what_the_server_refused_is_said(site: Site) -> None:
    await site.state.save("a")
    (op,) = site.state.journal
    with site.state.db.transaction():
        site.state.journal.rewrite(op, refused="quota_exceeded: full")
    with pytest.raises(Failure, match="quota_exceeded: full"):
        await site.ask(SharesRequest("a"))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (errors.Forbidden(message="only its owner shares it"), "shares it; ask whoever owns it"),
        (errors.BadRequest(message="no; do that"), "refused: no; do that$"),
        (errors.RateLimited(message="too often"), "too often; try again in a minute"),
        (errors.Stale(message="moved on"), "moved on; check what"),
    ],
)
async def test_a_refusal_says_what_to_do(site: Site, problem: errors.Problem, words: str) -> None:
    site.state.born("a")
    site.server.replies["shares"] = errors.Refused(problem)
    with pytest.raises(Failure, match=words):
        await site.ask(SharesRequest("a"))


# --- operations ---------------------------------------------------------------------------------


def versions(*ids: str, current: int = 0) -> messages.VersionsPage:
    """Newest first."""
    return messages.VersionsPage(
        versions=[
            messages.VersionInfo(
                id=one, file=ROOT_FILE, size=1, mtime_ns=1, created_ns=(len(ids) - at) * 10**9,
                device="laptop", status="uploaded", current=at == current,
            )
            for at, one in enumerate(ids)
        ]
    )  # fmt: skip


async def test_no_answer_is_asked_for_again_with_the_same_key(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """The first one may have been carried out."""
    site.state.born("a")
    site.server.replies["versions"] = versions("b" * 32, "a" * 32)
    site.server.replies["apply"] = [Unreachable("broke off"), applied()]
    done = await site.ask(RestoreRequest(path="a"))
    first, second = (request for (request,) in site.server.named("apply"))
    assert first == second
    assert first.ops[0].op.version == done.version == "a" * 32
    assert site.session.events == ["sync", "told"]


async def test_three_times_without_an_answer_is_enough(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    site.state.born("a")
    site.server.replies["versions"] = versions("b" * 32, "a" * 32)
    site.server.replies["apply"] = [Unreachable("broke off")] * 4
    with pytest.raises(Failure, match="broke off"):
        await site.ask(RestoreRequest(path="a"))
    assert len(site.server.named("apply")) == 3


async def test_a_read_only_mount_restores_nothing(site: Site) -> None:
    site.state.born("a")
    site.config.read_only = True
    site.server.replies["versions"] = versions("b" * 32, "a" * 32)
    for request in (
        RestoreRequest(path="a"),
        TrashEmptyRequest(),
    ):
        with pytest.raises(Failure, match="read-only"):
            await site.ask(request)
    assert site.server.named("apply") == []


async def test_the_current_version_is_there_already(site: Site) -> None:
    site.state.born("a")
    site.server.replies["versions"] = versions("b" * 32, "a" * 32)
    await site.ask(RestoreRequest(path="a", version="b" * 8))
    assert site.server.named("apply") == []


async def test_history_of_many_pages(site: Site) -> None:
    site.state.born("a.txt")
    first, second = versions("c" * 32, "b" * 32), versions("a" * 32, current=-1)
    first.next = "more"
    first.versions[0].base = "a" * 32  # its writer had not seen b
    first.versions[1].base = "a" * 32
    site.server.replies["versions"] = [first, second]
    found = await site.ask(LogRequest("a.txt"))
    assert [item.id[0] for item in found.versions] == ["c", "b", "a"]
    assert [item.overtook for item in found.versions] == ["b" * 32, None, None]
    assert found.versions[0].path == "a.txt@@/1970-01-01T00.00.02Z-cccccccc.txt"


# --- the trash ----------------------------------------------------------------------------------


class Trash:
    """A server's trash: what is in it by directory, and what putting back answers."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str | None, list[account_messages.TrashItem]] = {None: []}
        self.refuse: list[tuple[Callable[[messages.Recover], bool], errors.Problem]] = []
        self.recovered: list[messages.Recover] = []
        server.replies |= {"trash": self.page, "apply": self.apply}

    def add(self, path: str, under: str | None = None, kind: messages.Kind = "file") -> str:
        file = new_file()
        record = messages.FileRecord(
            id=file, kind=kind, mode=0, mtime_ns=1, ctime_ns=1, links=0, rev=1
        )
        item = account_messages.TrashItem(
            file=record, path=path, parent=under or ROOT_FILE, name=path.rpartition("/")[2],
            trashed_ns=len(self.items[None]), expires_ns=2,
        )  # fmt: skip
        self.items.setdefault(under, []).append(item)
        return file

    def page(
        self,
        parent: str | None = None,
        cursor: str | None = None,
        *,
        name: str | None = None,
        ending: str | None = None,
    ) -> account_messages.TrashPage:
        """One item a page."""
        items, at = self.items.get(parent, []), int(cursor or 0)
        if ending is not None:
            every = [item for some in self.items.values() for item in some]
            items = [item for item in every if item.file.id.endswith(ending)]
        items = [item for item in items if name in (None, item.name)]
        more = str(at + 1) if at + 1 < len(items) else None
        return account_messages.TrashPage(items=items[at : at + 1], next=more)

    def apply(self, request: messages.ApplyRequest) -> messages.ApplyReply:
        return messages.ApplyReply([self._answer(keyed.op) for keyed in request.ops])

    def _answer(self, op: Any) -> Any:
        for matches, problem in self.refuse:
            if matches(op):
                return problem
        self.recovered.append(op)
        return applied().results[0]


async def test_a_directory_comes_back_before_what_was_in_it(site: Site) -> None:
    trash = Trash(site.server)
    top = trash.add("top", kind="directory")
    inner = trash.add("top/inner", top, kind="directory")
    leaves = [trash.add("top/leaf", top), trash.add("top/inner/leaf", inner)]
    done = await site.ask(TrashRestoreRequest(said="top", path="top"))
    order = [op.file for op in trash.recovered]
    assert set(order) == {top, inner, *leaves}
    assert order[0] == top
    assert order.index(inner) < order.index(leaves[1])
    assert (done.files, done.left) == (4, [])


async def test_a_name_that_is_taken(site: Site) -> None:
    trash = Trash(site.server)
    trash.add("d/a.txt", "f" * 32)
    trash.items[None] = trash.items["f" * 32]
    trash.refuse.append((lambda op: op.name in ("a.txt", "a (restored).txt"), errors.Exists()))
    await site.ask(TrashRestoreRequest(said="x", path="d/a.txt"))
    (op,) = trash.recovered
    assert (op.parent, op.name) == ("f" * 32, "a (restored 2).txt")


async def test_a_place_that_is_gone_but_has_a_successor(site: Site) -> None:
    trash = Trash(site.server)
    trash.add("d/a.txt")
    fresh = site.state.born("d", kind="directory")
    site.state.list_directory(site.state.listing()["d"], [], 1)
    trash.refuse.append((lambda op: op.parent == ROOT_FILE, errors.NotFound()))
    await site.ask(TrashRestoreRequest(said="x", path="d/a.txt"))
    assert [(op.parent, op.name) for op in trash.recovered] == [(fresh.id, "a.txt")]


async def test_one_thing_comes_back_out_of_a_deleted_folder(site: Site) -> None:
    """Its folder is made anew, as it was, in the one above, which is there."""
    trash = Trash(site.server)
    above = site.state.born("above", kind="directory")
    site.state.list_directory(site.state.listing()["above"], [], 1)
    top = trash.add("above/top", kind="directory")
    inner = trash.add("above/top/inner", top, kind="directory")
    trash.add("above/top/other", top)
    wanted, _ = trash.add("above/top/inner/a", inner), trash.add("above/top/inner/b", inner)
    for folder in (top, inner):
        trash.refuse.append((lambda op, at=folder: op.parent == at, errors.NotFound()))
    done = await site.ask(TrashRestoreRequest(said="x", path="above/top/inner/a"))
    first, second, last = trash.recovered
    assert [(op.parent, op.name, op.mode) for op in (first, second)] == [
        (above.id, "top", 0),
        (first.file, "inner", 0),
    ]
    assert not {first.file, second.file} & {top, inner}
    assert (last.file, last.parent, last.name) == (wanted, second.file, "a")
    assert (done.files, done.left) == (1, [])


async def test_a_folder_whose_name_is_taken_by_a_file_gets_another(site: Site) -> None:
    trash = Trash(site.server)
    site.state.born("top")
    top = trash.add("top", kind="directory")
    trash.add("top/a", top)
    trash.refuse.append((lambda op: op.parent == top, errors.NotFound()))
    trash.refuse.append((lambda op: op.name == "top", errors.Exists()))
    await site.ask(TrashRestoreRequest(said="x", path="top/a"))
    assert [op.name for op in trash.recovered] == ["top (restored)", "a"]


async def test_what_was_deleted_before_its_folder_is_found_in_it_too(site: Site) -> None:
    trash = Trash(site.server)
    top = trash.add("top", kind="directory")
    with_it, before = trash.add("top/a", top), trash.add("top/before")
    trash.add("top/sub", top, kind="directory")
    trash.add("elsewhere")
    listed = await site.ask(TrashRequest(said="x", path="top"))
    assert {item.id for item in listed.items} >= {with_it, before}
    assert {item.path for item in listed.items} == {"top/a", "top/before", "top/sub"}
    same = await site.ask(TrashRequest(said=top[-8:]))
    assert same == listed
    alone = await site.ask(TrashRequest(said="x", path="top/a"))
    assert [item.id for item in alone.items] == [with_it]
    with pytest.raises(Failure, match="`nearline trash list top` shows what is"):
        await site.ask(TrashRequest(said="x", path="top/never"))


async def test_what_is_inside_is_known_by_its_id(site: Site) -> None:
    trash = Trash(site.server)
    top = trash.add("top", kind="directory")
    file = trash.add("top/a", top)
    site.state.born("to", kind="directory")
    site.state.list_directory(site.state.listing()["to"], [], 1)
    await site.ask(TrashRestoreRequest(said=file[-8:], to="to"))
    assert [op.file for op in trash.recovered] == [file]
    site.server.replies["empty_trash"] = [account_messages.EmptiedReply(1, False)]
    assert await site.ask(TrashEmptyRequest(said="x", path="top/a")) == Emptied(1)


async def test_a_place_that_is_gone(site: Site) -> None:
    trash = Trash(site.server)
    file = trash.add("…/d/a.txt")
    trash.refuse.append((lambda op: op.parent == ROOT_FILE, errors.NotFound()))
    with pytest.raises(Failure, match=f"nearline trash restore {file} --to DIR"):
        await site.ask(TrashRestoreRequest(said=file))
    assert trash.recovered == []


async def test_what_does_not_come_back_is_named(site: Site) -> None:
    trash = Trash(site.server)
    top = trash.add("top", kind="directory")
    bad = trash.add("top/bad", top)
    trash.add("top/good", top)
    full = errors.QuotaExceeded(message="the drive is full")
    trash.refuse.append((lambda op: op.file == bad, full))
    done = await site.ask(TrashRestoreRequest(said="top", path="top"))
    assert (done.files, done.left) == (2, ["top/bad: the drive is full"])


async def test_the_rest_of_a_batch_is_sent_again(site: Site) -> None:
    """A server that others wait for answers a part."""
    trash, asked = Trash(site.server), list[int]()
    top = trash.add("top", kind="directory")
    leaves = [trash.add(f"top/{n}", top) for n in range(5)]

    def answer_two(request: messages.ApplyRequest) -> messages.ApplyReply:
        asked.append(len(request.ops))
        done = trash.apply(messages.ApplyRequest(request.ops[:2])).results
        return messages.ApplyReply(done + [errors.Unavailable()] * (len(request.ops) - len(done)))

    site.server.replies["apply"] = answer_two
    done = await site.ask(TrashRestoreRequest(said="top", path="top"))
    assert (done.files, done.left) == (6, [])
    assert [op.file for op in trash.recovered] == [top, *leaves]
    assert asked == [1, 5, 3, 1]


async def test_the_newest_of_a_path_is_meant(site: Site) -> None:
    trash = Trash(site.server)
    trash.add("a")
    newest = trash.add("a")
    await site.ask(TrashRestoreRequest(said="a", path="a"))
    assert [op.file for op in trash.recovered] == [newest]


async def test_restore_looks_in_the_trash(site: Site) -> None:
    trash = Trash(site.server)
    file = trash.add("a")
    await site.ask(RestoreRequest(path="a"))
    (op,) = trash.recovered
    assert (op.file, op.parent, op.name) == (file, ROOT_FILE, "a")
    trash.add("top", kind="directory")
    with pytest.raises(Failure, match="no top/a in the trash; `nearline trash list top`"):
        await site.ask(RestoreRequest(path="top/a"))
    with pytest.raises(Failure, match="none in the trash"):
        await site.ask(RestoreRequest(path="never"))


async def test_what_was_deleted_a_moment_ago_goes_first(site: Site) -> None:
    site.state.born("a")
    site.state.unlink("a")
    Trash(site.server)
    await site.ask(TrashRequest())
    (which,) = site.session.replayer.flushed
    assert [which(op) for op in site.state.journal] == [True]


async def test_emptying_goes_on_until_nothing_is_left(site: Site) -> None:
    more = [
        account_messages.EmptiedReply(500, True),
        account_messages.EmptiedReply(3, False),
    ]
    site.server.replies["empty_trash"] = more
    assert await site.ask(TrashEmptyRequest()) == Emptied(503)
    assert site.server.named("empty_trash") == [(account_messages.EmptyTrash(None),)] * 2
    file = Trash(site.server).add("a")
    site.server.replies["empty_trash"] = [account_messages.EmptiedReply(1, False)]
    await site.ask(TrashEmptyRequest(said="a", path="a"))
    assert site.server.named("empty_trash")[-1] == (account_messages.EmptyTrash([file]),)


# --- sharing, links, devices --------------------------------------------------------------------


def shared(name: str | None) -> messages.SharedRoot:
    record = messages.FileRecord(id=new_file(), kind="file", mode=0, mtime_ns=1, ctime_ns=1, rev=1)
    return messages.SharedRoot(file=record, drive="b" * 32, owner="ben", name=name, role="viewer")


async def test_leaving_is_by_the_place_in_the_mount(site: Site) -> None:
    here, below = shared("Plan"), shared(None)
    site.server.replies |= {
        "shared": account_messages.SharedReply([below, here]),
        "unshare": None,
    }
    await site.ask(LeaveRequest("Shared/ben/Plan"))
    assert site.server.named("unshare") == [(here.file.id, "anna")]  # as the server spells it
    assert site.session.events == ["sync", "told"]
    with pytest.raises(Failure, match="part of Shared/ben/Plan; leave that"):
        await site.ask(LeaveRequest("Shared/ben/Plan/x"))
    with pytest.raises(Failure, match="nobody shares"):
        await site.ask(LeaveRequest("elsewhere"))


async def test_a_folder_that_only_the_mount_makes_cannot_be_shared(site: Site) -> None:
    with site.state.db.transaction():
        node = site.state.make("Shared-like", "directory")
        site.state.tree.update(node.ino, drive="")
    with pytest.raises(Failure, match="only how this mount shows"):
        await site.ask(ShareRequest("Shared-like", "ben", "viewer"))


async def test_a_file_with_several_names_is_shared_by_the_one_that_was_typed(site: Site) -> None:
    """Of one with a single name nothing is said: an older server would refuse it."""
    folder, record = site.state.born("folder", kind="directory"), site.state.born("a")
    site.server.replies |= {
        "share": account_messages.SharesReply("anna", []),
        "make_link": account_messages.LinkMade(LINK, "https://x/s/y"),
    }

    async def told() -> list[Any]:
        await site.ask(ShareRequest("folder//b", "ben", "viewer"))
        await site.ask(MakeLinkRequest(path="folder/b"))
        return [site.server.named(name)[-1][1].entry for name in ("share", "make_link")]

    node, there = site.state.tree.live(record.id), site.state.tree.live(folder.id)
    assert node is not None
    assert there is not None
    with site.state.db.transaction():
        site.state.tree.update(there.ino, listed=1)
        site.state.tree.add_entry(there.ino, "b", node)
    assert await told() == [None, None]
    with site.state.db.transaction():
        site.state.tree.update(node.ino, links=2)
    assert await told() == [account_messages.Entry(folder.id, "b")] * 2


async def test_a_link_that_is_offline_for_the_feed_is_made_all_the_same(site: Site) -> None:
    """`shown` fails after what was asked for was done: that is no failure."""
    site.state.born("a")
    site.server.replies["versions"] = versions("b" * 32, "a" * 32)
    site.server.replies["apply"] = applied

    async def broken() -> None:
        raise Unreachable("broke off")

    site.session.subscriber.sync = broken
    assert (await site.ask(RestoreRequest(path="a"))).version == "a" * 32


async def test_links_by_the_end_of_their_id(site: Site) -> None:
    other = msgspec.structs.replace(LINK, id="2" * 32)
    site.server.replies |= {
        "links": account_messages.LinksReply([LINK, other]),
        "revoke_link": None,
    }
    await site.ask(RevokeLinkRequest("22222222"))
    assert site.server.named("revoke_link") == [("2" * 32,)]


def test_ids() -> None:
    ids = ["aaaaaa111111", "aaaaaa222222"]
    assert one_of(ids, "222222", "link") == "aaaaaa222222"
    assert one_of(ids, "aaaaaa1", "link") == "aaaaaa111111"
    for said, words in (("aaaaaa", "means 2"), ("bbbbbb", "no link"), ("1111", "too short")):
        with pytest.raises(Failure, match=words):
            one_of(ids, said, "link")


def device(id: str, name: str, *, current: bool = False) -> account_messages.DeviceInfo:
    return account_messages.DeviceInfo(
        id=id * 32, name=name, scope="full", folder=None, created_ns=1, expires_ns=None,
        seen_ns=None, current=current,
    )  # fmt: skip


async def test_revoking_a_device(site: Site) -> None:
    known = [device("1", "laptop", current=True), device("2", "phone"), device("3", "phone")]
    site.server.replies |= {
        "devices": account_messages.DevicesReply(known),
        "revoke_device": None,
    }
    with pytest.raises(Failure, match="2 devices are called phone"):
        await site.ask(RevokeDeviceRequest(said="phone"))
    await site.ask(RevokeDeviceRequest(said="33333333"))
    with pytest.raises(Failure, match="say --own"):
        await site.ask(RevokeDeviceRequest(said="laptop"))
    await site.ask(RevokeDeviceRequest(said="laptop", own_too=True))
    assert site.server.named("revoke_device") == [("3" * 32,), ("1" * 32,)]


async def test_a_rotated_token_is_used_and_kept(site: Site, home: Path) -> None:
    site.server.replies["rotate"] = account_messages.TokenReply("new-token", "d" * 32)
    site.server.replies["me"] = None
    done = await site.ask(RotateRequest())
    assert site.server.tokens == ["new-token"]
    assert [name for name, *_ in site.server.calls] == ["rotate", "me"]  # which ends the old one
    assert credentials.load(site.config.url, site.config.account) == "new-token"
    assert "new-token" not in done.message


async def test_a_rotation_whose_answer_is_lost_is_asked_for_again(
    site: Site, home: Path, autojump_clock: trio.testing.MockClock
) -> None:
    lost, token = Unreachable("broke off"), account_messages.TokenReply("new-token", "d" * 32)
    site.server.replies |= {"rotate": [lost, token], "me": lost}
    await site.ask(RotateRequest())
    assert site.server.tokens == ["new-token"]
    site.server.replies["rotate"] = [lost] * 3
    with pytest.raises(Failure, match="rotate again within ten minutes"):
        await site.ask(RotateRequest())


async def test_a_token_that_cannot_be_kept_is_used_all_the_same(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: str) -> str:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(credentials, "save", full)
    site.server.replies["rotate"] = account_messages.TokenReply("new-token", "d" * 32)
    with pytest.raises(Failure, match="nearline login"):
        await site.ask(RotateRequest())
    assert site.server.tokens == ["new-token"]


async def test_a_token_that_is_not_the_kept_one_is_not_rotated(site: Site, home: Path) -> None:
    """Of NEARLINE_TOKEN, which the mount's process is not given, or of an earlier login: the kept
    one is another device's and stays."""
    credentials.save(site.config.url, site.config.account, "kept")
    site.server.use_token("given")
    with pytest.raises(Failure, match="NEARLINE_TOKEN"):
        await site.ask(RotateRequest())
    assert site.server.calls == []
    assert credentials.load(site.config.url, site.config.account) == "kept"


OURS = {"drive": "e" * 32, "root": "f" * 32, "scope": "full", "device_id": "a" * 32}


@pytest.fixture
def logged_in(site: Site, home: Path) -> Site:
    """Another login is kept than the one that the mount has."""
    credentials.save(site.config.url, site.config.account, "kept")
    site.server.use_token("own")
    with site.state.db.transaction():
        for key in ("drive", "root", "scope"):
            site.state.db.set_meta(key, OURS[key])
        site.state.db.set_meta("device", "d" * 32)
    return site


@pytest.mark.parametrize(("of", "token"), [("d", "kept"), ("a", "own")])
async def test_while_its_token_is_good_a_mount_stays_the_device_that_it_is(
    logged_in: Site, of: str, token: str
) -> None:
    """A token of the same device is from a rotation."""
    logged_in.server.replies["me"] = SimpleNamespace(device_id=of * 32)
    done = await logged_in.ask(ReloadTokenRequest())
    assert logged_in.server.token == token
    assert ("login that is kept" in done.message) == (token == "kept")


async def test_the_kept_login_is_taken_when_the_own_is_refused(logged_in: Site) -> None:
    me = SimpleNamespace(**OURS)
    logged_in.server.replies["me"] = me
    assert await logged_in.session.relogin.refused(Refused(Unauthorized(message="who?")))
    assert logged_in.server.token == "kept"
    assert (logged_in.session.adopted, logged_in.session.events) == ([me], ["taken"])
    assert not await logged_in.session.relogin.refused(Refused(Unauthorized(message="who?")))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"drive": "0" * 32}, "another drive"),
        ({"root": "0" * 32}, "another folder"),
        ({"scope": "read"}, "only read"),
    ],
)
async def test_a_login_that_is_not_for_this_mount_is_not_taken(
    logged_in: Site, other: dict[str, str], why: str
) -> None:
    logged_in.server.replies["me"] = SimpleNamespace(**(OURS | other))
    with pytest.raises(Refused, match=why):
        await logged_in.session.relogin.refused(Refused(Unauthorized(message="who?")))
    assert logged_in.server.token == "own"
    assert logged_in.session.adopted == []


async def test_a_kept_login_that_is_refused_too_changes_nothing(logged_in: Site) -> None:
    refused = Refused(Unauthorized(message="who?"))
    logged_in.server.replies["me"] = refused
    assert not await logged_in.session.relogin.refused(refused)
    assert logged_in.server.token == "own"


async def test_paths_of_the_tree_are_shown(site: Site) -> None:
    inner = site.state.born("a")
    assert site.context.path_of(inner.id) == "a"
    assert site.context.path_of(ROOT_FILE) == ""
    assert site.context.path_of(new_file()) is None
    assert site.state.tree.node(ROOT).live
