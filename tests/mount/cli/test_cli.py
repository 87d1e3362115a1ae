"""mount/cli: words in, exit code and one line out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme
from msgspec import json

from mount import credentials, trust_on_first_use
from mount.cli import main, mounting, setup, status_table
from mount.control.messages import LimitsStatus, Status, UploadStatus
from mount.failures import Failure
from mount.process import preflight, registry, unmount
from remote.http import api
from remote.protocol import account_messages, errors, messages
from remote.protocol.certificates import fingerprint

URL = "http://localhost:1"
DEAD = registry.Record(
    mountpoint="/m",
    state_dir="/state",
    cache_dir="/cache",
    url=URL,
    account="ann",
    pid=2**22 + 1,  # more than the kernel ever gives (proc(5), pid_max)
    started=5,
    control="/nowhere/control.sock",
)
SHOWN = trustme.CA().cert_pem.bytes().decode()
HEAVY = {"httpx", "trio", "pyfuse3", "uvicorn", "sqlalchemy", "lmdb", "keyring"}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is exactly one line that says what to do after a semicolon."""
    error = capsys.readouterr().err
    assert error.startswith("nearline: ")
    assert error.count("\n") == 1
    assert ";" in error
    return error


@pytest.mark.parametrize(
    "words",
    [
        ["bogus"],
        ["mount"],
        ["mount", URL],
        ["mount", URL, "/mnt", "extra"],
        ["mount", URL, "/mnt", "--bogus"],
        ["mount", URL, "/mnt", "--sync", "perhaps"],
        ["mount", URL, "/mnt", "-o", "bogus"],
        ["mount", URL, "/mnt", "--cache-size", "huge"],
        ["mount", "nowhere", "/mnt"],
        ["umount", "/mnt", "--timeout", "soon"],
        ["umount", "/mnt", "--timeout", "5", "--now"],
        ["serve"],
        ["serve", "--data", "/d", "--listen", "8750"],
        ["login", URL],
        ["login", "http://example.org", "--account", "ann", "--password-file", "/dev/null"],
        ["account", "add", "ann"],
        ["cache", "stats"],
    ],
)
def test_wrong_usage_is_2(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    one_line(capsys)


@pytest.mark.parametrize("words", [[], ["--help"], ["mount", "--help"], ["account", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "Usage: nearline" in capsys.readouterr().out


@pytest.mark.slow
def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["up", "serve", "login", "mount", "umount", "flush", "status", "doctor"]
    alone += ["pin", "unpin", "warm", "share", "unshare", "shares", "shared", "leave", "link"]
    alone += ["links", "log", "restore", "trash", "devices", "passwd"]
    below = {"cache": ["stats", "clear"], "links": ["revoke"]}
    below |= {"account": ["add", "list", "set", "passwd", "lock", "unlock", "remove"]}
    below |= {"trash": ["list", "restore", "empty"], "devices": ["list", "revoke", "add", "rotate"]}
    deep = [[above, name] for above, names in below.items() for name in names]
    for words in [[name] for name in alone] + deep:
        assert main([*words, "--help"]) == 0
        assert f"Usage: nearline {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["status"],
        ["status", "--json"],
        ["mount", "-h"],
        ["log", "-h"],
        ["devices", "-h"],
    ],
)
def test_asking_is_light(words: list[str], home: Path) -> None:
    """A command that a shell prompt or a script calls often must not load the HTTP client or
    FUSE."""
    code = (
        "import sys; from mount.cli import main\n"
        f"assert main({words!r}) == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stderr.strip() == "[]"


@pytest.fixture
def mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, on a machine that has FUSE."""
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path)
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


def test_mount_without_login(
    home: Path, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", URL, str(mountpoint)]) == 1
    assert f"run `nearline login {URL}" in one_line(capsys)
    assert main(["mount", URL, str(mountpoint), "--account", "ann"]) == 1
    assert f"run `nearline login {URL} --account ann`" in one_line(capsys)
    assert list(home.iterdir()) == []


def test_mount_on_something(
    home: Path, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mountpoint / "file").touch()
    assert main(["mount", URL, str(mountpoint), "--account", "ann"]) == 1
    assert "not empty" in one_line(capsys)


def test_mount_without_tls(
    home: Path, mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", "http://example.org", str(mountpoint)]) == 2
    assert "--insecure" in one_line(capsys)


def test_debug_shows_the_traceback(home: Path) -> None:
    with pytest.raises(Failure, match="not mounted"):
        main(["--debug", "umount", "/nowhere"])


def test_asking_about_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking = [["log"], ["restore"], ["shares"], ["leave"], ["link"], ["links"], ["shared"]]
    asking += [["trash", "list"], ["devices"], ["cache", "stats"]]
    for words in (["umount"], ["flush"], ["status"], ["pin"], *asking):
        assert main([*words, str(home)]) == 1
        one_line(capsys)
    assert main(["status"]) == 0
    assert "nearline up" in capsys.readouterr().out


def test_the_status_of_a_dead_mount(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.put(DEAD)
    assert main(["status", "/m", "--json"]) == 0
    status = json.decode(capsys.readouterr().out)
    assert (status["state"], status["mountpoint"], status["account"]) == ("dead", "/m", "ann")
    assert "type" not in status
    assert main(["status", "/m"]) == 0
    assert "nearline umount /m" in capsys.readouterr().out


def test_the_status_of_a_living_mount_for_people() -> None:
    status = Status(
        state="offline",
        reason="connection refused",
        mountpoint="/m",
        url=URL,
        account="ann",
        pid=7,
        uploads=[UploadStatus("a/b", 1_000_000, 2_000_000, "timed out")],
    )
    rows = dict(status_table.rows(status))
    assert rows["state"] == "offline: connection refused"
    assert rows["uploading"] == "a/b (1.0 MB of 2.0 MB, waiting: timed out)"
    assert rows["to send"] == "nothing"
    assert "transfers" not in rows


def test_the_status_tells_the_limits_that_are_set() -> None:
    status = Status(
        state="online",
        mountpoint="/m",
        url=URL,
        account="ann",
        pid=7,
        limits=LimitsStatus(upload_limit=2_000_000, transfers=4),
    )
    assert dict(status_table.rows(status))["transfers"] == "up at most 2.0 MB/s, 4 at once"


class FakeClient:
    """Stands where `ApiClient` does."""

    answer: messages.LoginReply | account_messages.PasswordReply | errors.NearlineError
    asked: messages.LoginRequest
    safety: dict[str, object]
    changed: ClassVar[list[account_messages.ChangePassword]] = []

    def __init__(self, url: str, token: str | None, **safety: object) -> None:
        assert token in (None, "the-token")
        FakeClient.safety = safety

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def change_password(self, request: account_messages.ChangePassword) -> Any:
        FakeClient.changed.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def login(self, request: messages.LoginRequest) -> messages.LoginReply:
        FakeClient.asked = request
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def password(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(api, "ApiClient", FakeClient)
    monkeypatch.setattr(trust_on_first_use, "certificate_of", lambda url: SHOWN)
    (tmp_path / "password").write_text("correct horse\n")
    return str(tmp_path / "password")


def test_login_keeps_the_token(password: str, capsys: pytest.CaptureFixture[str]) -> None:
    FakeClient.answer = messages.LoginReply("the-token", "ann", "0" * 32)
    assert main(["login", URL + "/", "--account", "ann", "--password-file", password]) == 0
    assert credentials.load(URL, "ann") == "the-token"
    assert FakeClient.asked.password == "correct horse"
    assert "the-token" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (errors.Refused(errors.Unauthorized()), "with this password"),
        (errors.Refused(errors.RateLimited(message="too often")), "too often"),
        (errors.Unreachable("cannot connect"), "check the URL"),
        (errors.ProtocolError("hello"), "is a Nearline server"),
    ],
)
def test_login_that_fails(
    password: str,
    answer: errors.NearlineError,
    words: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeClient.answer = answer
    assert main(["login", URL, "--account", "ann", "--password-file", password]) == 1
    assert words in one_line(capsys)
    assert list(home.iterdir()) == []


def login(password: str, *more: str) -> int:
    FakeClient.answer = messages.LoginReply("the-token", "ann", "0" * 32)
    return main(["login", URL, "--account", "ann", "--password-file", password, *more])


def test_login_shows_and_keeps_the_key_of_a_server_on_this_machine(
    password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert login(password) == 0
    assert f"The key of {URL} is {fingerprint(SHOWN)}." in capsys.readouterr().out
    assert FakeClient.safety == {"insecure": False, "pin": SHOWN}
    assert credentials.certificate(URL) == SHOWN
    assert login(password) == 0  # the same again


def test_another_key_is_refused_before_the_password_is_sent(
    password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert login(password) == 0
    other = trustme.CA().cert_pem.bytes().decode()
    monkeypatch.setattr(trust_on_first_use, "certificate_of", lambda url: other)
    monkeypatch.setattr(api, "ApiClient", None)
    assert login(password) == 1
    assert f"--fingerprint {fingerprint(other)}" in one_line(capsys)
    assert credentials.certificate(URL) == SHOWN
    assert login(password, "--fingerprint", fingerprint(SHOWN)) == 1
    assert "another program answers" in one_line(capsys)
    monkeypatch.setattr(api, "ApiClient", FakeClient)
    assert login(password, "--fingerprint", fingerprint(other)) == 0
    assert credentials.certificate(URL) == other


def test_without_tls_no_key_is_asked_for(
    password: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trust_on_first_use, "certificate_of", None)
    assert login(password, "--insecure") == 0
    assert FakeClient.safety == {"insecure": True, "pin": None}
    assert login(password, "--insecure", "--fingerprint", "SHA256:x") == 2
    assert "--fingerprint" in one_line(capsys)


def test_mount_without_the_servers_key(
    home: Path,
    mountpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after an upgrade from a version that knew of no keys, or with a token from elsewhere."""
    monkeypatch.setenv("NEARLINE_TOKEN", "the-token")
    for more in ([], ["--foreground"]):
        assert main(["mount", URL, str(mountpoint), "--account", "ann", *more]) == 1
        assert f"run `nearline login {URL} --account ann`" in one_line(capsys)


def test_a_password_is_changed(
    password: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the only login there is, of a URL; and what goes wrong says what to do."""
    (tmp_path / "new").write_text("battery staple\n")
    files = ["--password-file", password, "--new-password-file", str(tmp_path / "new")]
    assert main(["passwd", URL, *files]) == 1
    assert "not logged in" in one_line(capsys)
    credentials.save(URL, "ann", "the-token")
    assert main(["passwd", *files]) == 1
    assert f"the key of the server at {URL} is not known" in one_line(capsys)
    credentials.keep_certificate(URL, SHOWN)
    FakeClient.answer = account_messages.PasswordReply(0)
    FakeClient.changed.clear()
    assert main(["passwd", *files]) == 0
    assert capsys.readouterr().out == "ann has a new password; its devices go on.\n"
    FakeClient.answer = account_messages.PasswordReply(2)
    assert main(["passwd", URL, "--account", "ann", "--revoke-devices", *files]) == 0
    assert "devices refused: 2" in capsys.readouterr().out
    words = {"old": "correct horse", "new": "battery staple"}
    assert FakeClient.changed == [
        account_messages.ChangePassword(**words),
        account_messages.ChangePassword(**words, revoke_devices=True),
    ]
    wrong = errors.Forbidden(message="the old password is wrong; try again")
    FakeClient.answer = errors.Refused(wrong)
    assert main(["passwd", *files]) == 1
    assert "the old password is wrong; try again" in one_line(capsys)


def test_a_locked_account_is_not_told_to_log_in(
    password: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").write_text("battery staple\n")
    credentials.save(URL, "ann", "the-token")
    credentials.keep_certificate(URL, SHOWN)
    locked = errors.Unauthorized(message="the account is locked; ask who runs the server")
    FakeClient.answer = errors.Refused(locked)
    files = ["--password-file", password, "--new-password-file", str(tmp_path / "new")]
    assert main(["passwd", URL, *files]) == 1
    assert "locked; ask who runs the server" in one_line(capsys)


def test_a_new_password_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter(["battery staple", "battery staple", "battery staple", "battery stable"])
    monkeypatch.setattr(credentials, "getpass", lambda _prompt: next(given))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert credentials.read_new_secret("password", "New: ", None) == "battery staple"
    with pytest.raises(Failure, match="differ"):
        credentials.read_new_secret("password", "New: ", None)


def test_a_mountpoint_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to("real/mnt")
    real = tmp_path / "real" / "mnt"
    for name in ("real/mnt/", "link/mnt", "direct", "real/../link/./mnt"):
        assert mounting.resolve_mountpoint(str(tmp_path / name)) == real


def test_listen_addresses() -> None:
    for good in ("127.0.0.1:8750", "[::1]:0", "0.0.0.0:65535"):
        setup.check_listen(good)
    for bad in ("8750", ":1", "h:", "h:x", "h:65536"):
        with pytest.raises(Failure):
            setup.check_listen(bad)


def test_unmounting_what_is_no_mount_of_ours(home: Path) -> None:
    with pytest.raises(Failure, match="not a Nearline mount"):
        unmount.unmount(Path("/proc"))
    with pytest.raises(Failure, match="not mounted"):
        unmount.unmount(home)


def test_the_server_is_an_extra(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "server.main", None)
    assert main(["serve", "--data", str(home / "data")]) == 1
    assert "nearline[server]" in one_line(capsys)
