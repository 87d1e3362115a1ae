"""Sharing: who may share what, what a grantee sees of it, and what they never see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from remote.protocol import errors, messages
from remote.protocol.account_messages import Entry, Invite, SharedReply, ShareRequest, SharesReply
from server.changes import views
from server.changes.nesting import Nesting, _Found
from server.drive import sharing
from tests.server.deep import chain, counted
from tests.server.harness import Client, Failed, Running, new_id, until


@pytest.fixture
def cleo(server: Running) -> Iterator[Client]:
    client = server.account("cleo")
    yield client
    client.http.close()


def share(
    by: Client, file: str, to: Client, role: Any = "editor", entry: Entry | None = None
) -> SharesReply:
    wanted = ShareRequest(users=[Invite(to.me.account, role)], entry=entry)
    return by.request("POST", f"/v1/files/{file}/share", SharesReply, wanted)


def unshare(by: Client, file: str, account: str) -> None:
    by.request("DELETE", f"/v1/files/{file}/share/{account}", type(None))


def shared(client: Client) -> dict[str | None, messages.SharedRoot]:
    reply = client.request("GET", "/v1/shared", SharedReply)
    return {root.name: root for root in reply.shared}


def refusal(work: Callable[..., Any], *args: Any) -> Any:
    with pytest.raises(Failed) as failed:
        work(*args)
    return failed.value.problem


class Follower:
    """A grantee's device, which knows what the feed tells and nothing else."""

    def __init__(self, client: Client) -> None:
        self.client, self.cursor = client, client.me.cursor
        self.roots: dict[str | None, messages.SharedRoot] = {}
        self.files: dict[str, messages.FileRecord] = {}
        self.names: dict[tuple[str, str], str] = {}

    def pull(self) -> messages.ChangesPage:
        page = self.client.changes(self.cursor)
        assert not page.reset
        self.cursor = page.cursor
        if page.shared is not None:
            self.roots = {root.name: root for root in page.shared}
        for change in page.changes:
            self.files |= {record.id: record for record in change.files}
            for entry in change.entries:
                self.names.pop((entry.parent, entry.name), None)
                if entry.file is not None:
                    self.names[entry.parent, entry.name] = entry.file
        return page


# --- giving and taking --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_is_shared_listed_and_taken_back(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("thesis")
    inside = anna.make("chapter", folder)
    reply = share(anna, folder, ben, "viewer")
    assert reply.owner == anna.me.account
    assert [(g.account, g.role, g.granted_by) for g in reply.grants] == [
        (ben.me.account, "viewer", anna.me.account)
    ]
    root = shared(ben)["thesis"]
    assert (root.owner, root.role, root.file.id) == (anna.me.account, "viewer", folder)
    assert ben.file(inside).role == "viewer"
    assert ben.children(folder).keys() == {"chapter"}
    unshare(anna, folder, ben.me.account)
    assert shared(ben) == {}
    assert isinstance(refusal(ben.file, inside), errors.NotFound)


def test_a_role_given_again_is_changed(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    share(anna, folder, ben, "viewer")
    assert isinstance(ben.refused(ben.create("no", folder)), errors.Forbidden)
    reply = share(anna, folder, ben, "editor")
    assert [grant.role for grant in reply.grants] == ["editor"]
    file = ben.make("yes", folder)
    assert anna.children(folder)["yes"].id == file


def test_a_single_file_is_shared(anna: Client, ben: Client) -> None:
    file, beside = anna.make("one"), anna.make("other")
    share(anna, file, ben)
    assert ben.file(file).role == "editor"
    assert isinstance(refusal(ben.file, beside), errors.NotFound)
    assert isinstance(refusal(ben.file, anna.me.root), errors.NotFound)


def test_only_the_owner_shares(anna: Client, ben: Client, cleo: Client) -> None:
    folder = anna.mkdir("folder")
    assert isinstance(refusal(share, ben, folder, cleo), errors.NotFound)
    share(anna, folder, ben, "editor")
    assert isinstance(refusal(share, ben, folder, cleo), errors.Forbidden)
    assert isinstance(refusal(unshare, ben, folder, anna.me.account), errors.Forbidden)
    assert shared(cleo) == {}


def test_all_of_a_list_or_none(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    both = ShareRequest(users=[Invite(ben.me.account, "viewer"), Invite("nobody", "viewer")])
    path = f"/v1/files/{folder}/share"
    assert isinstance(refusal(anna.request, "POST", path, SharesReply, both), errors.NotFound)
    assert shared(ben) == {}


def test_what_cannot_be_shared(anna: Client, ben: Client) -> None:
    link = anna.make("link", kind="symlink", target="x")
    gone = anna.make("gone")
    anna.do(messages.Unlink(file=gone, parent=anna.me.root, name="gone"))
    for file in (link, anna.me.root):
        assert isinstance(refusal(share, anna, file, ben), errors.BadRequest)
    assert isinstance(refusal(share, anna, gone, ben), errors.NotFound)
    assert isinstance(refusal(share, anna, anna.mkdir("d"), anna), errors.BadRequest)


def test_a_grantee_leaves(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    share(anna, folder, ben, "viewer")
    unshare(ben, folder, ben.me.account)
    assert shared(ben) == {}
    assert isinstance(refusal(unshare, ben, folder, ben.me.account), errors.NotFound)


def test_grantees_do_not_see_each_other(anna: Client, ben: Client, cleo: Client) -> None:
    folder = anna.mkdir("folder")
    share(anna, folder, ben)
    share(anna, folder, cleo)
    seen = ben.request("GET", f"/v1/files/{folder}/shares", SharesReply)
    assert [grant.account for grant in seen.grants] == [ben.me.account]
    inside = anna.make("inside", folder)
    all_of_them = anna.request("GET", f"/v1/files/{inside}/shares", SharesReply)
    assert {grant.account for grant in all_of_them.grants} == {ben.me.account, cleo.me.account}
    assert {grant.file for grant in all_of_them.grants} == {folder}


def test_sharing_with_one_has_a_limit(
    anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_SHARED_WITH_ONE", 1)
    share(anna, anna.mkdir("a"), ben)
    assert isinstance(refusal(share, anna, anna.mkdir("b"), ben), errors.TooLarge)


# --- names --------------------------------------------------------------------------------------


def test_names_are_told_apart_and_nested_ones_have_none(anna: Client, ben: Client) -> None:
    left, right = anna.mkdir("left"), anna.mkdir("right")
    one, other = anna.make("notes.txt", left), anna.make("notes.txt", right)
    for file in (one, other):
        share(anna, file, ben, "viewer")
    found = shared(ben)
    assert {name: root.file.id for name, root in found.items()} == {
        "notes.txt": one,
        "notes (2).txt": other,
    }
    share(anna, right, ben, "viewer")
    assert shared(ben).keys() == {"notes.txt", "right", None}
    anna.do(
        messages.Rename(
            file=right, parent=anna.me.root, name="right", new_parent=anna.me.root, new_name="new"
        )
    )
    assert shared(ben).keys() == {"notes.txt", "new", None}


def with_two_names(anna: Client) -> tuple[str, str, str]:
    """A file called `why` in one directory, and since then `plan` in another: it, and those."""
    private, public = anna.mkdir("private"), anna.mkdir("public")
    file = anna.make("why", private)
    anna.do(messages.Link(file=file, parent=public, name="plan"))
    return file, private, public


def rename(by: Client, file: str, old: tuple[str, str], new: tuple[str, str]) -> None:
    (parent, name), (new_parent, new_name) = old, new
    by.do(
        messages.Rename(
            file=file, parent=parent, name=name, new_parent=new_parent, new_name=new_name
        )
    )


def test_the_name_that_was_shared_is_told_and_no_other_ever(anna: Client, ben: Client) -> None:
    file, private, public = with_two_names(anna)
    share(anna, file, ben, entry=Entry(public, "plan"))
    feed = Follower(ben)
    feed.pull()
    assert shared(ben).keys() == {"plan"}
    rename(anna, file, (private, "why"), (private, "a secret"))  # not what was shared
    assert shared(ben).keys() == {"plan"}
    rename(anna, file, (public, "plan"), (public, "better plan"))
    assert shared(ben).keys() == {"better plan"}
    anna.do(messages.Unlink(file=file, parent=public, name="better plan"))
    assert shared(ben).keys() == {"better plan"}  # as it was called last
    rename(anna, file, (private, "a secret"), (anna.me.root, "known to anna"))
    assert shared(ben).keys() == {"better plan"}
    told = msgspec.msgpack.encode(feed.pull())
    assert b"secret" not in told
    assert b"known to" not in told


def test_without_a_name_it_is_the_one_that_was_there_first(anna: Client, ben: Client) -> None:
    """Not the first in the alphabet; and a role that is given again tells no other name, unless it
    is asked for."""
    file, private, public = with_two_names(anna)
    share(anna, file, ben)
    assert shared(ben).keys() == {"why"}
    rename(anna, file, (private, "why"), (private, "why?"))  # now the other one is older
    share(anna, file, ben, "viewer")
    assert shared(ben).keys() == {"why?"}
    share(anna, file, ben, entry=Entry(public, "plan"))
    assert shared(ben).keys() == {"plan"}


def test_it_is_shared_by_a_name_that_it_has(anna: Client, ben: Client) -> None:
    file, private, public = with_two_names(anna)
    for entry in (Entry(private, "plan"), Entry(anna.me.root, "why"), Entry(public, "public")):
        assert isinstance(refusal(share, anna, file, ben, "viewer", entry), errors.Stale)
    assert shared(ben) == {}


def test_an_exchange_takes_the_name_along(anna: Client, ben: Client) -> None:
    one, other, root = anna.mkdir("one"), anna.mkdir("other"), anna.me.root
    for file in (one, other):
        share(anna, file, ben)
    both = {"other": other, "other_parent": root, "other_name": "other"}
    anna.do(messages.Exchange(file=one, parent=root, name="one", **both))
    found = {name: shown.file.id for name, shown in shared(ben).items()}
    assert found == {"one": other, "other": one}


def test_an_owner_is_told_what_was_shared_by_another_name(anna: Client, ben: Client) -> None:
    """As long as it has that other name. It may be of a directory that others must not know."""
    file, private, public = with_two_names(anna)
    share(anna, file, ben, entry=Entry(private, "why"))

    def was(by: Client) -> Entry | None:
        reply = by.request("GET", f"/v1/files/{file}/shares", SharesReply)
        return reply.grants[0].was

    assert was(anna) is None
    moved = {"new_parent": public, "new_name": "why~"}
    anna.do(messages.Rename(file=file, parent=private, name="why", **moved))
    assert (was(anna), was(ben)) == (Entry(private, "why"), None)
    share(anna, file, ben, "viewer")
    assert was(anna) == Entry(private, "why")
    share(anna, file, ben, entry=Entry(public, "plan"))
    assert was(anna) is None


def test_what_comes_back_elsewhere_was_moved(anna: Client, ben: Client) -> None:
    """If what was deleted last is what was shared: another name is not told by the way."""
    file, private, public = with_two_names(anna)
    share(anna, file, ben, entry=Entry(public, "plan"))
    anna.do(messages.Unlink(file=file, parent=private, name="why"))
    anna.do(messages.Unlink(file=file, parent=public, name="plan"))
    anna.do(messages.Recover(file=file, parent=private, name="plan b"))
    assert shared(ben).keys() == {"plan b"}
    anna.do(messages.Link(file=file, parent=private, name="a secret"))
    anna.do(messages.Unlink(file=file, parent=private, name="plan b"))
    anna.do(messages.Unlink(file=file, parent=private, name="a secret"))
    anna.do(messages.Recover(file=file, parent=public, name="a secret"))
    assert shared(ben).keys() == {"plan b"}


def test_a_trashed_share_sleeps(anna: Client, ben: Client) -> None:
    file = anna.make("file")
    share(anna, file, ben)
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="file"))
    assert shared(ben) == {}
    assert isinstance(refusal(ben.file, file), errors.NotFound)
    anna.do(messages.Link(file=file, parent=anna.me.root, name="again"))
    assert shared(ben).keys() == {"again"}


# --- the feed of a grantee ----------------------------------------------------------------------


def test_the_feed_tells_of_a_new_share_and_then_of_what_happens_in_it(
    anna: Client, ben: Client
) -> None:
    folder, private = anna.mkdir("folder"), anna.mkdir("private")
    feed = Follower(ben)
    assert feed.pull().shared is None
    share(anna, folder, ben)
    assert feed.pull().shared is not None
    assert feed.roots["folder"].file.id == folder
    assert feed.pull().shared is None
    anna.make("hidden", private)
    before = feed.cursor
    assert feed.pull().changes == []
    assert feed.cursor == before  # what goes on elsewhere does not move it
    file = anna.make("told", folder)
    feed.pull()
    assert feed.names == {(folder, "told"): file}
    assert feed.files.keys() == {folder, file}
    own = ben.make("own")
    feed.pull()
    assert feed.names[ben.me.root, "own"] == own


def test_what_moves_out_looks_deleted_and_leaks_nothing(anna: Client, ben: Client) -> None:
    folder, private = anna.mkdir("folder"), anna.mkdir("private")
    inside = anna.mkdir("inside", folder)
    file = anna.make("file", inside)
    share(anna, folder, ben)
    feed = Follower(ben)
    feed.pull()
    move = messages.Rename(
        file=inside, parent=folder, name="inside", new_parent=private, new_name="secret name"
    )
    anna.do(move)
    page = feed.pull()
    assert feed.files[inside].links == 0
    assert private not in feed.files
    assert b"secret name" not in msgspec.msgpack.encode(page)
    assert private.encode() not in msgspec.msgpack.encode(page)
    for hidden in (inside, file):
        assert isinstance(refusal(ben.file, hidden), errors.NotFound)
    history = ben.request("GET", f"/v1/files/{folder}/changes", messages.ChangesPage)
    assert b"secret name" not in msgspec.msgpack.encode(history)
    anna.do(
        messages.Rename(
            file=inside, parent=private, name="secret name", new_parent=folder, new_name="back"
        )
    )
    feed.pull()
    assert (feed.names[folder, "back"], feed.files[inside].links) == (inside, 1)
    assert ben.children(inside).keys() == {"file"}


def test_a_move_between_two_shares_is_a_move(anna: Client, ben: Client) -> None:
    one, other = anna.mkdir("one"), anna.mkdir("other")
    file = anna.make("file", one)
    share(anna, one, ben)
    share(anna, other, ben)
    feed = Follower(ben)
    feed.pull()
    anna.do(messages.Rename(file=file, parent=one, name="file", new_parent=other, new_name="file"))
    page = feed.pull()
    assert len(page.changes) == 1
    assert (feed.files[file].links, feed.names) == (1, {(other, "file"): file})


def test_a_file_with_a_name_outside_stays_while_it_has_one_inside(
    anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("folder")
    file = anna.make("file", folder)
    anna.do(messages.Link(file=file, parent=folder, name="second"))
    anna.do(messages.Link(file=file, parent=anna.me.root, name="outside"))
    share(anna, folder, ben)
    feed = Follower(ben)
    feed.pull()
    anna.do(messages.Unlink(file=file, parent=folder, name="second"))
    feed.pull()
    assert feed.files[file].links == 2
    anna.do(messages.Unlink(file=file, parent=folder, name="file"))
    feed.pull()
    assert feed.files[file].links == 0
    assert isinstance(refusal(ben.file, file), errors.NotFound)


def test_revocation_is_told_and_ends_everything(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    file = anna.make("file", folder)
    share(anna, folder, ben)
    feed = Follower(ben)
    feed.pull()
    unshare(anna, folder, ben.me.account)
    anna.make("later", folder)
    page = feed.pull()
    assert (page.shared, page.changes) == ([], [])
    for work in (ben.file, ben.children):
        assert isinstance(refusal(work, folder), errors.NotFound)
    content = messages.Content(version=new_id(), manifest=messages.Manifest(0, 1 << 20, []))
    late = messages.Write(file=file, content=content, mtime_ns=1)
    assert isinstance(ben.refused(late), errors.NotFound)


def test_a_socket_hears_of_shares_of_changes_in_them_and_of_their_end(
    server: Running, anna: Client, ben: Client
) -> None:
    folder = anna.mkdir("folder")
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    headers = {"Authorization": f"Bearer {ben.token}"}
    feed = Follower(ben)

    def hinted() -> messages.Hint:
        return msgspec.msgpack.decode(socket.recv(20), type=messages.Hint)

    with connect(url, additional_headers=headers) as socket:
        assert hinted().cursor == feed.cursor
        share(anna, folder, ben)
        assert hinted().since != feed.cursor  # so it pulls
        assert feed.pull().shared
        anna.make("file", folder)
        told = hinted()
        feed.pull()
        assert told.cursor == feed.cursor
        assert (folder, "file") in feed.names
        change = ben.do(ben.create("own")).change
        told = hinted()
        assert (told.since, told.changes) == (feed.cursor, [change])  # inside the hint
        feed.pull()
        unshare(anna, folder, ben.me.account)
        hinted()
        assert feed.pull().shared == []


def test_a_socket_hears_of_a_share_that_is_back_from_the_trash(
    server: Running, anna: Client, ben: Client
) -> None:
    file = anna.make("file")
    share(anna, file, ben)
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="file"))
    feed = Follower(ben)
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers={"Authorization": f"Bearer {ben.token}"}) as socket:
        socket.recv(20)
        anna.do(messages.Recover(file=file))
        socket.recv(20)
    assert [root.file.id for root in feed.pull().shared or []] == [file]


def test_a_long_poll_ends_with_a_share(server: Running, anna: Client, ben: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    folder, fanout = anna.mkdir("folder"), server.app.service.fanout
    before = fanout.listeners()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            ben.request,
            "GET",
            "/v1/changes/wait",
            messages.ChangesPage,
            cursor=ben.me.cursor,
            timeout=25,
        )
        until(lambda: fanout.listeners() > before)
        share(anna, folder, ben)
        assert waiting.result(20).shared


def test_pages_of_several_drives_are_complete(
    anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.changes.feed.PAGE_CHANGES", 3)
    folder = anna.mkdir("folder")
    share(anna, folder, ben)
    feed = Follower(ben)
    feed.pull()
    ours = [ben.make(f"own {n}") for n in range(5)]
    theirs = [anna.make(f"their {n}", folder) for n in range(5)]
    pages = [feed.pull()]
    while pages[-1].more:
        pages.append(feed.pull())
    assert max(len(page.changes) for page in pages) == 3
    assert set(feed.names.values()) == {*ours, *theirs}


def test_a_socket_of_a_stranger_hears_nothing(server: Running, anna: Client, ben: Client) -> None:
    url = server.url.replace("http", "ws") + "/v1/changes/live"
    with connect(url, additional_headers={"Authorization": f"Bearer {ben.token}"}) as socket:
        socket.recv(20)
        anna.make("secret")
        ben.make("own")
        hint = msgspec.msgpack.decode(socket.recv(20), type=messages.Hint)
        assert {change.drive for change in hint.changes} == {ben.me.drive}


def test_what_shared_files_carry_is_read_only_to_be_told(
    anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be megabytes for each, and is not Ben's choice."""
    carried = {"user.x": b"1"}
    file = anna.make("file", xattrs=carried)
    share(anna, file, ben, "viewer")
    assert shared(ben)["file"].file.xattrs == carried
    page = ben.changes(ben.me.cursor)
    assert [root.file.xattrs for root in page.shared or ()] == [carried]
    monkeypatch.setattr(views, "attributes", None)
    ben.refresh()
    assert ben.changes(page.cursor).shared is None


# --- what was before ----------------------------------------------------------------------------


def told(page: messages.ChangesPage) -> set[str]:
    """Every name, target and id that a page tells of."""
    names = {entry.name for change in page.changes for entry in change.entries}
    records = [record for change in page.changes for record in change.files]
    return names | {record.id for record in records} | {r.target for r in records if r.target}


def test_what_left_before_it_was_shared_is_not_told(
    anna: Client, ben: Client, cleo: Client
) -> None:
    """Also not to who knew another part of the drive, and has not come so far in it."""
    folder, other = anna.mkdir("folder"), anna.mkdir("other")
    share(anna, other, ben, "viewer")
    cursor = ben.changes(ben.me.cursor).cursor
    share(anna, folder, cleo, "viewer")
    secret = anna.make("secret name", folder, kind="symlink", target="secret target")
    moved = {"file": secret, "parent": folder, "name": "secret name"}
    anna.do(messages.Rename(**moved, new_parent=anna.me.root, new_name="elsewhere"))
    share(anna, folder, ben, "viewer")
    inside, beside = anna.make("inside", folder), anna.make("beside", other)

    page = ben.changes(cursor)
    assert told(page) == {"inside", "beside", inside, beside, folder, other}
    assert ben.changes(page.cursor).changes == []
    path = f"/v1/files/{folder}/changes"
    assert told(ben.request("GET", path, messages.ChangesPage)) == {"inside", folder}
    assert "secret name" in told(cleo.request("GET", path, messages.ChangesPage))


def test_another_role_tells_and_hides_nothing(anna: Client, ben: Client) -> None:
    folder = anna.mkdir("folder")
    share(anna, folder, ben, "viewer")
    cursor = ben.changes(ben.me.cursor).cursor
    inside = anna.make("inside", folder)
    share(anna, folder, ben, "editor")
    assert inside in told(ben.changes(cursor))


@pytest.mark.parametrize("name", ["a." + 253 * "b", "." + 254 * "b", 255 * "b", "ä." + 126 * "ß"])
def test_two_long_names_are_told_apart_within_the_limit(
    anna: Client, ben: Client, name: str
) -> None:
    for parent in (anna.mkdir("one"), anna.mkdir("two")):
        share(anna, anna.make(name, parent), ben, "viewer")
    names = list(shared(ben))
    assert len(set(names)) == 2
    assert all(name and len(name.encode()) <= 255 for name in names)


# --- what others may cost one -------------------------------------------------------------------


@pytest.mark.slow
def test_nesting_is_asked_once_for_all_and_then_remembered(
    server: Running, anna: Client, ben: Client
) -> None:
    """However many files are shared and however deep they are: one question, until something is
    shared or moved."""
    ids = chain(server, anna, ["d"] * 200)
    deep = [anna.make(f"{n}", ids[-1]) for n in range(20)]
    for file in (ids[50], *deep):
        share(anna, file, ben)
    db, follower = server.app.service.db, Follower(ben)
    with counted(db) as asked:
        assert [name for name in shared(ben) if name is not None] == ["d"]
    assert len([item for item in asked if "RECURSIVE" in item]) == 1
    few = len(asked)
    for work in (lambda: shared(ben), follower.pull, lambda: anna.make("new", ids[-1])):
        with counted(db) as asked:
            work()
        ben_asks = [item for item in asked if "RECURSIVE" in item and "grants" in item]
        assert ben_asks == []
        assert len(asked) < few + 60
    # What moves is seen at once: one of the deep ones leaves the shared directory.
    root = anna.me.root
    moved = {"parent": ids[-1], "name": "7", "new_parent": root, "new_name": "seven"}
    anna.do(messages.Rename(file=deep[7], **moved))
    assert {name for name in shared(ben) if name is not None} == {"d", "seven"}
    anna.do(messages.Rename(file=ids[0], parent=root, name="d", new_parent=root, new_name="e"))
    with counted(db) as asked:
        assert {name for name in shared(ben) if name is not None} == {"d", "seven"}
    assert not [item for item in asked if "RECURSIVE" in item and "grants" in item]
    unshare(anna, ids[50], ben.me.account)
    assert {name for name in shared(ben) if name is not None} >= {"0", "seven", "19"}


@pytest.mark.parametrize("how", ["link", "unlink", "exchange", "recover"])
def test_whatever_moves_a_file_is_noticed(anna: Client, ben: Client, how: str) -> None:
    """Nested or not, in each case otherwise than before."""
    root, folder = anna.me.root, anna.mkdir("folder")
    file, other = anna.make("file"), anna.make("other", folder)
    if how in ("unlink", "recover"):
        anna.do(messages.Link(file=file, parent=folder, name="inside"))
    if how == "recover":
        anna.do(messages.Unlink(file=file, parent=root, name="file"))
    for item in (folder, file):
        share(anna, item, ben)
    before = set(shared(ben))
    if how == "link":
        anna.do(messages.Link(file=file, parent=folder, name="inside"))
    elif how == "unlink":
        anna.do(messages.Unlink(file=file, parent=folder, name="inside"))
    elif how == "exchange":
        places = {"parent": root, "name": "file", "other_parent": folder, "other_name": "other"}
        anna.do(messages.Exchange(file=file, other=other, **places))
    else:  # nobody looks while it is in the trash
        anna.do(messages.Unlink(file=file, parent=folder, name="inside"))
        anna.do(messages.Recover(file=file, parent=root, name="file"))
    nested, apart = {"folder", None}, {"folder", "file"}
    expected = nested if how in ("link", "exchange") else apart
    assert before == (apart if expected == nested else nested)
    assert set(shared(ben)) == expected


def test_what_is_remembered_is_bounded() -> None:
    nesting = Nesting(max_roots=10)
    for number in range(20):
        known = _Found(0, frozenset({f"{number}a", f"{number}b", f"{number}c"}), frozenset())
        nesting._note("ben", str(number), known)
        nesting._note("ben", str(number), known)
    assert len(nesting._known) == 3
    assert nesting._roots == 9


@pytest.mark.slow
def test_strangers_fill_neither_the_view_nor_the_room_of_friends(
    anna: Client, ben: Client, cleo: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_FROM_STRANGER", 2)
    monkeypatch.setattr(sharing, "MAX_FROM_STRANGERS", 3)
    share(ben, ben.mkdir("for cleo"), cleo)  # ben knows cleo
    for name in "ab":
        share(anna, anna.mkdir(name), ben)
    third = anna.mkdir("c")
    refused = refusal(share, anna, third, ben)
    assert isinstance(refused, errors.TooLarge)
    assert "share something with you" in refused.message
    share(anna, anna.children()["a"].id, ben, "viewer")  # a role is no more than before
    for name in "uvwxy":  # at once, however much strangers have sent
        share(cleo, cleo.mkdir(name), ben)
    assert len(shared(ben)) == 7
    share(ben, ben.mkdir("for anna"), anna, "viewer")  # and now ben knows anna
    share(anna, third, ben)
    assert "c" in shared(ben)
    monkeypatch.setattr(sharing, "MAX_GIVEN", 8)
    assert isinstance(refusal(share, cleo, cleo.mkdir("f"), ben), errors.TooLarge)


def test_all_strangers_together_are_bounded(
    server: Running, anna: Client, ben: Client, cleo: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_FROM_STRANGERS", 2)
    share(anna, anna.mkdir("a"), ben)
    share(cleo, cleo.mkdir("c"), ben)
    refused = refusal(share, cleo, cleo.mkdir("d"), ben)
    assert isinstance(refused, errors.TooLarge)
    first = shared(ben)["a"].file.id
    unshare(ben, first, ben.me.account)  # who has too much leaves some
    share(cleo, cleo.children()["d"].id, ben)


def test_strangers_share_so_fast_and_friends_as_fast_as_they_like() -> None:
    now = [0.0]
    pace = sharing.Pace(2, 60, lambda: now[0])
    for _ in range(2):
        pace.check("mallory", "ben")
    with pytest.raises(errors.Refused) as refused:
        pace.check("mallory", "ben")
    assert refused.value.retry_after == 60
    pace.check("mallory", "anna")
    pace.check("oscar", "ben")
    now[0] = 60
    pace.check("mallory", "ben")
    for number in range(19):  # all together: ten times as many
        pace.check(f"stranger {number}", "ben")
    with pytest.raises(errors.Refused):
        pace.check("one more", "ben")


def test_a_stranger_who_takes_back_and_gives_again_is_slowed_down(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app.service, "share_pace", sharing.Pace(3, 60))
    folder = anna.mkdir("folder")
    for _ in range(3):
        share(anna, folder, ben)
        unshare(anna, folder, ben.me.account)
    assert isinstance(refusal(share, anna, folder, ben), errors.RateLimited)
    share(ben, ben.mkdir("back"), anna)
    share(anna, folder, ben, "viewer")


@pytest.mark.slow
def test_names_that_are_no_accounts_cannot_be_tried_for_long(
    server: Running, anna: Client, ben: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits and other refusals do not count. When there are no tries left, hits are not told apart
    from misses."""
    folder, burst = anna.mkdir("folder"), server.app.service.settings.tunables.share_miss_burst

    def try_name(name: str) -> Any:
        wanted = ShareRequest(users=[Invite(name, "viewer")])
        path = f"/v1/files/{folder}/share"
        return refusal(anna.request, "POST", path, SharesReply, wanted)

    share(anna, folder, ben)
    for number in range(burst - 1):
        assert isinstance(try_name(f"nobody {number}"), errors.NotFound)
    for _ in range(3):
        share(anna, folder, ben)
        assert isinstance(try_name(anna.me.account), errors.BadRequest)
    assert isinstance(try_name("nobody"), errors.NotFound)
    limited = try_name("nobody")
    assert isinstance(limited, errors.RateLimited)
    assert 1 < limited.retry_after_seconds <= 60
    assert isinstance(try_name(ben.me.account), errors.RateLimited)
    other = ben.mkdir("of ben")
    share(ben, other, anna)  # others are not held up


@pytest.mark.slow
def test_the_list_of_what_is_shared_is_bounded_by_what_its_files_carry(
    anna: Client, ben: Client
) -> None:
    """Others decide what is in it: those with the most attributes are told without."""
    carried = {f"user.{n}": bytes(65_000) for n in range(15)}
    for number in range(5):
        share(anna, anna.make(f"large {number}", xattrs=carried), ben)
    share(anna, anna.make("small", xattrs={"user.x": b"1"}), ben)
    told = shared(ben)
    sizes = {name: sum(map(len, root.file.xattrs.values())) for name, root in told.items()}
    assert sizes["small"] == 1
    assert sorted(sizes.values()) == [0, 1] + 4 * [15 * 65_000]
