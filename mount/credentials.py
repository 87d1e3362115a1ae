"""Tokens: one per (server URL, account), in the system's keyring or in a private file. And the
certificate of each server on this machine: one per URL, beside them.

Knows: where a token is kept and who may read it. Must not know: what a token can do, the wire.
Invariant: a token is never in an argument list, a log line, or a file that others can read. A
certificate that others could have written is not used.

`NEARLINE_TOKEN` in the environment wins over everything kept. Which accounts are logged in where is
kept beside the tokens in a plain list (a keyring cannot be listed): it holds no secret.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from msgspec import DecodeError, Struct, json

from cache.metadata.durable import make_private, write_durably
from mount.config import MountConfig, needs_pin, short_hash
from mount.failures import Failure, UsageFailure

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

ENVIRONMENT = "NEARLINE_TOKEN"
SERVICE = "nearline"


class Login(Struct, frozen=True, order=True):
    """An account that this user has logged in to."""

    url: str
    account: str


def directory() -> Path:
    """Where the list of logins and, without a keyring, the tokens are."""
    return platformdirs.user_config_path("nearline") / "credentials"


def save(url: str, account: str, token: str) -> str:
    """Keep `token`; returns where, in words. Raises `Failure` when it cannot be kept privately."""
    file = _token_file(url, account)
    _close_to_others(file.parent)
    if _into_keyring(url, account, token):
        file.unlink(missing_ok=True)
        where = "the keyring"
    else:
        write_durably(file, token.encode() + b"\n")
        where = str(file)
    _remember(Login(url, account))
    return where


def load(url: str, account: str) -> str:
    """The token for `account` at `url`. Raises `Failure` that says how to get one."""
    from_environment = os.environ.get(ENVIRONMENT)
    if from_environment:
        return from_environment.strip()
    token = kept(url, account)
    if token is None:
        raise Failure(
            f"no token for {account} at {url}; run `nearline login {url} --account {account}`"
        )
    return token


def kept(url: str, account: str) -> str | None:
    """The token that a login has kept, whatever the environment says. Raises as `load`."""
    return _from_file(_token_file(url, account)) or _from_keyring(url, account)


def keep_certificate(url: str, certificate: str) -> None:
    """From now on only the holder of this certificate's key (PEM) is the server at `url`."""
    file = _certificate_file(url)
    _close_to_others(file.parent)
    write_durably(file, certificate.encode())


def certificate(url: str) -> str | None:
    """The certificate that the server at `url` has to show; None before the first login. Raises
    `Failure` when others could have written it."""
    try:
        with _certificate_file(url).open() as stream:
            if os.fstat(stream.fileno()).st_mode & 0o022:
                raise Failure(f"others can write {stream.name}; remove it and log in again")
            return stream.read()
    except FileNotFoundError:
        return None


def pin_for(url: str, account: str, *, insecure: bool) -> str | None:
    """The certificate that the server at `url` has to show; None where none is asked for. Raises
    `Failure` that says how to get it."""
    if not needs_pin(url) or insecure:
        return None
    pin = certificate(url)
    if pin is None:
        raise Failure(
            f"the key of the server at {url} is not known on this device yet; "
            f"run `nearline login {url} --account {account}`"
        )
    return pin


def trusting(config: MountConfig) -> MountConfig:
    """`config` with the certificate that its server has to show. Raises as `pin_for`."""
    pin = pin_for(config.url, config.account, insecure=config.insecure)
    return config if pin is None else replace(config, pin=pin)


def logins() -> list[Login]:
    """Everything this user has logged in to."""
    try:
        return sorted(json.decode(_list_file().read_bytes(), type=list[Login]))
    except (FileNotFoundError, DecodeError):
        return []


def account_for(url: str, given: str | None) -> str:
    """`given`, or the one account that is logged in at `url`. Raises `UsageFailure` or `Failure`
    when there is none or more than one."""
    if given:
        return given
    known = [login.account for login in logins() if login.url == url]
    if len(known) == 1:
        return known[0]
    if known:
        raise UsageFailure(f"{url} knows you as {', '.join(known)}; say which with --account NAME")
    raise Failure(f"you are not logged in at {url}; run `nearline login {url} --account NAME`")


def read_secret(what: str, prompt: str, file: str | None) -> str:
    """A password or token (`what`): the first line of `file` (`-` is standard input), else asked
    for on the terminal. Raises `UsageFailure` without a terminal, `Failure` when the file cannot be
    read or is empty."""
    if file is None:
        if not sys.stdin.isatty():
            raise UsageFailure(f"no terminal to ask for the {what} on; give --{what}-file FILE")
        secret = getpass(prompt)
    elif file == "-":
        secret = sys.stdin.readline().rstrip("\r\n")
    else:
        secret = _first_line(what, Path(file))
    if not secret:
        raise Failure(f"the {what} is empty; give one of at least one character")
    return secret


def read_new_secret(what: str, prompt: str, file: str | None) -> str:
    """As `read_secret`, but asked for twice, so that a slip of the hand locks nobody out. Raises
    `Failure` too when the two differ."""
    secret = read_secret(what, prompt, file)
    if file is None and getpass(f"{prompt}(again) ") != secret:
        raise Failure(f"the two differ, so nothing was changed; give the {what} again")
    return secret


def _first_line(what: str, file: Path) -> str:
    try:
        with file.open() as stream:
            return stream.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Failure(f"cannot read the {what} from {file}: {reason}") from error


def _entry(url: str, account: str) -> str:
    return f"{account} at {url}"


def _token_file(url: str, account: str) -> Path:
    return directory() / f"{short_hash(url, account)}.token"


def _certificate_file(url: str) -> Path:
    return directory() / f"{short_hash(url)}.certificate"


def _list_file() -> Path:
    return directory() / "logins.json"


def _remember(login: Login) -> None:
    known = sorted({*logins(), login})
    write_durably(_list_file(), json.format(json.encode(known)))


def _close_to_others(where: Path) -> None:
    make_private(where)
    if where.stat().st_mode & 0o077:
        where.chmod(0o700)


def _from_file(file: Path) -> str | None:
    try:
        with file.open() as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise Failure(f"others can read {file}; run `chmod 600 {file}` and log in again")
            return stream.read().strip() or None
    except FileNotFoundError:
        return None


def _into_keyring(url: str, account: str, token: str) -> bool:
    """True if the keyring took it; a locked one, or one that will not, leaves the file."""
    keyring = _keyring()
    if keyring is None:
        return False
    from keyring.errors import KeyringError

    try:
        keyring.set_password(SERVICE, _entry(url, account), token)
    except KeyringError:
        return False
    return True


def _from_keyring(url: str, account: str) -> str | None:
    keyring = _keyring()
    if keyring is None:
        return None
    from keyring.errors import KeyringError

    try:
        return keyring.get_password(SERVICE, _entry(url, account))
    except KeyringError as error:
        raise Failure(f"the keyring does not open ({error}); unlock it and try again") from error


def _keyring() -> KeyringBackend | None:
    """The system's keyring if a usable one is there. A priority below 1 is a backend that is not
    recommended (plain text, null, or `fail`); see keyring.backend.KeyringBackend.priority."""
    if sys.platform == "linux" and "DBUS_SESSION_BUS_ADDRESS" not in os.environ:
        return None  # no Secret Service without a session bus: spare the import and its probes
    import keyring

    backend = keyring.get_keyring()
    return backend if backend.priority >= 1 else None
