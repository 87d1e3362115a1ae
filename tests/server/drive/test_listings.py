"""Several directories in one answer."""

from __future__ import annotations

import time
from functools import partial

import pytest
from sqlalchemy import insert, select

from remote.protocol import errors, messages
from server.accounts import tokens
from server.drive import listing
from server.metadata.schema import entries, files
from server.permissions.caller import Caller
from tests.server.drive.test_sharing import share
from tests.server.harness import Client, Failed, Running, new_id
from tests.server.lookups import steps_of


def caller_of(server: Running, client: Client) -> Caller:
    with server.app.service.db.read() as conn:
        return tokens.authenticate(conn, client.token, time.time_ns())


def ask(client: Client, *directories: str) -> messages.ListReply:
    request = messages.ListRequest(directories=list(directories))
    return client.request("POST", "/v1/listings", messages.ListReply, request)


def names(listed: messages.Listed) -> list[str]:
    return [child.entry.name for child in listed.children]


def test_each_is_complete_and_as_children_tells_it(anna: Client) -> None:
    one, two, empty = anna.mkdir("one"), anna.mkdir("two"), anna.mkdir("empty")
    anna.batch(*(anna.create(name, one) for name in ("z", "é", "a")), anna.create("b", two))
    anna.do(messages.SetXattr(file=one, name="user.a", value=b"1"))
    reply = ask(anna, two, one, empty, two)
    assert [item.directory.id for item in reply.listed] == [two, one, empty]
    for item in reply.listed:
        path = f"/v1/files/{item.directory.id}/children"
        page = anna.request("GET", path, messages.ChildrenPage)
        assert (item.directory, item.children, item.as_of) == (
            page.directory,
            page.children,
            page.as_of,
        )


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_and_the_rest_is_whole(anna: Client) -> None:
    large, small, last = anna.mkdir("large"), anna.mkdir("small"), anna.mkdir("last")
    for first in range(0, listing.MAX_CHILDREN, 500):
        anna.batch(*(anna.create(f"{first + n}", large, kind="fifo") for n in range(500)))
    anna.batch(*(anna.create(f"{n}", small) for n in range(3)))
    anna.batch(*(anna.create(f"{n}", last) for n in range(2)))
    assert [item.directory.id for item in ask(anna, large, small).listed] == [large]
    found = ask(anna, small, large, last).listed
    assert [item.directory.id for item in found] == [small, last]
    assert [names(item) for item in found] == [["0", "1", "2"], ["0", "1"]]


@pytest.mark.slow
def test_attributes_take_room_also_those_of_empty_directories(anna: Client) -> None:
    """Each may have a megabyte of them."""
    value = bytes(60_000)
    empty = [anna.mkdir(f"{number}") for number in range(6)]
    for number in range(16):
        ops = (messages.SetXattr(file=item, name=f"user.{number}", value=value) for item in empty)
        anna.batch(*ops)
    assert [item.directory.id for item in ask(anna, *empty).listed] == empty[:4]


@pytest.mark.slow
def test_a_directory_that_does_not_fit_is_not_counted(server: Running, anna: Client) -> None:
    large, small = anna.mkdir("large"), anna.mkdir("small")
    caller, asked = caller_of(server, anna), []
    for count in (2_000, 20_000):
        with server.app.service.db.write() as conn:
            row = dict(conn.execute(select(files).where(files.c.id == small)).one()._mapping)
            made = [(f"{number}", new_id()) for number in range(count)]
            conn.execute(insert(files), [row | {"id": id, "kind": "fifo"} for _, id in made])
            named = {"parent": large, "rev": 1, "made_by": None}
            new = [named | {"name": f"{count} {name}", "file": id} for name, id in made]
            conn.execute(insert(entries), new)
        with server.app.service.db.read() as conn:
            look = partial(listing.several, conn, caller, [small, large])
            asked.append(steps_of(conn, look))
    assert asked[1] <= asked[0] + 20


def test_what_is_not_ones_own_is_left_out_behind_the_first(anna: Client, ben: Client) -> None:
    theirs, mine, file = anna.mkdir("theirs"), ben.mkdir("mine"), ben.make("file")
    found = ask(ben, mine, theirs, file, new_id()).listed
    assert [item.directory.id for item in found] == [mine]


def test_the_first_is_refused_as_alone(anna: Client, ben: Client) -> None:
    theirs, file = anna.mkdir("theirs"), ben.make("file")
    for first, problem in ((theirs, errors.NotFound), (file, errors.NotADirectory)):
        with pytest.raises(Failed) as refused:
            ask(ben, first, ben.me.root)
        assert isinstance(refused.value.problem, problem)


@pytest.mark.slow
def test_what_is_above_many_directories_is_climbed_once(
    server: Running, anna: Client, ben: Client
) -> None:
    """A tree may be very deep, and who was given it comes to each of them from the top."""
    top = anna.mkdir("top")
    deep = anna.mkdir("0", top)
    for number in range(60):
        deep = anna.mkdir(f"{number}", deep)
    few = [anna.mkdir(f"few {number}", deep) for number in range(2)]
    many = [anna.mkdir(f"many {number}", deep) for number in range(60)]
    share(anna, top, ben)
    caller, asked = caller_of(server, ben), []
    for wanted in (few, many):
        with server.app.service.db.read() as conn:
            asked.append(steps_of(conn, partial(listing.several, conn, caller, wanted)))
        assert [item.directory.id for item in ask(ben, *wanted).listed] == wanted
    assert asked[1] <= 4 * asked[0]
