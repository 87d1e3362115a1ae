"""mount/credentials.py: where tokens are, and who can read them."""

from __future__ import annotations

import io
from pathlib import Path

import keyring.backend
import keyring.errors
import pytest

from mount import credentials
from mount.config import MountConfig, make_config
from mount.failures import Failure, UsageFailure
from mount.options import Options

URL = "http://localhost:1"


class MemoryKeyring(keyring.backend.KeyringBackend):
    priority = 5  # type: ignore[assignment]  # a class attribute where the base has a property

    def __init__(self, locked: bool = False) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = locked

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise keyring.errors.PasswordSetError("locked")
        self.kept[service, username] = password

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise keyring.errors.KeyringLocked("locked")
        return self.kept.get((service, username))


def test_without_a_keyring_the_token_is_in_a_private_file(home: Path) -> None:
    where = Path(credentials.save(URL, "ann", "secret"))
    assert credentials.load(URL, "ann") == "secret"
    assert where.stat().st_mode & 0o777 == 0o600
    assert where.parent.stat().st_mode & 0o777 == 0o700
    kept_elsewhere = [f for f in home.rglob("*") if f.is_file() and f != where]
    assert all(b"secret" not in file.read_bytes() for file in kept_elsewhere)


def test_a_second_login_replaces_the_first(home: Path) -> None:
    credentials.save(URL, "ann", "old")
    credentials.save(URL, "ann", "new")
    assert credentials.load(URL, "ann") == "new"
    assert len(credentials.logins()) == 1


def test_a_token_that_others_can_read_is_not_used(home: Path) -> None:
    Path(credentials.save(URL, "ann", "secret")).chmod(0o644)
    with pytest.raises(Failure, match="chmod 600"):
        credentials.load(URL, "ann")


def test_a_missing_token_says_how_to_get_one(home: Path) -> None:
    with pytest.raises(Failure, match=f"nearline login {URL} --account ann"):
        credentials.load(URL, "ann")


def test_the_environment_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.save(URL, "ann", "kept")
    monkeypatch.setenv("NEARLINE_TOKEN", "given\n")
    assert credentials.load(URL, "ann") == "given"


def test_a_usable_keyring_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = MemoryKeyring()
    monkeypatch.setattr(credentials, "_keyring", lambda: ring)
    assert credentials.save(URL, "ann", "secret") == "the keyring"
    assert credentials.load(URL, "ann") == "secret"
    assert not list(home.rglob("*.token"))


def test_a_locked_keyring_falls_back_to_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_keyring", lambda: MemoryKeyring(locked=True))
    credentials.save(URL, "ann", "secret")
    assert credentials.load(URL, "ann") == "secret"
    with pytest.raises(Failure, match="unlock"):
        credentials.load(URL, "bob")


def test_which_account(home: Path) -> None:
    with pytest.raises(Failure, match="not logged in"):
        credentials.account_for(URL, None)
    credentials.save(URL, "ann", "1")
    credentials.save("http://localhost:2", "carl", "2")
    assert credentials.account_for(URL, None) == "ann"
    assert credentials.account_for(URL, "bob") == "bob"
    credentials.save(URL, "bob", "3")
    with pytest.raises(UsageFailure, match="ann, bob"):
        credentials.account_for(URL, None)


def test_a_password_comes_from_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("from file \nrest\n")
    assert credentials.read_secret("password", "", str(file)) == "from file "
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin\n"))
    assert credentials.read_secret("password", "", "-") == "from stdin"


def test_a_password_that_cannot_be_had_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Failure, match="No such file"):
        credentials.read_secret("password", "", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(Failure, match="empty"):
        credentials.read_secret("password", "", str(tmp_path / "empty"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UsageFailure, match="--password-file"):
        credentials.read_secret("password", "", None)


# --- certificates of servers on this machine ----------------------------------------------------


def test_a_certificate_is_kept_for_its_server(home: Path) -> None:
    assert credentials.certificate(URL) is None
    credentials.keep_certificate(URL, "one")
    assert credentials.certificate(URL) == "one"
    assert credentials.certificate("http://localhost:2") is None
    [file] = credentials.directory().iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_others_could_have_written_is_not_used(home: Path) -> None:
    credentials.keep_certificate(URL, "one")
    [file] = credentials.directory().iterdir()
    file.chmod(0o620)
    with pytest.raises(Failure, match="remove it and log in again"):
        credentials.certificate(URL)


def test_which_mounts_need_a_certificate(home: Path) -> None:
    def config(url: str, **more: bool) -> MountConfig:
        return make_config(url, Path("/m"), "ann", Options(**more))

    with pytest.raises(Failure, match=f"run `nearline login {URL} --account ann`"):
        credentials.trusting(config(URL))
    assert credentials.trusting(config(URL, insecure=True)).pin is None
    assert credentials.trusting(config("https://localhost:1")).pin is None
    credentials.keep_certificate(URL, "one")
    assert credentials.trusting(config(URL)).pin == "one"
    assert credentials.trusting(config(URL, insecure=True)).pin is None
