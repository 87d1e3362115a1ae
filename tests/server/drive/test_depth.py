"""The bound on depth, and what depth costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, select

from remote.protocol import errors, messages
from remote.protocol.messages import MAX_LEVELS, MAX_PATH_BYTES
from server.drive import depth, trash
from server.drive.depth import Below
from server.metadata.schema import files
from server.permissions.lineage import MANY_NAMES, Lineage
from tests.server.deep import bounds, chain, counted
from tests.server.drive.test_sharing import share
from tests.server.drive.test_trash import remove
from tests.server.drive.test_trash import trash as trash_of
from tests.server.harness import Client, Running
from tests.server.lookups import steps_of


def rename(file: str, old: tuple[str, str], new: tuple[str, str]) -> messages.Rename:
    places = {"parent": old[0], "name": old[1], "new_parent": new[0], "new_name": new[1]}
    return messages.Rename(file=file, **places)


def too_deep(client: Client, op: messages.Op) -> bool:
    return isinstance(client.refused(op), errors.NameTooLong)


def directory(client: Client, name: str, parent: str) -> messages.Create:
    return client.create(name, parent, kind="directory")


# --- the bound ----------------------------------------------------------------------------------


def test_so_many_levels_and_no_more(server: Running, anna: Client) -> None:
    ids = chain(server, anna, ["d"] * (MAX_LEVELS - 1))
    last = anna.mkdir("last", ids[-1])
    assert too_deep(anna, directory(anna, "more", last))
    assert bounds(server, anna.me.root).levels == MAX_LEVELS
    # What is no directory may be in any.
    file = anna.make("file", last)
    anna.do(messages.Link(file=file, parent=last, name="again"))
    assert anna.children(last).keys() == {"file", "again"}


def test_so_many_bytes_of_path_and_no_more(server: Running, anna: Client) -> None:
    ids = chain(server, anna, ["é" * 127 + "x"] * (MAX_PATH_BYTES // 256 - 1))
    assert too_deep(anna, directory(anna, "n" * 255, anna.mkdir("s", ids[-1])))
    anna.do(directory(anna, "n" * 255, ids[-1]))
    assert bounds(server, anna.me.root).size == MAX_PATH_BYTES


def test_a_tree_moves_only_where_all_of_it_fits(server: Running, anna: Client) -> None:
    """A tree of 401 levels goes below one of 599 levels, and not one lower."""
    tall = chain(server, anna, ["t"] * 401)
    under = chain(server, anna, ["u"] * 600)
    root = anna.me.root
    assert too_deep(anna, rename(tall[0], (root, "t"), (under[599], "t")))
    anna.do(rename(tall[0], (root, "t"), (under[598], "t")))
    assert bounds(server, root).levels == MAX_LEVELS
    assert bounds(server, under[0]) == Below(999, 2 * 999)
    assert too_deep(anna, directory(anna, "more", tall[-1]))


def test_an_exchange_is_two_moves(server: Running, anna: Client) -> None:
    tall = chain(server, anna, ["t"] * 401)
    under = chain(server, anna, ["u"] * 600)
    root = anna.me.root
    low = anna.mkdir("low", under[599])
    high = anna.mkdir("high", under[598])
    swap: dict[str, Any] = {"file": tall[0], "parent": root, "name": "t"}
    below = messages.Exchange(**swap, other=low, other_parent=under[599], other_name="low")
    assert too_deep(anna, below)
    turned = {"file": low, "parent": under[599], "name": "low"}
    back = messages.Exchange(**turned, other=tall[0], other_parent=root, other_name="t")
    assert too_deep(anna, back)
    anna.do(messages.Exchange(**swap, other=high, other_parent=under[598], other_name="high"))
    assert bounds(server, root).levels == MAX_LEVELS


def test_what_comes_back_from_the_trash_has_to_fit(server: Running, anna: Client) -> None:
    gone = anna.mkdir("gone")
    remove(anna, gone, "gone")
    ids = chain(server, anna, ["d"] * MAX_LEVELS)
    assert too_deep(anna, messages.Recover(file=gone, parent=ids[-1], name="gone"))
    anna.do(messages.Recover(file=gone, parent=ids[-2], name="gone"))
    assert anna.children(ids[-2]).keys() == {"d", "gone"}


def test_what_was_once_below_does_not_count(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers never shrink when what is below goes; when they forbid, the tree is looked at."""
    root, tall = anna.me.root, chain(server, anna, ["t"] * 401)
    under = chain(server, anna, ["u"] * 600)
    remove(anna, tall[-1], "t", tall[-2])
    assert bounds(server, tall[0]).levels == 400
    move = rename(tall[0], (root, "t"), (under[599], "t"))
    with monkeypatch.context() as patched:
        patched.setattr(depth, "LOOKED_AT", 100)
        assert too_deep(anna, move)  # too much to look at
    anna.do(move)
    assert bounds(server, tall[0]).levels == 399
    assert bounds(server, under[0]).levels == 999


@pytest.mark.slow
def test_a_tree_that_was_deeper_before_stays(server: Running, anna: Client) -> None:
    root, ids = anna.me.root, chain(server, anna, ["d"] * 1500)
    bottom, above = ids[-1], ids[-2]
    assert anna.children(above).keys() == {"d"}
    file = anna.make("file", bottom)  # as an editor saves
    anna.do(rename(file, (bottom, "file"), (bottom, "saved")))
    assert too_deep(anna, directory(anna, "more", ids[1100]))
    anna.do(rename(bottom, (above, "d"), (above, "longer")))  # no deeper than it was
    beside = anna.make("beside", above, kind="fifo")
    anna.do(messages.Unlink(file=beside, parent=above, name="beside"))
    anna.do(rename(bottom, (above, "longer"), (ids[1200], "up")))
    assert too_deep(anna, rename(bottom, (ids[1200], "up"), (above, "down")))
    anna.do(rename(ids[1300], (ids[1299], "d"), (root, "whole")))
    anna.do(messages.Unlink(file=file, parent=bottom, name="saved"))
    anna.do(messages.Unlink(file=bottom, parent=ids[1200], name="up"))
    assert anna.children(root).keys() == {"d", "whole"}


# --- what depth costs ---------------------------------------------------------------------------


def test_a_batch_climbs_once(server: Running, anna: Client, ben: Client) -> None:
    """In a part that is shared, by an editor, each operation asks what is above several files."""
    ids = chain(server, anna, ["d"] * 300)
    share(anna, ids[0], ben)
    bottom = ids[-1]
    ops: list[messages.Op] = []
    for number in range(40):
        made = directory(ben, f"{number}", bottom)
        ops += [made, rename(made.file, (bottom, f"{number}"), (ids[-2], f"moved {number}"))]
    with counted(server.app.service.db) as asked:
        results = ben.batch(*ops)
    assert all(isinstance(item, messages.Applied) for item in results)
    climbs = [item for item in asked if "RECURSIVE" in item]
    assert len(climbs) <= 2
    assert len(asked) < 30 * len(ops)


def test_what_has_very_many_names_is_not_climbed_ahead(server: Running, anna: Client) -> None:
    """Ten thousand names of each of some hundred files would keep all others waiting at once."""
    top = anna.mkdir("top")
    few, many = anna.make("few", top), anna.make("many", top)
    names = [(few, f"few {number}") for number in range(MANY_NAMES - 1)]
    names += [(many, f"many {number}") for number in range(4 * MANY_NAMES)]
    results = anna.batch(*(messages.Link(file=id, parent=top, name=name) for id, name in names))
    assert all(isinstance(item, messages.Applied) for item in results)
    with server.app.service.db.read() as conn:
        lineages = {id: Lineage(conn) for id in (few, many)}
        steps = {
            id: steps_of(conn, partial(lineage.learn, [id])) for id, lineage in lineages.items()
        }
        assert steps[many] < steps[few]
        for lineage in lineages.values():
            assert lineage.above(many) >= {many, top, anna.me.root}
            assert lineage.above(few) >= {few, top, anna.me.root}


def test_a_deeper_tree_tells_the_directories_above_and_no_more(
    server: Running, anna: Client
) -> None:
    ids = chain(server, anna, ["d"] * 700)
    with counted(server.app.service.db) as asked:
        anna.do(directory(anna, "e", ids[-2]))
    assert not [item for item in asked if item.startswith("UPDATE files SET below_levels")]
    anna.do(directory(anna, "e", ids[-1]))
    assert {bounds(server, item).levels for item in ids[:3]} == {700, 699, 698}


@pytest.mark.slow
def test_the_trash_of_a_deep_tree_is_told_in_bounded_pages(server: Running, anna: Client) -> None:
    """One question for each item, paths that add up to a page, and no prefix kept."""
    ids = chain(server, anna, ["n" * 255] * 250)
    made = [anna.create(f"{n}", ids[-1 - n], kind="fifo") for n in range(100)]
    anna.batch(*made)
    anna.batch(*[messages.Unlink(file=op.file, parent=op.parent, name=op.name) for op in made])
    with counted(server.app.service.db) as asked:
        page = anna.request("GET", "/v1/trash", trash.TrashPage)
    assert 0 < len(page.items) < 100
    assert sum(len(item.path) for item in page.items) <= trash.PAGE_BYTES
    assert len(asked) < len(page.items) + 20
    whole = trash_of(anna)
    assert {item.file.id for item in whole} == {op.file for op in made}
    deepest = next(item for item in whole if item.name == "0")
    assert deepest.path == "/".join(["n" * 255] * 250 + ["0"])


@pytest.mark.slow
def test_places_in_the_trash_may_be_deeper_than_any_tree(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each directory is deleted out of one that is itself deleted then: a chain without end, made
    of places that never were one path."""
    monkeypatch.setattr(trash, "MAX_LEVELS", 10)
    root, inner = anna.me.root, anna.mkdir("0")
    for number in range(1, 15):
        outer = anna.mkdir(f"{number}")
        anna.do(rename(inner, (root, f"{number - 1}"), (outer, f"{number - 1}")))
        remove(anna, inner, f"{number - 1}", outer)
        inner = outer
    remove(anna, inner, "14")
    with server.app.service.db.read() as conn:
        path = trash._Paths(conn, anna.me.drive).of(inner)
        assert path == "14/"
        first = anna.request("GET", "/v1/trash", trash.TrashPage, parent=inner).items[0]
    assert first.path == "14/13"
    with server.app.service.db.read() as conn:
        deep = trash._Paths(conn, anna.me.drive)
        told = [deep.of(item) for item in _places(conn, anna.me.drive)]
    longest = max(told, key=len)
    assert longest.startswith(trash.UNKNOWN)
    assert all(item.count("/") <= 11 for item in told)


def _places(conn: Connection, drive: str) -> list[str]:
    trashed = files.c.trashed_ns.is_not(None) & (files.c.drive == drive)
    return list(conn.execute(select(files.c.trashed_parent).where(trashed)).scalars())
