"""Names that others make of a file: none of them changes who reaches it, and none outlives that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event, update

from remote.protocol import errors, messages
from remote.protocol.account_messages import MakeToken, SharesReply, TokenReply
from remote.protocol.ids import mark_of
from server.metadata import schema
from server.permissions import audit
from tests.server.drive.test_sharing import Follower, share, shared, unshare
from tests.server.harness import Client, Failed, Running, new_id
from tests.server.linking import Visitor, make_link, revoke


@pytest.fixture
def cleo(server: Running) -> Iterator[Client]:
    client = server.account("cleo")
    yield client
    client.http.close()


@dataclass
class Place:
    """Anna's drive: `team` and `other` are shared with ben, who is an editor of both; `plan` is in
    `team`, and `deep` is a directory in it."""

    anna: Client
    ben: Client
    team: str
    other: str
    deep: str
    plan: str


@pytest.fixture
def place(anna: Client, ben: Client) -> Place:
    team, other = anna.mkdir("team"), anna.mkdir("other")
    share(anna, team, ben)
    share(anna, other, ben)
    return Place(anna, ben, team, other, anna.mkdir("deep", team), anna.make("plan", team))


def link(file: str, parent: str, name: str = "again") -> messages.Link:
    return messages.Link(file=file, parent=parent, name=name)


def move(file: str, parent: str, name: str, to: str, as_name: str | None = None) -> messages.Rename:
    return messages.Rename(
        file=file, parent=parent, name=name, new_parent=to, new_name=as_name or name
    )


def reaches(client: Client, file: str) -> bool:
    try:
        client.file(file)
    except Failed as error:
        if error.status != 404:
            raise
        return False
    return True


# --- what others may not do ---------------------------------------------------------------------


@pytest.mark.slow
def test_an_editor_gives_names_only_where_the_same_people_reach(place: Place) -> None:
    ben, anna = place.ben, place.anna
    inside, beside = anna.make("inside", place.other), anna.mkdir("beside", place.other)
    replaced = {"new_parent": place.other, "new_name": "inside", "target": inside}
    swapped = {"other": inside, "other_parent": place.other, "other_name": "inside"}
    for op in (
        link(place.plan, place.other),
        move(place.plan, place.team, "plan", place.other),
        move(place.deep, place.team, "deep", beside),
        messages.Replace(file=place.plan, parent=place.team, name="plan", **replaced),
        messages.Exchange(file=place.plan, parent=place.team, name="plan", **swapped),
    ):
        assert isinstance(ben.refused(op), errors.OtherReach), op
    assert anna.children(place.other).keys() == {"inside", "beside"}
    ben.do(link(place.plan, place.deep))
    ben.do(move(place.plan, place.team, "plan", place.deep))
    ben.do(move(place.deep, place.team, "deep", place.team, "deeper"))


def test_the_owner_gives_names_anywhere(place: Place) -> None:
    place.anna.do(link(place.plan, place.other))
    place.anna.do(move(place.deep, place.team, "deep", place.other))
    place.ben.do(link(place.plan, place.other, "one more"))  # where it has a name already


@pytest.mark.slow
def test_a_link_or_a_share_on_a_folder_inside_makes_it_another_place(
    server: Running, place: Place, cleo: Client
) -> None:
    made = make_link(place.anna, place.deep)
    assert isinstance(place.ben.refused(link(place.plan, place.deep)), errors.OtherReach)
    place.ben.make("new", place.deep)  # what it writes itself it may show
    assert Visitor.at(server.url, made).get().text.count("again") == 0
    revoke(place.anna, made.link.id)
    place.ben.do(link(place.plan, place.deep))
    share(place.anna, place.deep, cleo, "viewer")
    out = move(place.plan, place.team, "plan", place.deep)
    assert isinstance(place.ben.refused(out), errors.OtherReach)
    unshare(place.anna, place.deep, cleo.me.account)
    place.ben.do(out)


@pytest.mark.slow
def test_a_folder_tokens_holder_does_not_own_the_drive_either(place: Place, cleo: Client) -> None:
    anna = place.anna
    wanted = MakeToken(name="weak", folder=place.team)
    token = anna.request("POST", "/v1/devices", TokenReply, wanted)
    weak = Client(anna.http, token.token)
    weak.refresh()
    share(anna, place.deep, cleo)
    assert isinstance(weak.refused(link(place.plan, place.deep)), errors.OtherReach)
    weak.do(link(place.plan, place.team))
    anna.do(move(place.plan, place.team, "plan", anna.me.root))
    assert weak.children().keys() == {"deep"}
    assert isinstance(place.ben.refused(link(place.deep, place.team)), errors.IsADirectory)


def test_a_folder_of_a_token_is_another_place_until_the_token_ends(place: Place) -> None:
    wanted = MakeToken(name="weak", folder=place.deep)
    made = place.anna.request("POST", "/v1/devices", TokenReply, wanted)
    assert isinstance(place.ben.refused(link(place.plan, place.deep)), errors.OtherReach)
    place.anna.request("DELETE", f"/v1/devices/{made.device_id}", type(None))
    place.ben.do(link(place.plan, place.deep))


def test_others_make_a_thousand_names_of_a_file_and_no_more(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr("server.drive.mutation.MAX_NAMES_BY_OTHERS", 2)
    place.ben.do(link(place.plan, place.team, "second"))
    too_many = place.ben.refused(link(place.plan, place.team, "third"))
    assert isinstance(too_many, errors.TooManyLinks)
    place.anna.do(link(place.plan, place.team, "third"))


def test_others_make_no_further_names_while_the_drive_has_very_many(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr("server.drive.mutation.MAX_NAMED_TWICE", 4)
    other = place.anna.make("other", place.team)
    place.ben.do(link(place.plan, place.team, "second"))
    place.ben.do(link(other, place.team, "other's second"))
    for file in (place.plan, other):
        too_many = place.ben.refused(link(file, place.team, "third"))
        assert isinstance(too_many, errors.TooManyLinks)
        assert "copy it" in too_many.message
    place.ben.make("new", place.team)  # a first name is none of those
    place.anna.do(link(place.plan, place.team, "third"))


# --- what goes when the owner moves something out -----------------------------------------------


@pytest.mark.slow
def test_a_hidden_name_goes_when_the_owner_moves_the_file_out(place: Place) -> None:
    anna, ben = place.anna, place.ben
    follower, mine = Follower(ben), Follower(anna)
    follower.pull()
    ben.do(link(place.plan, place.deep, ".hidden"))
    applied = anna.do(move(place.plan, place.team, "plan", anna.me.root))
    told = {(item.parent, item.name): item.file for item in applied.change.entries}
    assert told[place.deep, ".hidden"] is None
    assert anna.file(place.plan).file.links == 1
    assert anna.children(place.deep) == {}
    assert not reaches(ben, place.plan)
    follower.pull()
    assert follower.files[place.plan].links == 0
    assert (place.deep, ".hidden") not in follower.names
    mine.pull()
    assert [at for at, file in mine.names.items() if file == place.plan] == [(anna.me.root, "plan")]


@pytest.mark.slow
def test_a_hidden_name_goes_when_the_owner_moves_the_directory_out(
    server: Running, place: Place
) -> None:
    anna, ben = place.anna, place.ben
    inner = anna.make("inner", place.deep)
    made = ben.make("made by ben", place.deep)
    for file in (inner, made):
        ben.do(link(file, place.team, f".{file}"))
    anna.do(move(place.deep, place.team, "deep", anna.me.root))
    assert anna.children(place.team).keys() == {"plan"}
    assert anna.children(place.deep).keys() == {"inner", "made by ben"}
    with server.app.service.db.read() as conn:
        last = audit.read(conn, account=anna.me.account)[-1]
    assert (last.action, last.detail["how_many_gone"]) == ("rename", 2)
    assert set(last.detail["names_gone"]) == {f".{inner}", f".{made}"}
    assert not reaches(ben, inner)
    assert not reaches(ben, made)


def test_a_name_goes_whoever_made_the_one_that_is_moved(place: Place) -> None:
    """An editor cannot have the owner move a name of the editor's and keep the owner's."""
    anna, ben = place.anna, place.ben
    inner = anna.make("inner", place.deep)
    ben.do(move(place.deep, place.team, "deep", place.team, ".aside"))
    bait = ben.mkdir("deep", place.team)
    ben.do(link(inner, bait, "inner"))
    anna.do(move(inner, bait, "inner", anna.me.root))
    assert anna.children(place.deep) == {}
    assert not reaches(ben, inner)


def test_a_file_that_an_editor_made_is_the_owners_when_moved(place: Place) -> None:
    anna, ben = place.anna, place.ben
    made = ben.make("made", place.team)
    ben.do(link(made, place.deep))
    anna.do(move(made, place.team, "made", anna.me.root))
    assert not reaches(ben, made)


def test_it_goes_too_when_the_owner_links_elsewhere_and_unlinks(place: Place) -> None:
    anna, ben = place.anna, place.ben
    ben.do(link(place.plan, place.deep, ".hidden"))
    anna.do(link(place.plan, anna.me.root, "plan"))
    assert reaches(ben, place.plan)
    anna.do(messages.Unlink(file=place.plan, parent=place.team, name="plan"))
    assert not reaches(ben, place.plan)


@pytest.mark.slow
def test_it_goes_when_the_owner_exchanges_or_replaces(place: Place) -> None:
    anna, ben = place.anna, place.ben
    ben.do(link(place.plan, place.deep, ".hidden"))
    private = anna.make("private")
    swap = {"other": private, "other_parent": anna.me.root, "other_name": "private"}
    anna.do(messages.Exchange(file=place.plan, parent=place.team, name="plan", **swap))
    assert not reaches(ben, place.plan)
    assert reaches(ben, private)
    ben.do(link(private, place.deep, ".hidden"))
    anna.do(link(private, anna.me.root, "mine"))
    file = anna.make("new", place.team)
    over = move(file, place.team, "new", place.team, "plan")
    anna.do(messages.Rename(**{field: getattr(over, field) for field in NAMED}, replaces=private))
    assert not reaches(ben, private)


NAMED = ("file", "parent", "name", "new_parent", "new_name")


def test_what_the_owner_named_stays(place: Place) -> None:
    anna, ben = place.anna, place.ben
    anna.do(link(place.plan, place.deep, "the owner's"))
    ben.do(link(place.plan, place.deep, "ben's"))
    anna.do(move(place.plan, place.team, "plan", anna.me.root))
    assert anna.children(place.deep).keys() == {"the owner's", "ben's"}
    anna.do(messages.Unlink(file=place.plan, parent=place.deep, name="the owner's"))
    assert anna.children(place.deep) == {}


def test_an_editor_who_moves_a_directory_does_not_make_the_owners_links_go(place: Place) -> None:
    anna, ben = place.anna, place.ben
    anna.do(link(place.plan, place.deep, "the owner's"))
    ben.do(move(place.deep, place.team, "deep", place.team, "renamed"))
    anna.do(move(place.plan, place.team, "plan", anna.me.root))
    assert anna.children(place.deep).keys() == {"the owner's"}


def test_a_name_from_before_counts_as_the_owners_and_is_told(server: Running, place: Place) -> None:
    """Its maker is not known: nothing is taken away, and it is not kept quiet either."""
    anna, ben = place.anna, place.ben
    ben.do(link(place.plan, place.deep, "old"))
    with server.app.service.db.write() as conn:
        old = schema.entries.c.parent == place.deep
        conn.execute(update(schema.entries).where(old).values(made_by=None))
    share(anna, place.deep, ben)
    anna.do(move(place.plan, place.team, "plan", place.other))
    assert anna.children(place.deep).keys() == {"old"}
    unshare(anna, place.other, ben.me.account)
    reply = anna.request("GET", f"/v1/files/{place.other}/shares", SharesReply)
    assert {(item.account, item.name) for item in reply.reached} == {(ben.me.account, "old")}


def test_a_move_looks_into_a_directory_only_if_it_leaves_a_reach(
    server: Running, place: Place
) -> None:
    anna = place.anna
    private = anna.mkdir("private")
    asked: list[str] = []

    def note(*args: Any) -> None:
        asked.append(args[2])

    engine = server.app.service.db._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        anna.do(move(place.deep, place.team, "deep", place.team, "deeper"))
        assert not any("RECURSIVE below" in item for item in asked)
        anna.do(move(place.deep, place.team, "deeper", private))
        assert sum("RECURSIVE below" in item for item in asked) == 1
        anna.do(move(place.deep, private, "deeper", anna.me.root))
        assert sum("RECURSIVE below" in item for item in asked) == 1
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.slow
def test_a_move_costs_no_more_for_links_that_are_all_the_owners(
    server: Running, place: Place
) -> None:
    """All others wait for it: it is one operation, whatever is below."""
    anna = place.anna
    private, asked = anna.mkdir("private"), list[int]()

    def count(*_: object) -> None:
        # Others ask meanwhile: the watch over what administrators do, once a second.
        asked[-1] += threading.current_thread().name.startswith("write")

    engine = server.app.service.db._engine
    for links in (1, 20):
        name = f"of {links}"
        folder = anna.mkdir(name, place.team)
        for _ in range(links):
            file = anna.make(new_id(), folder)
            anna.do(link(file, folder, new_id()))
        asked.append(0)
        event.listen(engine, "before_cursor_execute", count)
        try:
            anna.do(move(folder, place.team, name, private))
        finally:
            event.remove(engine, "before_cursor_execute", count)
    assert asked[1] == asked[0]


def test_what_stays_within_reach_or_would_be_lost_keeps_its_names(place: Place) -> None:
    anna, ben = place.anna, place.ben
    ben.do(link(place.plan, place.deep, "ben's"))
    anna.do(move(place.plan, place.team, "plan", place.deep))
    assert anna.children(place.deep).keys() == {"plan", "ben's"}
    anna.do(messages.Unlink(file=place.plan, parent=place.deep, name="plan"))
    assert anna.children(place.deep).keys() == {"ben's"}
    assert reaches(ben, place.plan)


# --- under what symlinks were made --------------------------------------------------------------


def test_a_symlink_tells_what_its_maker_reached(place: Place) -> None:
    anna, ben = place.anna, place.ben
    share(anna, place.deep, ben)
    made = {"kind": "symlink", "target": "x"}
    anna.make("anna's", place.deep, **made)
    ben.make("ben's", place.deep, **made)
    ben.make("a file", place.deep)
    wanted = MakeToken(name="weak", folder=place.deep)
    token = anna.request("POST", "/v1/devices", TokenReply, wanted).token
    weak = Client(anna.http, token)
    weak.make("a script's", place.deep, **made)
    told = {name: record.made_under for name, record in anna.children(place.deep).items()}
    assert told == {
        "anna's": b"",
        "ben's": mark_of(place.team),
        "a file": b"",
        "a script's": mark_of(place.deep),
    }


# --- what remains is told -----------------------------------------------------------------------


def test_what_remains_after_a_revocation_is_told(place: Place, cleo: Client) -> None:
    anna, ben = place.anna, place.ben
    anna.do(link(place.plan, place.other, "copy of the plan"))
    share(anna, place.deep, cleo, "viewer")
    path = f"/v1/files/{place.team}/shares"
    expected = {
        (ben.me.account, "editor", place.other, "copy of the plan"),
        (cleo.me.account, "viewer", place.team, "deep"),
    }
    unshare(anna, place.team, ben.me.account)
    reply = anna.request("GET", path, SharesReply)
    assert reply.grants == []
    told = {(item.account, item.role, item.parent, item.name) for item in reply.reached}
    assert told == expected
    assert not reply.more_reached
    assert ben.file(place.plan).role == "editor"  # it is true
    anna.do(messages.Unlink(file=place.plan, parent=place.other, name="copy of the plan"))
    unshare(anna, place.deep, cleo.me.account)
    assert anna.request("GET", path, SharesReply).reached == []
    assert not reaches(ben, place.plan)


def test_a_revoked_editor_reaches_nothing_by_names_of_their_own(place: Place) -> None:
    """Whatever they tried before."""
    anna, ben = place.anna, place.ben
    ben.batch(
        link(place.plan, place.deep),
        link(place.plan, place.other),
        move(place.deep, place.team, "deep", place.other),
    )
    unshare(anna, place.team, ben.me.account)
    assert shared(ben).keys() == {"other"}
    for file in (place.plan, place.deep, place.team):
        assert not reaches(ben, file)
    late = messages.Link(file=place.plan, parent=place.other, name=new_id())
    assert isinstance(ben.refused(late), errors.NotFound)


def test_only_the_owner_is_told_of_others_ways(place: Place) -> None:
    place.anna.do(link(place.plan, place.other))
    reply = place.ben.request("GET", f"/v1/files/{place.team}/shares", SharesReply)
    assert reply.reached == []
