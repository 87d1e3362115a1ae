"""Commands about sharing, links, history, the trash and devices, with a real server and real
mounts: each has taken effect when it returns, in the mount it was typed at."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system import harness
from tests.system.harness import ACCOUNT, Device, Site

pytestmark = pytest.mark.new_programs("what a person types, as it is installed")


@dataclass
class People:
    """Mounts of two accounts, at one machine and server."""

    site: Site
    anna: Device
    ben: Device

    def say(self, *words: str | Path) -> str:
        """Type it; what it printed. It must succeed."""
        return self.site.cli(*words).stdout

    def refused(self, *words: str | Path, code: int = 1) -> str:
        """Type what must fail; the one line of the error."""
        done = self.site.cli(*words, check=False)
        assert done.returncode == code, done
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("nearline: ")
        assert ";" in done.stderr
        return done.stderr

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.say(*words, "--json"))


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    with harness.running() as site:
        password = ["--password-file", str(site.password_file)]
        site.cli("account", "add", "ben", "--data", site.server.data, *password)
        site.cli("login", site.server.url, "--account", "ben", *password)
        anna = site.device("anna", "--account", ACCOUNT)
        ben = site.device("ben", "--account", "ben")
        anna.mount()
        ben.mount()
        yield People(site, anna, ben)


def save(people: People, path: Path, *contents: str) -> Path:
    """The file with each of the contents in turn, each a version on the server."""
    for content in contents:
        path.write_text(content)
        people.anna.flush()
    return path


# --- history ------------------------------------------------------------------------------------


def test_log_and_restore(people: People) -> None:
    letter = save(people, people.anna.at / "letter.txt", "first", "second, longer")
    first, second = reversed(people.json("log", letter)["versions"])
    assert (first["size"], second["size"]) == (5, 14)
    assert (first["current"], second["current"]) == (False, True)
    assert second["account"] == ACCOUNT
    shown = people.say("log", letter).splitlines()
    assert len(shown) == 3
    assert re.search(rf"{second['id'][-8:]} .* 14 bytes .* anna on .* current", shown[1])
    assert Path(people.anna.at, first["path"]).read_text() == "first"

    people.say("restore", letter)
    assert letter.read_text() == "first"
    assert Path(people.anna.at, second["path"]).read_text() == "second, longer"
    people.say("restore", letter, "--version", second["id"][-8:])
    assert letter.read_text() == "second, longer"
    people.say("restore", people.anna.at / first["path"])
    assert letter.read_text() == "first"
    people.say("restore", people.anna.at / second["path"])
    third, _, _, restored = people.json("log", letter)["versions"][:4]
    assert third["restored_from"] == second["id"]
    assert restored["restored_from"] == first["id"]
    assert "restored from" in people.say("log", letter)


def test_restore_of_what_was_written_a_moment_ago(people: People) -> None:
    """Nothing was flushed: the command sees to it that the server has what is gone back from."""
    note = save(people, people.anna.at / "note", "old")
    note.write_text("new")
    people.say("restore", note)
    assert note.read_text() == "old"
    people.say("restore", note)
    assert note.read_text() == "new"


def test_a_version_by_its_time(people: People) -> None:
    file = save(people, people.anna.at / "timed", "a", "bb")
    _, then, *_ = re.split(r"  +", people.say("log", file).splitlines()[2])
    versions = people.json("log", file)["versions"]
    if versions[0]["created_ns"] // 10**9 != versions[1]["created_ns"] // 10**9:
        people.say("restore", file, "--version", then)
        assert file.read_text() == "a"
    else:  # both were made within one second
        assert "means 2 versions" in people.refused("restore", file, "--version", then)


def test_versions_that_are_not(people: People) -> None:
    file = save(people, people.anna.at / "single", "a")
    (people.anna.at / "folder").mkdir()
    assert "no version before" in people.refused("restore", file)
    assert "no version 999999" in people.refused("restore", file, "--version", "999999")
    assert "too short" in people.refused("restore", file, "--version", "9")
    assert "has no versions" in people.refused("log", people.anna.at / "folder")
    assert "check the name" in people.refused("log", people.anna.at / "nothing")
    assert "not in a Nearline mount" in people.refused("log", people.site.home)


# --- trash --------------------------------------------------------------------------------------


def test_a_file_comes_back_from_the_trash(people: People) -> None:
    file = save(people, people.anna.at / "gone.txt", "precious")
    file.unlink()
    listed = people.json("trash", "list", people.anna.at)["items"]
    assert listed[0]["path"] == "gone.txt"
    assert "gone.txt" in people.say("trash", "list", people.anna.at)
    people.say("restore", file)
    assert file.read_text() == "precious"
    file.unlink()
    people.say("trash", "restore", file)
    assert file.read_text() == "precious"


def test_a_folder_comes_back_with_all_that_was_in_it(people: People) -> None:
    top = people.anna.at / "Project"
    (top / "deep" / "deeper").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/deeper/c"):
        (top / name).write_text(name)
    people.anna.flush()
    shutil.rmtree(top)
    (item,) = [i for i in people.json("trash", "list", people.anna.at)["items"]
               if i["path"] == "Project"]  # fmt: skip
    assert (item["kind"], item["inside"]) == ("directory", 5)
    assert "shows what is" in people.refused("restore", top / "never")
    assert "6 files and folders" in people.say("trash", "restore", item["id"][-8:], people.anna.at)
    for name in ("a", "deep/b", "deep/deeper/c"):
        assert (top / name).read_text() == name


def test_one_file_comes_back_out_of_a_deleted_folder(people: People) -> None:
    top = people.anna.at / "Thesis"
    deep = top / "chapters" / "drafts"
    deep.mkdir(parents=True)
    deep.chmod(0o710)
    for name in ("early", "chapters/drafts/one", "chapters/drafts/two", "notes"):
        (top / name).write_text(name)
    people.anna.flush()
    (top / "early").unlink()
    people.anna.flush()
    shutil.rmtree(top)

    def inside(path: object) -> set[str]:
        return {item["path"] for item in people.json("trash", "list", path)["items"]}

    assert inside(top) == {"Thesis/early", "Thesis/chapters", "Thesis/notes"}
    assert inside(deep) == {"Thesis/chapters/drafts/one", "Thesis/chapters/drafts/two"}
    assert "Thesis/chapters/drafts/two" in people.say("trash", "list", deep)
    people.say("trash", "restore", deep / "one")
    assert (deep / "one").read_text() == "chapters/drafts/one"
    assert os.listdir(top) == ["chapters"]
    assert deep.stat().st_mode & 0o777 == 0o710
    (item,) = (i for i in people.json("trash", "list", deep)["items"] if i["name"] == "two")
    people.say("trash", "restore", item["id"][-8:], people.anna.at, "--to", people.anna.at)
    assert (people.anna.at / "two").read_text() == "chapters/drafts/two"
    people.say("trash", "restore", top / "early")  # its folder is there: it goes into that
    assert (top / "early").read_text() == "early"
    people.say("trash", "restore", top)  # the rest, beside what came back
    rest = people.anna.at / "Thesis (restored)"
    assert (rest / "notes").read_text() == "notes"
    assert os.listdir(rest / "chapters" / "drafts") == []
    shutil.rmtree(rest)
    people.anna.flush()
    people.say("trash", "empty", rest, "--yes")
    assert (deep / "one").read_text() == "chapters/drafts/one"


def test_what_comes_back_beside_a_new_thing_of_its_name(people: People) -> None:
    file = save(people, people.anna.at / "twice.txt", "old")
    file.unlink()
    save(people, file, "new")
    people.say("trash", "restore", file)
    assert file.read_text() == "new"
    assert (people.anna.at / "twice (restored).txt").read_text() == "old"


def test_what_comes_back_to_another_place(people: People) -> None:
    home = people.anna.at / "home"
    home.mkdir()
    file = save(people, home / "moved.txt", "content")
    file.unlink()
    people.anna.flush()
    home.rmdir()
    other = people.anna.at / "elsewhere"
    other.mkdir()
    item = next(i for i in people.json("trash", "list", people.anna.at)["items"]
                if i["name"] == "home")  # fmt: skip
    people.say("trash", "restore", item["id"], people.anna.at, "--to", other)
    assert (other / "home" / "moved.txt").read_text() == "content"


def test_emptying_is_for_good(people: People) -> None:
    for name in ("trash-1", "trash-2"):
        save(people, people.anna.at / name, name).unlink()
    assert "--yes" in people.refused("trash", "empty", people.anna.at, code=2)
    people.say("trash", "empty", people.anna.at / "trash-1", "--yes")
    left = {item["path"] for item in people.json("trash", "list", people.anna.at)["items"]}
    assert "trash-1" not in left
    assert "trash-2" in left
    people.say("trash", "empty", people.anna.at, "--yes")
    assert people.json("trash", "list", people.anna.at) == {"items": []}
    assert "empty" in people.say("trash", "list", people.anna.at)


# --- sharing ------------------------------------------------------------------------------------


def test_share_and_unshare(people: People) -> None:
    folder = people.anna.at / "Shared with Ben"
    folder.mkdir()
    save(people, folder / "plan", "version 1")
    assert people.say("share", folder, "ben") == "ben is viewer of Shared with Ben now.\n"
    people.ben.sees(f"Shared/{ACCOUNT}/Shared with Ben/plan", b"version 1")
    (grant,) = people.json("shares", folder / "plan")["grants"]
    assert (grant["account"], grant["role"], grant["path"]) == ("ben", "viewer", "Shared with Ben")
    (place,) = people.json("shared", people.ben.at)["shared"]
    assert (place["path"], place["role"]) == (f"Shared/{ACCOUNT}/Shared with Ben", "viewer")
    assert "viewer" in people.say("shared", people.ben.at)
    assert "only how this mount" in people.refused("share", people.ben.at / "Shared", "anna")

    people.say("share", folder, "ben", "--role", "editor")
    assert "editor" in people.say("shares", folder)
    people.say("unshare", folder, "ben")
    assert people.json("shares", folder)["grants"] == []
    people.ben.misses(f"Shared/{ACCOUNT}/Shared with Ben")
    assert "not shared" in people.refused("unshare", folder, "ben")
    assert "nobody" in people.refused("share", folder, "nobody")


def test_a_failed_request_has_one_id_in_both_logs(people: People) -> None:
    lines = [json.loads(line) for line in people.anna.log.splitlines()]
    people.refused("share", people.anna.at, "nobody-at-all")
    fresh = [json.loads(line) for line in people.anna.log.splitlines()][len(lines) :]
    (failed,) = [line for line in fresh if line["event"] == "request_failed"]
    assert failed["path"].endswith("/share")
    assert failed["id"] in people.site.server.log.read_text()


def test_unshare_says_what_is_left(people: People) -> None:
    outer = people.anna.at / "outer"
    (outer / "inner").mkdir(parents=True)
    people.say("share", outer, "ben")
    people.say("share", outer / "inner", "ben", "--role", "editor")
    said = people.say("unshare", outer / "inner", "ben")
    assert "ben still sees it as viewer of outer." in said
    people.say("unshare", outer, "ben")


def test_leave(people: People) -> None:
    gift = save(people, people.anna.at / "gift", "for ben")
    people.say("share", gift, "ben")
    there = people.ben.sees(f"Shared/{ACCOUNT}/gift", b"for ben")
    people.say("leave", there)
    assert not there.exists()
    assert people.json("shared", people.ben.at) == {"shared": []}
    assert people.json("shares", gift)["grants"] == []
    assert "nobody shares" in people.refused("leave", there)


# --- links --------------------------------------------------------------------------------------


def test_links(people: People) -> None:
    file = save(people, people.anna.at / "public.txt", "for all")
    secret = people.site.base / "link-password"
    secret.write_text("open sesame\n")
    words = ["--expires", "7d", "--max-downloads", "3", "--password-file", str(secret)]
    url = people.say("link", file, *words).strip()
    assert url.startswith(people.site.server.url)
    (link,) = people.json("links", file)["links"]
    assert (link["path"], link["has_password"], link["max_downloads"]) == ("public.txt", True, 3)
    assert 6 < (link["expires_ns"] - link["created_ns"]) / 86400e9 < 8
    assert link["id"][-8:] in people.say("links", people.anna.at)
    people.say("links", "revoke", link["id"][-8:], people.anna.at)
    assert people.json("links", people.anna.at) == {"links": []}
    assert "no link" in people.refused("links", "revoke", link["id"], people.anna.at)


# --- devices ------------------------------------------------------------------------------------


def test_devices(people: People) -> None:
    folder = people.anna.at / "scripts"
    folder.mkdir()
    words = ["--read-only", "--folder", folder, "--expires", "30d"]
    token = people.say("devices", "add", "backup", *words).strip()
    found = {one["name"]: one for one in people.json("devices", people.anna.at)["devices"]}
    assert (found["backup"]["scope"], found["backup"]["folder"]) == ("read", "scripts")
    assert sum(one["current"] for one in found.values()) == 1
    shown = people.say("devices", "list", people.anna.at)
    assert "this mount" in shown
    assert token not in shown + people.anna.log
    people.say("devices", "revoke", "backup", people.anna.at)
    names = [one["name"] for one in people.json("devices", people.anna.at)["devices"]]
    assert "backup" not in names
    own = next(name for name, one in found.items() if one["current"])
    assert "--own" in people.refused("devices", "revoke", found[own]["id"], people.anna.at)


def test_a_rotated_token_is_kept_and_used(people: People) -> None:
    kept = {path: path.read_text() for path in people.site.home.rglob("*.token")}
    assert kept
    people.say("devices", "rotate", people.anna.at)
    changed = [path for path, before in kept.items() if path.read_text() != before]
    assert len(changed) == 1
    save(people, people.anna.at / "after", "with the new token")
    people.anna.umount()
    people.anna.mount()
    assert (people.anna.at / "after").read_text() == "with the new token"
    for path, before in kept.items():
        assert before.strip() not in people.anna.log
        assert path.read_text().strip() not in people.anna.log


# --- without the server -------------------------------------------------------------------------


def test_without_the_server_commands_say_so(people: People) -> None:
    file = save(people, people.anna.at / "offline", "a")
    people.site.server.stop()
    try:
        people.anna.goes_offline()
        for words in (["log", file], ["restore", file], ["share", file, "ben"],
                      ["trash", "list", people.anna.at], ["devices", people.anna.at]):  # fmt: skip
            assert "cannot be" in people.refused(*words)
        assert people.say("flush", people.anna.at, "--unless-offline") == ""
        (people.anna.at / "unsent").write_text("kept")
        gave_up = people.site.cli("flush", people.anna.at, "--unless-offline", check=False)
        assert gave_up.returncode == 1
        assert "the journal keeps the rest" in gave_up.stderr
    finally:
        people.site.server.start()
    people.anna.comes_online()
