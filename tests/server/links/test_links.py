"""Links: who makes and revokes them, when they open, what they reach, how downloads are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from sqlalchemy import Connection, insert, select, update

from remote.protocol import messages
from remote.protocol.account_messages import Entry, LinkMade
from server.accounts import accounts
from server.http.rate_limits import TokenBuckets
from server.links import links, tree
from server.links.way import Places
from server.metadata import schema
from server.metadata.db import Database
from tests.server.harness import Client, Failed, Running, make_chunk, new_id, noise
from tests.server.linking import Visitor, links_of, make_link, revoke
from tests.server.lookups import steps_of

DAY = 86_400 * 10**9
Visit = Callable[[LinkMade], Visitor]


@pytest.fixture
def visit(server: Running) -> Iterator[Visit]:
    visitors: list[Visitor] = []

    def begin(made: LinkMade) -> Visitor:
        visitors.append(Visitor.at(server.url, made))
        return visitors[-1]

    yield begin
    for item in visitors:
        item.http.close()


def audit_of(server: Running, subject: str) -> list[tuple[str, dict[str, object]]]:
    with server.app.service.db.read() as conn:
        query = select(schema.audit.c.action, schema.audit.c.detail)
        found = conn.execute(query.where(schema.audit.c.subject == subject).order_by("id")).all()
    return [(row.action, msgspec.json.decode(row.detail)) for row in found]


def weaken(server: Running, client: Client, **columns: object) -> None:
    """Change the token of `client`'s device."""
    with server.app.service.db.write() as conn:
        mine = schema.devices.c.id == client.me.device_id
        conn.execute(update(schema.devices).where(mine).values(**columns))


# --- for the owner ------------------------------------------------------------------------------


def test_a_link_is_made_listed_and_revoked(server: Running, anna: Client, visit: Visit) -> None:
    file, _ = anna.store("report.pdf", make_chunk(b"report"))
    other = anna.make("other")
    first = make_link(anna, file, max_downloads=3)
    second = make_link(anna, other)
    assert first.url.startswith(f"{server.url}/s/")
    assert first.link.name == "report.pdf"
    assert (first.link.downloads, first.link.max_downloads) == (0, 3)
    assert [item.id for item in links_of(anna, file).links] == [first.link.id]
    assert [item.id for item in links_of(anna).links] == [second.link.id, first.link.id]
    assert visit(first).get().status_code == 200
    revoke(anna, first.link.id)
    revoke(anna, first.link.id)
    assert visit(first).get().status_code == 404
    assert [item.id for item in links_of(anna).links] == [second.link.id]
    actions = [action for action, _ in audit_of(server, first.link.id)]
    assert actions == ["link_make", "link_revoke"]


def test_only_the_hash_of_a_secret_is_kept(server: Running, anna: Client) -> None:
    made = make_link(anna, anna.make("a"), password="hunter2")
    secret = made.url.rpartition("/")[2]
    assert len(secret) == 43
    with server.app.service.db.read() as conn:
        row = conn.execute(select(schema.links).where(schema.links.c.id == made.link.id)).one()
        logged = audit_of(server, made.link.id)
    assert row.password.startswith("$argon2id$")
    assert made.link.has_password
    for kept in (*row, logged):
        assert secret not in str(kept)
        assert "hunter2" not in str(kept)


def test_who_may_not(server: Running, anna: Client, ben: Client) -> None:
    directory = anna.mkdir("shared")
    file = anna.make("file", directory)
    made = make_link(anna, file)
    with server.app.service.db.write() as conn:
        ben_id = conn.execute(
            select(schema.drives.c.owner).where(schema.drives.c.id == ben.me.drive)
        ).scalar_one()
        row = {"file": directory, "account": ben_id, "role": "editor", "granted_by": ben_id}
        conn.execute(insert(schema.grants), row | {"at_ns": time.time_ns()})
    stranger = server.account("carl")
    reading, folder = server.device(anna.me.account), server.device(anna.me.account)
    weaken(server, reading, scope="read")
    weaken(server, folder, folder=directory)
    expected = [(ben, 403, 404), (stranger, 404, 404), (reading, 403, 403), (folder, 403, 403)]
    for client, on_file, on_link in expected:
        calls = [
            (on_file, lambda client=client: make_link(client, file)),
            (on_file, lambda client=client: make_link(client, file, password="four")),
            (on_file, lambda client=client: links_of(client, file)),
            (on_link, lambda client=client: revoke(client, made.link.id)),
        ]
        for status, call in calls:
            with pytest.raises(Failed) as failed:
                call()
            assert failed.value.status == status
    assert links_of(ben).links == []
    for client in (reading, folder):
        with pytest.raises(Failed) as failed:
            links_of(client)
        assert failed.value.status == 403
    assert [item.id for item in links_of(anna, file).links] == [made.link.id]


def test_what_no_link_is_made_to(anna: Client) -> None:
    gone = anna.make("gone")
    anna.do(messages.Unlink(parent=anna.me.root, name="gone", file=gone))
    symlink = anna.make("symlink", kind="symlink", target="/etc/passwd")
    pipe = anna.make("pipe", kind="fifo")
    file = anna.make("file")
    past = {"expires_ns": time.time_ns() - 1}
    wrong: list[tuple[str, int, dict[str, int]]] = [
        (gone, 404, {}),
        (new_id(), 404, {}),
        (symlink, 400, {}),
        (pipe, 400, {}),
        (anna.me.root, 400, {}),
        (file, 400, past),
        (file, 400, {"expires_ns": 1 << 63}),
        (file, 400, {"max_downloads": 0}),
    ]
    for target, status, wanted in wrong:
        with pytest.raises(Failed) as failed:
            make_link(anna, target, **wanted)
        assert failed.value.status == status, (target, wanted)
    assert links_of(anna).links == []


def test_links_of_a_drive_are_bounded(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_LINKS", 2)
    file = anna.make("file")
    first = make_link(anna, file)
    make_link(anna, file)
    with pytest.raises(Failed) as failed:
        make_link(anna, file)
    assert failed.value.status == 413
    revoke(anna, first.link.id)
    make_link(anna, file)


# --- when a link opens --------------------------------------------------------------------------


@pytest.mark.slow
def test_what_does_not_open_looks_alike(server: Running, anna: Client, visit: Visit) -> None:
    names = ("revoked", "expired", "used up", "trashed", "never made")
    files = {name: anna.store(name, make_chunk(b"x"))[0] for name in names}
    made = {name: make_link(anna, file, max_downloads=1) for name, file in files.items()}
    revoke(anna, made["revoked"].link.id)
    with server.app.service.db.write() as conn:
        mine = schema.links.c.id == made["expired"].link.id
        conn.execute(update(schema.links).where(mine).values(expires_ns=time.time_ns()))
    assert visit(made["used up"]).get(f"/{files['used up']}/download").status_code == 303
    anna.do(messages.Unlink(parent=anna.me.root, name="trashed", file=files["trashed"]))
    made["never made"].url = f"{server.url}/s/{'A' * 43}"
    answers = []
    for name in names:
        for below in ("", f"/{files[name]}", f"/{files[name]}/download", f"/{files[name]}/zip"):
            answers.append(visit(made[name]).get(below))
        answers.append(visit(made[name]).post("password"))
    assert {item.status_code for item in answers} == {404}
    assert len({item.content for item in answers}) == 1
    ignored = ("date", "x-request-id")
    headers = {str([h for h in item.headers.items() if h[0] not in ignored]) for item in answers}
    assert len(headers) == 1


@pytest.mark.parametrize("secret", ["x", "A" * 42, "A" * 44, "%41" * 43, "A" * 42 + "="])
def test_what_is_no_secret(server: Running, anna: Client, secret: str) -> None:
    assert anna.http.get(f"/s/{secret}").status_code == 404


def test_a_file_that_comes_back_has_its_link_again(
    anna: Client, visit: Visit, server: Running
) -> None:
    file = anna.make("a")
    made = make_link(anna, file)
    anna.do(messages.Unlink(parent=anna.me.root, name="a", file=file))
    assert visit(made).get().status_code == 404
    assert [item.name for item in links_of(anna).links] == ["a"]
    anna.do(messages.Link(parent=anna.me.root, name="b", file=file))
    assert visit(made).get().status_code == 200
    assert [item.name for item in links_of(anna).links] == ["b"]


def test_a_link_expires(server: Running, anna: Client) -> None:
    now = time.time_ns()
    made = make_link(anna, anna.make("a"), expires_ns=now + DAY)
    secret = made.url.rpartition("/")[2]
    with server.app.service.db.read() as conn:
        assert links.open_link(conn, secret, now + DAY - 1, Places()) is not None
        assert links.open_link(conn, secret, now + DAY, Places()) is None
        assert links.still_serves(conn, made.link.id, now + DAY, Places()) is None


# --- what a link reaches ------------------------------------------------------------------------


@pytest.mark.slow
def test_only_what_is_below_its_directory(anna: Client, ben: Client, visit: Visit) -> None:
    outer = anna.mkdir("outer")
    shared = anna.mkdir("shared", outer)
    below = anna.mkdir("below", shared)
    file, _ = anna.store("file", make_chunk(b"file"), parent=below)
    beside, _ = anna.store("beside", make_chunk(b"beside"), parent=outer)
    bens, _ = ben.store("ben", make_chunk(b"ben"))
    visitor = visit(make_link(anna, shared))
    for inside in (shared, below, file):
        assert visitor.get(f"/{inside}").status_code == 200
    for outside in (outer, beside, anna.me.root, bens, new_id(), "x", "..%2f"):
        for what in ("", "/download", "/zip"):
            assert visitor.get(f"/{outside}{what}").status_code in (400, 404), (outside, what)
    assert visitor.get(f"/{below}/download").status_code == 404
    assert visitor.get(f"/{file}/zip").status_code == 404


def test_what_moves_out_is_out_of_reach(anna: Client, visit: Visit) -> None:
    shared = anna.mkdir("shared")
    below = anna.mkdir("below", shared)
    file, _ = anna.store("file", make_chunk(b"file"), parent=below)
    visitor = visit(make_link(anna, shared))
    urls = [visitor.content(f"/{file}/download"), visitor.content(f"/{below}/zip")]
    for url in urls:
        assert visitor.http.get(url).status_code == 200
    root = anna.me.root
    anna.do(
        messages.Rename(parent=shared, name="below", file=below, new_parent=root, new_name="below")
    )
    for gone in (below, file):
        assert visitor.get(f"/{gone}").status_code == 404
    assert visitor.get(f"/{file}/download").status_code == 404
    for url in urls:
        assert visitor.http.get(url).status_code == 404
    anna.do(
        messages.Rename(parent=root, name="below", file=below, new_parent=shared, new_name="back")
    )
    assert visitor.get(f"/{file}").status_code == 200
    assert visitor.http.get(urls[0]).status_code == 200


def test_a_name_elsewhere_in_the_drive_is_not_told(anna: Client, visit: Visit) -> None:
    shared = anna.mkdir("shared")
    file, _ = anna.store("named", make_chunk(b"file"), parent=shared)
    anna.do(messages.Link(parent=anna.me.root, name="a secret plan", file=file))
    visitor = visit(make_link(anna, shared))
    page = visitor.get(f"/{file}")
    assert "named" in page.text
    assert "secret plan" not in page.text
    kept = visitor.http.get(visitor.content(f"/{file}/download"))
    assert 'filename="named"' in kept.headers["content-disposition"]
    anna.do(messages.Unlink(parent=shared, name="named", file=file))
    assert visitor.get(f"/{file}").status_code == 404


MANY = 3000


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Database]:
    """A database of nobody but anna."""
    db = Database(tmp_path / "db.sqlite")
    db.migrate()
    with db.write() as conn:
        accounts.insert_account(conn, "anna", "none", 1)
    yield db
    db.close()


def plant(conn: Connection, drive: Any, id: str, *names: tuple[str, str], kind: str) -> str:
    """A file with these (parent, name)."""
    numbers = dict.fromkeys(
        ("mode", "uid", "gid", "mtime_ns", "ctime_ns", "size", "rdev", "rev"), 0
    )
    row = {"id": id, "drive": drive.id, "kind": kind, "links": len(names)}
    conn.execute(insert(schema.files), numbers | row)
    places = [{"parent": parent, "name": name, "file": id, "rev": 0} for parent, name in names]
    conn.execute(insert(schema.entries), places)
    return id


def in_many_places(conn: Connection, places: int, names: int) -> tuple[str, str, str]:
    """(inside, file, inside too): a directory of the root, with a file that has `names` names in
    each of `places` directories below it and beside it, and one more directory."""
    drive = conn.execute(select(schema.drives)).one()
    top = plant(conn, drive, new_id(), (drive.root, f"top {places} {names}"), kind="directory")
    found = []
    for beside in (drive.root, top):
        for number in range(places):
            name = f"{places} {names} {number}"
            found.append(plant(conn, drive, new_id(), (beside, name), kind="directory"))
    last = plant(conn, drive, new_id(), (top, "last"), kind="directory")
    called = [(parent, f"name {number}") for parent in found for number in range(names)]
    return top, plant(conn, drive, new_id(), *called, kind="file"), last


class Link(NamedTuple):
    """The columns of a link that matter here."""

    file: str
    revoked_ns: None = None
    expires_ns: None = None
    name: str = "linked"


def visited(conn: Connection, link: Any, file: str, places: Places) -> str | None:
    """The name by which a visitor of `link` sees `file`; None: it is out of reach."""
    assert links._is_open(conn, link, 1, places)
    found = links.inside(conn, link, file, places)
    return None if found is None else found.name


@pytest.mark.slow
@pytest.mark.parametrize(("places", "names"), [(1, MANY), (MANY, 1)])
@pytest.mark.parametrize("target", ["directory", "file", "another directory"])
def test_a_file_with_very_many_names_costs_no_more_to_visit(
    quiet: Database, places: int, names: int, target: str
) -> None:
    """From the second time on, also where the one name is the last of all, or there is none."""
    with quiet.write() as conn:
        one, many = in_many_places(conn, 1, 1), in_many_places(conn, places, names)
    with quiet.read() as conn:
        work = []
        for top, file, last in (one, many):
            link = Link({"directory": top, "file": file, "another directory": last}[target])
            known = Places()
            seen = visited(conn, link, file, known)
            assert (seen is None) is (target == "another directory")
            work.append(steps_of(conn, partial(visited, conn, link, file, known)))
    assert work[1] <= 2 * work[0] + 10


@pytest.mark.slow
def test_what_was_just_listed_is_not_looked_for(quiet: Database) -> None:
    with quiet.write() as conn:
        top, file, _ = in_many_places(conn, MANY, 1)
    with quiet.read() as conn:
        link, known, unknown = Link(top), Places(), Places()
        (directory,) = tree.listing(conn, top, None, 1)
        known.note_listed(tree.listing(conn, directory.id, None), top, directory.id)
        work = [
            steps_of(conn, partial(visited, conn, link, file, item)) for item in (known, unknown)
        ]
    assert 20 * work[0] < work[1]


def test_what_is_remembered_of_places_is_not_believed(quiet: Database) -> None:
    with quiet.write() as conn:
        top, file, last = in_many_places(conn, 70, 2)
    known, link = Places(), Link(top)

    def seen(link: Link = link) -> str | None:
        with quiet.read() as conn:
            return visited(conn, link, file, known)

    def change(where: Any, **values: object) -> None:
        with quiet.write() as conn:
            conn.execute(update(schema.entries).where(where).values(**values))
            conn.execute(update(schema.drives).values(head_seq=schema.drives.c.head_seq + 1))

    assert seen() == "name 0"
    entries = schema.entries.c
    found = known.recall(file, top)
    change((entries.parent == found) & (entries.name == "name 0"), name="renamed")
    assert seen() == "name 1"
    change(entries.file == found, parent=last)  # it moved, and is still below
    assert seen() == "name 1"
    assert seen(Link(last)) == "name 1"
    with quiet.read() as conn:
        root = conn.execute(select(schema.drives.c.root)).scalar_one()
    change(entries.file == found, parent=root, name="moved out")
    assert seen(Link(last)) is None
    change(entries.file == found, parent=last)
    assert seen(Link(last)) == "name 1"


def test_places_are_remembered_up_to_a_bound() -> None:
    places = Places(most=2)
    for number in range(5):
        places.note(str(number), "top", number)
        places.note("often", "top", "here")
    assert places.recall("often", "top") == "here"
    assert [places.recall(str(number), "top") for number in range(5)] == [None] * 4 + [4]


def test_what_a_zip_would_hold_is_counted_once(
    quiet: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet.write() as conn:
        drive = conn.execute(select(schema.drives)).one()
        tops = [in_many_places(conn, number, 1)[0] for number in (3, 5)]
    counts, counted = tree.Counts(most=1), []
    count_below = tree.count_below

    def count(conn: Connection, directory: str, limit: int) -> int:
        counted.append(directory)
        return count_below(conn, directory, limit)

    monkeypatch.setattr(tree, "count_below", count)

    def below(directory: str, limit: int = 100) -> int:
        with quiet.read() as conn:
            return counts.below(conn, directory, drive.id, limit)

    assert [below(tops[0]) for _ in range(3)] == [7] * 3
    assert len(counted) == 1
    assert below(tops[0], limit=2) == 3  # one too many is enough
    assert [below(tops[1]), below(tops[0])] == [11, 7]  # only one is remembered
    assert len(counted) == 4
    with quiet.write() as conn:
        plant(conn, drive, new_id(), (tops[0], "another"), kind="file")
        conn.execute(update(schema.drives).values(head_seq=drive.head_seq + 1))
    assert below(tops[0]) == 8


def test_a_link_tells_the_name_that_it_was_made_to(anna: Client, visit: Visit) -> None:
    """On its page, in the header of a download and in lists; also when that name goes."""
    private, public = anna.mkdir("private"), anna.mkdir("public")
    file, _ = anna.store("a secret", make_chunk(b"file"), parent=private)
    anna.do(messages.Link(parent=public, name="plan", file=file))
    made = make_link(anna, file, entry=Entry(public, "plan"))
    visitor = visit(made)

    def told() -> str:
        kept = visitor.http.get(visitor.content(f"/{file}/download"))
        (listed,) = links_of(anna, file).links
        return f"{visitor.get().text} {kept.headers['content-disposition']} {listed.name}"

    assert made.link.name == "plan"
    move = {"new_parent": anna.me.root, "new_name": "final"}
    anna.do(messages.Rename(file=file, parent=public, name="plan", **move))
    assert ("plan" in told(), told().count("final") >= 3) == (False, True)
    anna.do(messages.Unlink(file=file, parent=anna.me.root, name="final"))
    assert told().count("final") >= 3
    assert "secret" not in told()


def test_a_link_tells_what_its_file_was_called_when_it_was_made(anna: Client) -> None:
    """As long as that is another name, or in another directory, than it is now."""
    root, folder = anna.me.root, anna.mkdir("folder")
    file, _ = anna.store("report", make_chunk(b"report"))
    made = make_link(anna, file)
    assert made.link.was is None

    def moved(was: tuple[str, str], to: tuple[str, str]) -> Entry | None:
        (parent, name), (new_parent, new_name) = was, to
        new = {"new_parent": new_parent, "new_name": new_name}
        anna.do(messages.Rename(file=file, parent=parent, name=name, **new))
        (listed,) = links_of(anna).links
        assert (listed.name, links_of(anna, file).links) == (new_name, [listed])
        return listed.was

    assert moved((root, "report"), (root, "report~")) == Entry(root, "report")
    assert moved((root, "report~"), (folder, "report")) == Entry(root, "report")
    assert moved((folder, "report"), (root, "report")) is None
    anna.do(messages.Rename(file=folder, parent=root, name="folder", new_parent=root, new_name="f"))
    assert links_of(anna).links[0].was is None
    again = make_link(anna, file).link.id
    moved_to = {"new_parent": folder, "new_name": "report"}
    anna.do(messages.Rename(file=file, parent=root, name="report", **moved_to))
    third = make_link(anna, file).link.id
    found = {item.id: item.was for item in links_of(anna).links}
    entry = Entry(root, "report")
    assert found == {made.link.id: entry, again: entry, third: None}


# --- how downloads are counted ------------------------------------------------------------------


def test_the_last_download_is_had_once(anna: Client, visit: Visit, server: Running) -> None:
    file, _ = anna.store("a", make_chunk(b"once"))
    made = make_link(anna, file, max_downloads=3)
    visitors = [visit(made) for _ in range(12)]
    with ThreadPoolExecutor(len(visitors)) as pool:
        answers = list(pool.map(lambda each: each.get(f"/{file}/download"), visitors))
    assert sorted(each.status_code for each in answers) == [303] * 3 + [404] * 9
    assert links_of(anna).links[0].downloads == 3
    noted = audit_of(server, made.link.id)
    assert [action for action, _ in noted] == ["link_make"] + ["link_download"] * 3
    assert noted[1][1] == {"file": file, "address": "127.0.0.1"}


def test_downloads_do_not_fill_the_audit_log(
    server: Running, anna: Client, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app.service.links, "notes", TokenBuckets(2, 3600.0))
    file = anna.make("a")
    free, limited = make_link(anna, file), make_link(anna, file, max_downloads=9)
    for made, rows in ((free, 2), (limited, 4)):
        visitor = visit(made)
        for _ in range(4):
            visitor.content(f"/{file}/download")
        assert len(audit_of(server, made.link.id)) == 1 + rows
    assert [item.downloads for item in links_of(anna).links] == [4, 4]


def test_the_count_itself_refuses_what_is_over(server: Running, anna: Client) -> None:
    """Two that both saw the link open: the second finds it used up when it counts."""
    file = anna.make("a")
    made = make_link(anna, file, max_downloads=1)
    secret, now = made.url.rpartition("/")[2], time.time_ns()
    db = server.app.service.db
    with db.read() as conn:
        seen = [links.open_link(conn, secret, now, Places()) for _ in range(2)]
    begun = []
    for link in seen:
        assert link is not None
        with db.write() as conn:
            begun.append(links.begin_download(conn, link, now))
    assert begun == [True, False]


@pytest.mark.slow
def test_looking_does_not_count_and_going_on_does_not(anna: Client, visit: Visit) -> None:
    directory = anna.mkdir("dir")
    data = noise(1000, "going on")
    file, _ = anna.store("a", make_chunk(data), parent=directory)
    visitor = visit(make_link(anna, directory, max_downloads=2))
    for below in ("", f"/{directory}", f"/{file}"):
        assert visitor.get(below).status_code == 200
    for below in (f"/{file}/download", f"/{directory}/zip"):
        head = visitor.http.head(visitor.url + below)
        assert (head.status_code, head.content) == (303, b"")
        looked = visitor.http.head(head.headers["location"])
        assert (looked.status_code, looked.content) == (200, b"")
        taken = visitor.http.get(head.headers["location"])
        assert (taken.status_code, taken.headers["allow"]) == (405, "HEAD")
    assert links_of(anna).links[0].downloads == 0
    url = visitor.content(f"/{file}/download")
    first = visitor.http.get(url, headers={"Range": "bytes=0-499"})
    rest = visitor.http.get(url, headers={"Range": "bytes=500-"})
    assert first.content + rest.content == data
    assert links_of(anna).links[0].downloads == 1
    archive = visitor.content(f"/{directory}/zip")
    assert visitor.get().status_code == 404
    assert visitor.http.get(archive).status_code == 200
    assert visitor.http.get(url, headers={"Range": "bytes=999-"}).content == data[999:]
    assert links_of(anna).links[0].downloads == 2


def test_a_revoked_link_serves_no_more_from_urls_it_gave(anna: Client, visit: Visit) -> None:
    directory = anna.mkdir("dir")
    file, _ = anna.store("a", make_chunk(b"a"), parent=directory)
    made = make_link(anna, directory)
    visitor = visit(made)
    urls = [visitor.content(f"/{file}/download"), visitor.content(f"/{directory}/zip")]
    revoke(anna, made.link.id)
    assert [visitor.http.get(url).status_code for url in urls] == [404, 404]


def test_the_path_in_the_log_has_no_secret(
    anna: Client, visit: Visit, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_link(anna, anna.store("a", make_chunk(b"a"))[0])
    visitor = visit(made)
    visitor.http.get(visitor.content(f"/{made.link.file}/download"))
    visitor.get("/x/y/z")
    shown = capsys.readouterr()
    logged = shown.out + shown.err
    assert "/s/[link]" in logged
    assert urlsplit(made.url).path.removeprefix("/s/") not in logged
    assert "Signature" not in logged
