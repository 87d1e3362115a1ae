"""Several directories in one answer."""

from __future__ import annotations

import pytest

from remote.protocol import errors, messages
from server.drive import listing
from tests.server.harness import Client, Failed, new_id


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
    assert [each.directory.id for each in reply.listed] == [two, one, empty]
    for each in reply.listed:
        path = f"/v1/files/{each.directory.id}/children"
        page = anna.request("GET", path, messages.ChildrenPage)
        assert (each.directory, each.children, each.as_of) == (
            page.directory,
            page.children,
            page.as_of,
        )


def test_what_does_not_fit_is_left_out_and_the_rest_is_whole(anna: Client) -> None:
    large, small, last = anna.mkdir("large"), anna.mkdir("small"), anna.mkdir("last")
    for first in range(0, listing.MAX_CHILDREN, 500):
        anna.batch(*(anna.create(f"{first + n}", large, kind="fifo") for n in range(500)))
    anna.batch(*(anna.create(f"{n}", small) for n in range(3)))
    anna.batch(*(anna.create(f"{n}", last) for n in range(2)))
    assert [each.directory.id for each in ask(anna, large, small).listed] == [large]
    found = ask(anna, small, large, last).listed
    assert [each.directory.id for each in found] == [small, last]
    assert [names(each) for each in found] == [["0", "1", "2"], ["0", "1"]]


def test_what_is_not_ones_own_is_left_out_behind_the_first(anna: Client, ben: Client) -> None:
    theirs, mine, file = anna.mkdir("theirs"), ben.mkdir("mine"), ben.make("file")
    found = ask(ben, mine, theirs, file, new_id()).listed
    assert [each.directory.id for each in found] == [mine]


def test_the_first_is_refused_as_alone(anna: Client, ben: Client) -> None:
    theirs, file = anna.mkdir("theirs"), ben.make("file")
    for first, problem in ((theirs, errors.NotFound), (file, errors.NotADirectory)):
        with pytest.raises(Failed) as refused:
            ask(ben, first, ben.me.root)
        assert isinstance(refused.value.problem, problem)
