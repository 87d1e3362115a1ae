"""Three people, four mounts, and a network that misbehaves: sharing as people meet it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mount.session.symlinks import NOWHERE
from tests.system import harness
from tests.system.applications.test_editing import NEW, OLD, code, emacs, glib, qt, swap, word
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import Device, Site, noise, wait_until


@dataclass
class People:
    """Anna at home (`anna`) and on the road (`road`), ben, and cleo; all through one proxy."""

    site: Site
    proxy: FaultProxy
    anna: Device
    road: Device
    ben: Device
    cleo: Device

    @property
    def mounts(self) -> list[Device]:
        return [self.anna, self.road, self.ben, self.cleo]

    def share(self, name: str, account: str, role: str = "editor") -> None:
        self.site.cli("share", self.anna.at / name, account, "--role", role)

    def unshare(self, name: str, account: str) -> None:
        self.site.cli("unshare", self.anna.at / name, account)

    def folder(self, name: str) -> Path:
        """A folder of Anna's that the server has."""
        path = self.anna.at / name
        path.mkdir()
        self.anna.flush()
        return path

    def flush(self) -> None:
        for device in self.mounts:
            device.flush()


@pytest.fixture(scope="module")
def everybody() -> Iterator[People]:
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        for account in ("ben", "cleo"):
            site.person(account)
        names = (("anna", "anna"), ("road", "anna"), ("ben", "ben"), ("cleo", "cleo"))
        people = People(
            site, proxy, *(site.device(name, "--account", account) for name, account in names)
        )
        for device in people.mounts:
            device.mount()
        yield people


@pytest.fixture
def people(everybody: People) -> Iterator[People]:
    """The network is sound when a test begins, and again when it has ended."""
    everybody.proxy.forget()
    for device in everybody.mounts:
        device.comes_online()
    yield everybody
    everybody.proxy.forget()


def misbehave(proxy: FaultProxy) -> None:
    """Do to every kind of traffic what a bad hour does."""
    proxy.add(Fault("^GET /chunks/", times=1, reset_after=100_000))
    proxy.add(Fault("^GET /chunks/", times=1, corrupt=5))
    proxy.add(Fault("^GET /chunks/", times=1, status=403))
    proxy.add(Fault("^PUT /blobs/", times=2, status=503))
    proxy.add(Fault("^POST /v1/changes/apply", times=2, status=500))
    proxy.add(Fault("^POST /v1/files", times=1, reset_after=0))
    proxy.add(Fault("^GET /v1/changes", times=3, latency=0.3))
    proxy.add(Fault("^GET /v1/changes/live", times=1, status=502))


def tree(top: Path) -> dict[str, bytes | None]:
    """Every path below `top`, with the bytes of files."""
    found: dict[str, bytes | None] = {}
    for directory, folders, files in os.walk(top):
        at = Path(directory)
        found |= {str((at / name).relative_to(top)): None for name in folders}
        found |= {str((at / name).relative_to(top)): (at / name).read_bytes() for name in files}
    return found


def same(*tops: Path) -> Callable[[], bool]:
    def compare() -> bool:
        first, *rest = [tree(top) for top in tops]
        return all(other == first for other in rest)

    return compare


def error_of(work: Callable[..., object], *args: object) -> int | None:
    try:
        work(*args)
    except OSError as error:
        return error.errno
    return None


def test_share_edit_move_and_revoke_on_a_bad_network(people: People) -> None:
    top = people.folder("project")
    (top / "readme").write_bytes(b"read me")
    (top / "data").write_bytes(noise(700_000, 1))
    people.share("project", "ben")
    people.share("project", "cleo", "viewer")
    ours, bens = top, people.ben.at / "Shared/anna/project"
    cleos, roads = people.cleo.at / "Shared/anna/project", people.road.at / "project"
    people.cleo.sees("Shared/anna/project/data", noise(700_000, 1))
    people.ben.sees("Shared/anna/project/readme", b"read me")
    misbehave(people.proxy)

    def anna_works() -> None:
        for number in range(10):
            (ours / f"anna {number}").write_bytes(noise(5_000, number))
        (ours / "sub").mkdir()
        os.rename(ours / "anna 3", ours / "sub" / "moved by anna")

    def ben_works() -> None:
        for number in range(10):
            (bens / f"ben {number}").write_bytes(noise(5_000, 100 + number))
        with (bens / "data").open("r+b") as file:
            file.seek(300_000)
            file.write(b"by ben")
        os.unlink(bens / "ben 4")
        os.rename(bens / "ben 5", bens / "renamed by ben")

    works = [threading.Thread(target=work) for work in (anna_works, ben_works)]
    for work in works:
        work.start()
    for work in works:
        work.join()
    people.flush()
    people.anna.shows(same(ours, bens, cleos, roads), "four times the same tree")
    found = tree(ours)
    assert found["sub/moved by anna"] == noise(5_000, 3)
    assert found["renamed by ben"] == noise(5_000, 105)
    assert "ben 4" not in found
    assert (found["data"] or b"")[300_000:300_006] == b"by ben"
    assert len(found) == 2 + 10 + 1 + 9

    misbehave(people.proxy)
    people.folder("private")
    os.rename(ours / "sub", people.anna.at / "private" / "sub")
    people.ben.misses("Shared/anna/project/sub")
    people.cleo.misses("Shared/anna/project/sub")
    assert (people.anna.at / "private/sub/moved by anna").exists()

    people.unshare("project", "ben")
    people.ben.misses("Shared")
    assert os.listdir(cleos)
    people.unshare("project", "cleo")
    people.cleo.misses("Shared")
    assert all(device.status()["refused"] == [] for device in people.mounts)


def test_a_viewer_reads_and_is_refused_at_open(people: People) -> None:
    top = people.folder("for reading")
    (top / "page").write_bytes(b"words")
    people.share("for reading", "cleo", "viewer")
    page = people.cleo.sees("Shared/anna/for reading/page", b"words")
    assert error_of(page.open, "ab") == errno.EROFS
    assert error_of(page.open, "wb") == errno.EROFS
    assert error_of(os.unlink, page) == errno.EROFS
    assert error_of(os.mkdir, page.parent / "new") == errno.EROFS
    assert error_of(os.rename, page, page.parent / "other") == errno.EROFS
    assert error_of(os.chmod, page, 0o600) == errno.EROFS
    assert error_of(os.setxattr, page, "user.x", b"1") == errno.EROFS
    assert page.stat().st_mode & 0o222 == 0
    assert people.cleo.status()["journal"]["operations"] == 0
    people.share("for reading", "cleo", "editor")
    people.cleo.shows(lambda: page.stat().st_mode & 0o200, "the right to write")
    page.write_bytes(b"more words")
    people.anna.sees("for reading/page", b"more words")


def test_what_was_open_and_cached_cannot_be_read_after_revocation(people: People) -> None:
    top = people.folder("secret")
    content = noise(900_000, 7)
    (top / "plans").write_bytes(content)
    people.share("secret", "ben")
    plans = people.ben.sees("Shared/anna/secret/plans", content)
    with plans.open("rb", buffering=0) as file:
        assert file.read(4096) == content[:4096]
        people.unshare("secret", "ben")
        people.ben.misses("Shared/anna/secret")
        wait_until(
            lambda: error_of(os.pread, file.fileno(), 4096, 0) == errno.EACCES, "a closed door"
        )
    assert not plans.exists()


@pytest.mark.parametrize("remover", ["owner", "grantee"])
def test_a_folder_in_a_share_that_the_other_removed_is_made_anew(
    people: People, remover: str
) -> None:
    """Whoever of the two put files in, in the meantime: for them, and all who see the share."""
    name = f"removed by {remover}"
    top = people.folder(name)
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "sub" / "old").write_bytes(b"old")
    people.share(name, "ben")
    people.share(name, "cleo", "viewer")
    shared = f"Shared/anna/{name}"
    tops = [top, people.road.at / name, people.ben.at / shared, people.cleo.at / shared]
    for device, at in zip(people.mounts, tops, strict=True):
        device.sees(str((at / "sub" / "old").relative_to(device.at)), b"old")
        assert os.listdir(at / "sub" / "deep") == []
    anna, _, ben, _ = tops
    removes, puts = (anna, ben) if remover == "owner" else (ben, anna)
    device = people.ben if remover == "owner" else people.anna
    device.umount()
    people.site.server.stop()
    device.mount()
    wanted = {f"sub/deep/{number}": noise(3_000, number) for number in range(20)}
    for path, data in wanted.items():
        (puts / path).write_bytes(data)
    device.umount("--now")
    people.site.server.start()
    shutil.rmtree(removes / "sub")
    (people.anna if remover == "owner" else people.ben).flush()
    device.mount()
    people.flush()
    wait_until(same(*tops), "four times the same tree", 40)
    assert tree(anna) == {"sub": None, "sub/deep": None, **wanted}
    assert error_of(os.mkdir, tops[3] / "sub" / "new") == errno.EROFS
    assert all(device.status()["refused"] == [] for device in people.mounts)
    loose = [entry for at in people.mounts for entry in os.listdir(at.at) if "conflict" in entry]
    assert loose == []


def test_edits_that_could_not_be_sent_before_the_revocation_are_kept(people: People) -> None:
    top = people.folder("together")
    (top / "draft.txt").write_bytes(b"first")
    people.share("together", "ben")
    draft = people.ben.sees("Shared/anna/together/draft.txt", b"first")
    people.proxy.cut()
    draft.write_bytes(b"ben's last words")
    (draft.parent / "new.txt").write_bytes(b"ben's alone")
    file = people.site.ask(lambda api: _child(api, "together"))
    people.site.ask(lambda api: api.unshare(file, "ben"))
    people.proxy.mend()
    people.ben.misses("Shared/anna/together")
    people.ben.flush()
    kept = {path.read_bytes() for path in people.ben.at.iterdir() if path.is_file()}
    assert kept == {b"ben's last words", b"ben's alone"}
    assert people.ben.status()["refused"] == []
    assert (top / "draft.txt").read_bytes() == b"first"
    assert sorted(os.listdir(top)) == ["draft.txt"]


def test_nothing_is_renamed_from_one_drive_into_another_but_copied(people: People) -> None:
    top = people.folder("inbox")
    people.share("inbox", "ben")
    people.ben.sees("Shared/anna/inbox")
    mine = people.ben.at / "mine.txt"
    mine.write_bytes(b"for anna")
    there = people.ben.at / "Shared/anna/inbox/mine.txt"
    assert error_of(os.rename, mine, there) == errno.EXDEV
    harness.run("mv", mine, there)
    people.anna.sees("inbox/mine.txt", b"for anna")
    assert not mine.exists()
    assert (top / "mine.txt").read_bytes() == b"for anna"


def test_between_two_shared_folders_it_is_copied_too_and_a_hidden_name_goes(
    people: People,
) -> None:
    for name in ("from", "to"):
        people.folder(name)
        people.share(name, "ben")
        people.ben.sees(f"Shared/anna/{name}")
    (people.anna.at / "from/plan").write_bytes(b"plan")
    people.ben.sees("Shared/anna/from/plan", b"plan")
    shared = people.ben.at / "Shared/anna"
    assert error_of(os.link, shared / "from/plan", shared / "to/plan") == errno.EXDEV
    assert error_of(os.rename, shared / "from/plan", shared / "to/plan") == errno.EXDEV
    os.link(shared / "from/plan", shared / "from/.hidden")
    people.anna.sees("from/.hidden", b"plan")
    os.rename(people.anna.at / "from/plan", people.anna.at / "private plan")
    people.anna.flush()
    people.ben.shows(lambda: os.listdir(shared / "from") == [], "both names are gone")
    wait_until(lambda: os.listdir(people.anna.at / "from") == [], "here too")
    assert (people.anna.at / "private plan").read_bytes() == b"plan"
    assert people.ben.status()["refused"] == []


def test_a_symlink_of_an_editors_that_leads_out_is_broken_if_asked_for(people: People) -> None:
    top = people.folder("links")
    people.share("links", "ben")
    people.ben.sees("Shared/anna/links")
    secret = people.site.base / "secret"
    secret.write_bytes(b"anna's")
    there = people.ben.at / "Shared/anna/links"
    (there / "file").write_bytes(b"ben's")
    (there / "out").symlink_to(secret)
    (there / "in").symlink_to("file")
    (top / "own").symlink_to(secret)
    people.anna.sees("links/in", b"ben's")
    people.anna.sees("links/out", b"anna's")  # as it is, unless asked otherwise
    people.anna.umount()
    people.anna.mount("--symlinks", "inside")
    assert (top / "in").read_bytes() == b"ben's"
    assert (top / "own").read_bytes() == b"anna's"
    assert os.readlink(top / "out") == NOWHERE
    assert os.lstat(top / "out").st_size == len(NOWHERE)
    for work in (lambda: (top / "out").read_bytes(), lambda: (top / "out").write_bytes(b"x")):
        with pytest.raises(NotADirectoryError):
            work()
    people.anna.umount()
    people.anna.mount()


def test_a_share_is_there_after_a_restart_without_the_network(people: People) -> None:
    top = people.folder("kept")
    (top / "file").write_bytes(b"content")
    people.share("kept", "cleo", "viewer")
    people.cleo.sees("Shared/anna/kept/file", b"content")
    people.cleo.umount()
    people.proxy.cut()
    people.cleo.mount()
    assert (people.cleo.at / "Shared/anna/kept/file").read_bytes() == b"content"
    people.proxy.mend()


def emacs_again(text: Path) -> None:
    """In a second session the backup is there, and renamed over."""
    emacs(text)
    emacs(text)


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("editor", [emacs, emacs_again, word, glib, qt, code, swap])
def test_what_was_given_out_is_the_document_of_that_name(
    people: People, editor: Callable[[Path], None], offline: bool
) -> None:
    """However an editor saves it: whom it is shared with has what was saved, under the same name;
    whoever has the link's URL gets that, and its history goes on. The old version, where the editor
    keeps it, is another file. A handle that was open still reads what it opened."""
    folder = people.folder(f"{editor.__name__}-{offline}")
    text = folder / f"{folder.name}.tex"
    text.write_text(OLD)
    people.anna.flush()
    people.share(f"{folder.name}/{text.name}", "ben", "viewer")
    url = people.site.cli("link", text).stdout.strip()
    people.ben.sees(f"Shared/anna/{text.name}", OLD.encode())
    if offline:
        people.proxy.cut()
    with text.open() as handle:
        editor(text)
        assert handle.read() in (OLD, NEW) if editor is code else OLD
    assert text.read_text() == NEW
    people.proxy.mend()
    people.flush()
    people.ben.sees(f"Shared/anna/{text.name}", NEW.encode())
    people.road.sees(f"{folder.name}/{text.name}", NEW.encode())
    backup = text.with_name(f"{text.name}~")
    if editor in (emacs, glib):
        people.road.sees(f"{folder.name}/{backup.name}", OLD.encode())
    file = people.site.ask(lambda api: _file(api, folder.name, text.name))
    got = httpx.get(f"{url}/{file}/download", follow_redirects=True)
    assert (got.status_code, got.text) == (200, NEW)
    assert text.name in got.headers["content-disposition"]
    (link,) = json.loads(people.site.cli("links", text, "--json").stdout)["links"]
    assert (link["name"], link["was_name"]) == (text.name, None)
    (grant,) = json.loads(people.site.cli("shares", text, "--json").stdout)["grants"]
    assert (grant["account"], grant["was_name"]) == ("ben", None)
    log = json.loads(people.site.cli("log", text, "--json").stdout)["versions"]
    held = [(people.anna.at / version["path"]).read_text() for version in log]
    assert (held[0], held[-1]) == (NEW, OLD)
    assert [version["current"] for version in log] == [True, *[False] * (len(log) - 1)]


async def _file(api: harness.ApiClient, folder: str, name: str) -> str:
    page = await api.children(await _child(api, folder))
    return next(child.file.id for child in page.children if child.entry.name == name)


async def _child(api: harness.ApiClient, name: str) -> str:
    me = await api.me()
    page = await api.children(me.root)
    return next(child.file.id for child in page.children if child.entry.name == name)
