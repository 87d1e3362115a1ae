"""mount/doctor.py: findings, and what to do about them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import remote.http.api
from mount import credentials, doctor
from mount.cli import main
from mount.credentials import Login
from mount.process import preflight
from remote.protocol import errors, messages

LOGIN = Login("http://localhost:1", "ann")


class FakeClient:
    """Stands where `remote.http.api.ApiClient` does; `answer` is what `me` does."""

    answer: messages.Me | errors.NearlineError

    def __init__(self, base_url: str, token: str | None, **safety: object) -> None: ...

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def me(self) -> messages.Me:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def me(ahead: float = 0) -> messages.Me:
    return messages.Me(
        account="ann",
        device_id="0" * 32,
        drive="0" * 32,
        root="0" * 32,
        cursor="",
        seq=0,
        used_bytes=0,
        quota_bytes=None,
        now_ns=int((time.time() + ahead) * 1e9),
    )


def levels(
    monkeypatch: pytest.MonkeyPatch, answer: messages.Me | errors.NearlineError
) -> list[doctor.Finding]:
    FakeClient.answer = answer
    monkeypatch.setattr(remote.http.api, "ApiClient", FakeClient)
    return list(doctor.check_server(LOGIN, "token"))


def test_a_good_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.level for finding in levels(monkeypatch, me())} == {"ok"}


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = levels(monkeypatch, errors.Unreachable("cannot connect"))[0]
    assert found.level == "fail"
    assert "cannot connect; check the network" in found.line()


def test_a_token_that_is_not_valid_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = levels(monkeypatch, errors.Refused(errors.Unauthorized(message="expired")))[0]
    assert found.level == "fail"
    assert "nearline login http://localhost:1 --account ann" in found.advice


@pytest.mark.parametrize(
    "answer",
    [
        errors.Refused(errors.Unauthorized(message="the account is locked; ask who runs it")),
        errors.Unreachable("another program answers there; log in if the key changed"),
    ],
)
def test_what_says_what_to_do_is_given_no_other_advice(
    answer: errors.NearlineError, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found, *_] = levels(monkeypatch, answer)
    assert found.level == "fail"
    assert found.line().endswith(str(answer))


def test_requests_that_fail_are_not_logged_on_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the report is, and in other commands JSON for a program."""
    [found, *_] = doctor.check_server(Login("https://localhost:1", "ann"), "token")
    assert found.level == "fail"
    assert "".join(capsys.readouterr()) == ""


def test_a_server_whose_key_is_not_known_is_told_no_token(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.http.api, "ApiClient", None)
    credentials.save(LOGIN.url, LOGIN.account, "token")
    [found] = doctor.check_servers([LOGIN])
    assert found.level == "warn"
    assert "another program" in found.what
    assert "nearline login http://localhost:1 --account ann" in found.advice


def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [f.level for f in levels(monkeypatch, me(ahead=3600))][:2] == ["ok", "fail"]


@pytest.mark.parametrize(
    ("ahead", "level", "word"),
    [
        (0, "ok", "agrees"),
        (-29, "ok", "agrees"),
        (60, "warn", "behind"),
        (-600, "fail", "ahead of"),
    ],
)
def test_clock(ahead: float, level: str, word: str) -> None:
    found = doctor.judge_clock("http://h", ahead)
    assert (found.level, word in found.what) == (level, True)


def test_space() -> None:
    judged = [doctor.judge_space("cache", Path("/c"), free) for free in (10**6, 10**9, 10**11)]
    assert [finding.level for finding in judged] == ["fail", "warn", "ok"]
    assert "--cache" in judged[0].advice


def test_no_fuse_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", tmp_path / "none")
    assert next(doctor.check_fuse()).level == "fail"


def test_every_finding_that_is_not_ok_says_what_to_do(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for finding in doctor.examine():
        assert finding.level == "ok" or finding.advice


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([doctor.Finding("ok", "a"), doctor.Finding("warn", "b", "do c")], 0),
        ([doctor.Finding("fail", "a", "do b"), doctor.Finding("ok", "c")], 1),
    ],
)
def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, found: list[doctor.Finding], code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    assert main(["doctor"]) == code


def test_a_login_without_its_token(home: Path) -> None:
    Path(credentials.save(*_pair(), "secret")).unlink()
    assert next(doctor.check_servers(credentials.logins())).level == "fail"


def _pair() -> tuple[str, str]:
    return LOGIN.url, LOGIN.account
