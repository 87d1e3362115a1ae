"""mount/cli: sharing, links, history, trash and devices, asked of a made-up mount.

What the mount is asked, what is printed, and with which exit code; tests/system/test_commands.py
has the same commands with everything real.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import json, structs

from mount.cli import main, setup
from mount.control import messages, server
from mount.control.account_messages import (
    Device,
    Devices,
    DevicesRequest,
    Emptied,
    Grant,
    History,
    LeaveRequest,
    Link,
    LinkMade,
    Links,
    LinksRequest,
    LogRequest,
    MakeLinkRequest,
    MakeTokenRequest,
    Reached,
    ReloadTokenRequest,
    Restored,
    RestoreRequest,
    RevokeDeviceRequest,
    RevokeLinkRequest,
    RotateRequest,
    Shared,
    SharedPlace,
    SharedRequest,
    ShareRequest,
    Shares,
    SharesRequest,
    Token,
    Trash,
    TrashedFile,
    TrashEmptyRequest,
    TrashRequest,
    TrashRestoreRequest,
    UnshareRequest,
    Version,
)
from mount.failures import Failure
from mount.process import registry
from tests.mount import asking

ID = "019ab3c4d5e670008888888" + "81a2b3c4d"
NOON = 1_795_359_845 * 10**9
LINK = Link(
    id=ID, name="b", path="a/b", created_ns=NOON, expires_ns=None, has_password=True,
    max_downloads=3, downloads=1,
)  # fmt: skip
DEVICE = Device(
    id=ID, name="laptop", scope="full", folder=None, folder_id=None, created_ns=NOON,
    expires_ns=None, seen_ns=None, current=True,
)  # fmt: skip
VERSION = Version(
    id=ID, path="letter.txt@@/x", created_ns=NOON, mtime_ns=NOON, size=1200, account="anna",
    device="laptop", current=True, restored_from="f" * 32, overtook="e" * 32,
)  # fmt: skip
TRASHED = TrashedFile(
    id=ID, path="Project", name="Project", kind="directory", size=0, trashed_ns=NOON,
    expires_ns=NOON, inside=7,
)  # fmt: skip
GRANT = Grant(account="ben", role="viewer", path="a", granted_by="anna", at_ns=NOON)
SHARES = Shares(path="a", owner="anna", grants=[GRANT])
REACHED = Reached(account="ben", role="editor", name="plan", path="other/plan")
ALSO = Shares(path="a", owner="anna", grants=[], reached=[REACHED], more_reached=True)
MOVED = structs.replace(LINK, was_name="c", was_path="x/c")
TAKEN = structs.replace(LINK, was_name="c")
RENAMED = structs.replace(GRANT, was_name="c", was_path="c")
PLACE = SharedPlace(path="Shared/ben/x", owner="ben", role="editor", kind="file", size=3)
RESTORED = Restored(path="letter.txt", version=ID)


class FakeMount:
    """Answers with what is next; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers: list[Any] = []

    def status(self) -> messages.Status:
        raise NotImplementedError

    async def account(self, request: Any, report: server.Report) -> Any:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Mounts:
    """Made-up mounts, each on a socket of its own; `add` registers one as a running mount would."""

    def __init__(self, base: Path, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self._base, self._token, self._nursery = base, token, nursery

    def add(self, name: str, account: str = "anna") -> FakeMount:
        fake, path = FakeMount(), self._base / name / "control.sock"
        path.parent.mkdir(mode=0o700)
        start = partial(self._nursery.start, asking.serve, path, fake)
        trio.from_thread.run(start, trio_token=self._token)
        registry.put(
            registry.Record(
                mountpoint=f"/{name}", state_dir=str(path.parent), cache_dir="/cache", url="http://x",
                account=account, pid=os.getpid(), started=registry.started_at(os.getpid()),
                control=str(path),
            )
        )  # fmt: skip
        return fake


@pytest.fixture
def mounts(tmp_path: Path, home: Path) -> Iterator[Mounts]:
    ready, found = threading.Event(), []
    end: list[trio.CancelScope] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            found.append(Mounts(tmp_path, trio.lowlevel.current_trio_token(), nursery))
            end.append(nursery.cancel_scope)
            ready.set()
            await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(60)
    yield found[0]
    trio.from_thread.run_sync(end[0].cancel, trio_token=found[0]._token)
    thread.join(60)


@pytest.fixture
def mount(mounts: Mounts) -> FakeMount:
    return mounts.add("m")


CASES: list[tuple[list[str], Any, Any, str]] = [
    # what is typed, what the mount is asked, what it answers, what is printed
    (["share", "/m/a", "ben"], ShareRequest("a", "ben", "viewer"), SHARES, "is viewer"),
    (["share", "/m", "ben", "--role", "editor"], ShareRequest("", "ben", "editor"), SHARES,
     "ben is editor of the whole drive"),
    (["unshare", "/m/a/b", "BEN"], UnshareRequest("a/b", "BEN"), SHARES,
     "BEN still sees it as viewer of a."),
    (["unshare", "/m/a/b", "BEN"], UnshareRequest("a/b", "BEN"), ALSO,
     "BEN still reaches other/plan as editor.\nThere is more"),
    (["shares", "/m/a"], SharesRequest("a"), SHARES, "anna     owner"),
    (["shares", "/m/a"], SharesRequest("a"), ALSO, "ben      editor  other/plan"),
    (["shares", "/m/a"], SharesRequest("a"),
     Shares(path="a", owner="anna", grants=[RENAMED]),
     "GIVEN ON  WAS  BY    WHEN\nanna     owner\nben      viewer  a         c    anna  "),
    (["shared"], SharedRequest(), Shared([PLACE]), "Shared/ben/x  ben    editor"),
    (["leave", "/m/Shared/ben/x"], LeaveRequest("Shared/ben/x"), messages.Done(), "not shared"),
    (["link", "/m/a", "--expires", "1d 2h", "--max-downloads", "3"],
     MakeLinkRequest(path="a", expires_seconds=93600, max_downloads=3),
     LinkMade(LINK, "https://x/s/secret"), "https://x/s/secret\n"),
    (["links"], LinksRequest(None), Links([LINK]), "1a2b3c4d"),
    (["links", "/m"], LinksRequest(None), Links([LINK]), "1 of 3"),
    (["links"], LinksRequest(None), Links([LINK]), "PATH  MADE"),
    (["links"], LinksRequest(None), Links([LINK, MOVED]), "a/b   x/c  "),
    (["links"], LinksRequest(None), Links([TAKEN]), "a/b   (elsewhere)/c  "),
    (["links", "/m/a"], LinksRequest("a"), Links([]), "nearline link PATH"),
    (["links", "revoke", "1a2b3c4d"], RevokeLinkRequest("1a2b3c4d"), messages.Done(),
     "nowhere"),
    (["log", "/m/letter.txt"], LogRequest("letter.txt"),
     History(path="letter.txt", versions=[VERSION]),
     "1.2 kB  anna on laptop  current, restored from ffffffff, won over eeeeeeee  letter.txt@@/x"),
    (["restore", "/m/letter.txt"], RestoreRequest(path="letter.txt"), RESTORED,
     "letter.txt is as in version 1a2b3c4d again"),
    (["restore", "/m/letter.txt", "--version", "1a2b3c4d"],
     RestoreRequest(path="letter.txt", version="1a2b3c4d"), RESTORED, "again"),
    (["trash", "list"], TrashRequest(), Trash([TRASHED]), "7 inside  Project/"),
    (["trash", "list", "/m"], TrashRequest(), Trash([]), "The trash is empty."),
    (["trash", "restore", "/m/Project"],
     TrashRestoreRequest(said="/m/Project", path="Project"),
     Restored(path="Project", files=8), "Project is back, 8 files and folders in all."),
    (["trash", "restore", "1a2b3c4d", "--to", "/m/new"],
     TrashRestoreRequest(said="1a2b3c4d", to="new"),
     Restored(path="new/Project", files=1), "new/Project is back.\n"),
    (["trash", "empty", "--yes"], TrashEmptyRequest(), Emptied(5), "5 files"),
    (["trash", "empty", "/m", "--yes"], TrashEmptyRequest(), Emptied(5), "5"),
    (["trash", "empty", "1a2b3c4d", "--yes"], TrashEmptyRequest(said="1a2b3c4d"),
     Emptied(1), "1 files"),
    (["devices"], DevicesRequest(), Devices([DEVICE]), "this mount"),
    (["devices", "list", "/m"], DevicesRequest(), Devices([DEVICE]),
     "everything"),
    (["devices", "revoke", "laptop"], RevokeDeviceRequest(said="laptop"),
     messages.Done("laptop"), "laptop is refused"),
    (["devices", "add", "backup", "--read-only", "--folder", "/m/f", "--expires", "30d"],
     MakeTokenRequest(name="backup", read_only=True, folder="f", expires_seconds=2592000),
     Token(id=ID, name="backup", token="the-token"), "the-token\n"),
    (["devices", "rotate"], RotateRequest(), messages.Done("the keyring"), "the keyring"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "asked", "answer", "printed"), CASES)
def test_what_is_asked_and_printed(
    mount: FakeMount,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    asked: Any,
    answer: Any,
    printed: str,
) -> None:
    mount.answers = [answer]
    assert main(words) == 0
    assert mount.asked == [asked]
    assert printed in capsys.readouterr().out


LISTS = [(words, answer) for words, _, answer, _ in CASES
         if (words[0] in ("shares", "shared", "link", "links", "log") and "revoke" not in words)
         or words[:2] in (["trash", "list"], ["devices", "list"], ["devices", "add"])]  # fmt: skip


@pytest.mark.parametrize(("words", "answer"), LISTS)
def test_json_is_the_answer(
    mount: FakeMount, capsys: pytest.CaptureFixture[str], words: list[str], answer: Any
) -> None:
    mount.answers = [answer]
    assert main([*words, "--json"]) == 0
    printed = json.decode(capsys.readouterr().out, type=dict[str, Any])
    assert "type" not in printed
    assert set(printed) == set(answer.__struct_fields__)


@pytest.mark.parametrize(
    "words",
    [
        ["share", "/m/a"],
        ["share", "/m/a", "ben", "--role", "owner"],
        ["link", "/m/a", "--expires", "soon"],
        ["link", "/m/a", "--expires", "0d"],
        ["link", "/m/a", "--max-downloads", "0"],
        ["trash", "restore"],
        ["trash", "restore", "/m/a", "--to", "/elsewhere"],
        ["trash", "empty"],
        ["links", "revoke"],
        ["devices", "add"],
    ],
)
def test_wrong_usage_asks_nothing(
    mount: FakeMount,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal: no question
    assert main(words) == 2
    assert mount.asked == []
    error = capsys.readouterr().err
    assert error.startswith("nearline: ")
    assert error.count("\n") == 1


def test_what_the_mount_refuses_is_one_line(
    mount: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.answers = [Failure("there is no account 'nobody'; check the name")]
    assert main(["share", "/m/a", "nobody"]) == 1
    assert capsys.readouterr().err == "nearline: there is no account 'nobody'; check the name\n"


def test_a_password_for_a_link_is_not_in_the_arguments(
    mount: FakeMount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text("open sesame\n")
    mount.answers = [LinkMade(LINK, "https://x/s/secret")]
    assert main(["link", "/m/a", "--password-file", str(tmp_path / "p")]) == 0
    assert mount.asked[0].password == "open sesame"
    printed = capsys.readouterr()
    assert printed.out == "https://x/s/secret\n"  # alone, for scripts
    assert "links revoke" in printed.err


def test_not_everything_came_back(mount: FakeMount, capsys: pytest.CaptureFixture[str]) -> None:
    left = ["Project/a: the drive is full"]
    mount.answers = [Restored(path="Project", files=2, left=left)]
    assert main(["trash", "restore", "/m/Project"]) == 1
    printed = capsys.readouterr()
    assert "Project is back" in printed.out
    assert "still in the trash: Project/a" in printed.err


@pytest.mark.parametrize(("typed", "asked"), [("y\n", 1), ("\n", 0), ("no\n", 0)])
def test_emptying_asks_on_a_terminal(
    mount: FakeMount, monkeypatch: pytest.MonkeyPatch, typed: str, asked: int
) -> None:
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # the one thing asked of it
    monkeypatch.setattr(sys, "stdin", terminal)
    mount.answers = [Emptied(5)]
    assert main(["trash", "empty"]) == 0
    assert len(mount.asked) == asked


def test_names_cannot_write_to_the_terminal(
    mount: FakeMount, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2Jx\n\u202etxt.exe"
    place = SharedPlace(path=hostile, owner=hostile, role="viewer", kind="file", size=1)
    mount.answers = [Shared([place])]
    assert main(["shared"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert not {"\x1b", "\u202e"} & set(out)
    assert r"\x1b[2Jx\n\u202etxt.exe" in out


def test_which_mount_is_meant(
    mounts: Mounts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["trash", "list"]) == 1
    assert "nearline up" in capsys.readouterr().err
    one, other = mounts.add("m"), mounts.add("n")
    assert main(["trash", "list"]) == 2
    assert "/m, /n" in capsys.readouterr().err
    other.answers = [Trash([])] * 2
    assert main(["trash", "list", "/n"]) == 0
    monkeypatch.setattr(os.path, "abspath", lambda path: "/n/deep" if path == "." else path)
    assert main(["trash", "list"]) == 0
    assert (len(one.asked), len(other.asked)) == (0, 2)


def test_a_login_tells_running_mounts(mounts: Mounts, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, other = mounts.add("m"), mounts.add("n"), mounts.add("o", account="ben")
    good.answers, bad.answers = [messages.Done("goes on")], [Failure("another drive")]
    setup.tell_of_mounts("http://x", "anna")
    told = capsys.readouterr().out
    assert "The mount at /m goes on." in told
    assert "The mount at /n did not take the new token (another drive)" in told
    assert "The mount at /o is of ben and stays so" in told
    assert good.asked == bad.asked == [ReloadTokenRequest()]
    assert other.asked == []


def test_rotating_tells_the_other_mounts_of_the_login(
    mounts: Mounts, capsys: pytest.CaptureFixture[str]
) -> None:
    one, same, another = mounts.add("m"), mounts.add("n"), mounts.add("o", account="ben")
    one.answers, same.answers = [messages.Done("the keyring")], [messages.Done()]
    assert main(["devices", "rotate", "/m"]) == 0
    assert (one.asked, same.asked) == (
        [RotateRequest()],
        [ReloadTokenRequest()],
    )
    assert another.asked == []
    one.answers, same.answers = [messages.Done("the keyring")], [Failure("the keyring is locked")]
    assert main(["devices", "rotate", "/m"]) == 1
    assert "mount it again" in capsys.readouterr().err
