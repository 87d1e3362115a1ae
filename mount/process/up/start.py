"""`nearline up`: a server, an account and a mount in one command.

Knows: what the first start chooses and keeps, and how the pieces are started so that they load at
the same time. Must not know: what goes on once everything runs (`supervisor`), how the server's
process is kept (`server`), what either process does inside.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import platformdirs
from msgspec import DecodeError, Struct, json

from cache.metadata.durable import write_durably
from mount import credentials, mountinfo
from mount.config import MountConfig, default_cache_dir, default_state_dir, make_config
from mount.failures import Failure
from mount.options import Options
from mount.process import embedded, launch, preflight
from mount.process.up.server import Server
from mount.process.up.supervisor import Watch, say

FIRST_PORT = 8750


class Settings(Struct, frozen=True):
    """Choices of the first `up` that every later one keeps: the URL names the credentials and the
    mount's state, so the port must stay. `id` ties the mount's state to this server's data."""

    port: int
    account: str
    id: str


def default_data_dir() -> Path:
    return platformdirs.user_data_path("nearline") / "server"


def run(mountpoint: Path, data_dir: Path, options: Options) -> None:
    """Start everything, watch over it until Ctrl-C or until it is unmounted, end everything.

    Raises `Failure`; then whatever was started is ended and a mountpoint made here is removed."""
    mountpoint = mountpoint.parent.resolve() / mountpoint.name
    with _mountpoint(mountpoint):
        settings = load_settings(data_dir) or choose_settings()
        config = configure(mountpoint, settings, options)
        preflight.check_local(config)
        with launch.launched() as mounting, Server(data_dir, settings.port) as server:
            server.start()
            server.wait_ready()
            config = _trusting(data_dir, config)
            token = _token(data_dir, config, settings)
            mounting.order(launch.Orders(config, token, os.getpid()))
            mounting.wait(config.state_dir / launch.LOG_NAME)
            Watch(config, server, mounting.process).run(lambda: _welcome(config))


@contextlib.contextmanager
def _mountpoint(mountpoint: Path) -> Iterator[None]:
    """Make the directory, and take it back when nothing came of it."""
    make = mountinfo.mounted_at(mountpoint) is None and not os.path.lexists(mountpoint)
    if make:
        try:
            mountpoint.mkdir(parents=True)
        except OSError as error:
            raise Failure(f"cannot make {mountpoint}: {error.strerror}; choose another") from error
    try:
        yield
    except Failure:
        if make:
            with contextlib.suppress(OSError):  # not empty or busy: then it is not ours to remove
                mountpoint.rmdir()
        raise


def _settings_file(data_dir: Path) -> Path:
    return data_dir / "up.json"


def load_settings(data_dir: Path) -> Settings | None:
    """The choices of an earlier start; None at the first."""
    try:
        return json.decode(_settings_file(data_dir).read_bytes(), type=Settings)
    except FileNotFoundError:
        return None
    except (OSError, DecodeError) as error:
        file = _settings_file(data_dir)
        raise Failure(
            f"{file} is unreadable ({error}); repair it, or give another --data"
        ) from error


def choose_settings() -> Settings:
    """The usual port, or a free one when somebody has it; the account is named like the user."""
    return Settings(_free_port(), account_name(getpass.getuser()), secrets.token_hex(8))


def account_name(user: str) -> str:
    """`user` as an account name: lower-case letters, digits, dot, dash, underscore."""
    return re.sub(r"[^a-z0-9._-]", "", user.lower()).strip("._-") or "me"


def _free_port() -> int:
    for port in (FIRST_PORT, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = sock.getsockname()[1]
            return found
    raise Failure("no free port on 127.0.0.1; end a program that listens there")


def configure(mountpoint: Path, settings: Settings, options: Options) -> MountConfig:
    """The mount. Its default state is named after the server's data too, so that a server begun
    anew does not get the journal of the one before."""
    url = f"http://127.0.0.1:{settings.port}"
    key = f"{url}#{settings.id}"
    options = replace(
        options,
        state_dir=options.state_dir or default_state_dir(key, mountpoint),
        cache_dir=options.cache_dir or default_cache_dir(key, mountpoint),
    )
    return make_config(url, mountpoint, settings.account, options)


def _trusting(data_dir: Path, config: MountConfig) -> MountConfig:
    """`config` with the certificate of the server that has this data: whatever else answers at its
    port, now or later, is told nothing. Kept for other commands too."""
    pin = embedded.certificate(data_dir)
    credentials.keep_certificate(config.url, pin)
    return replace(config, pin=pin)


def _token(data_dir: Path, config: MountConfig, settings: Settings) -> str:
    """The token kept from the first start; at the first, an account is made and a token issued.
    `up.json` is written last: a first start that was interrupted is done again."""
    if load_settings(data_dir) is not None:
        with contextlib.suppress(Failure):  # forgotten or unreadable: a new one is as good
            return credentials.load(config.url, config.account)
    with contextlib.suppress(embedded.AccountExists):
        password = secrets.token_urlsafe(15)
        embedded.add_account(data_dir, config.account, password)
        file = data_dir / "account-password"
        write_durably(file, password.encode() + b"\n")
    token = embedded.issue_token(data_dir, config.account, embedded.device_name())
    credentials.save(config.url, config.account, token)
    write_durably(_settings_file(data_dir), json.encode(settings))
    return token


def _welcome(config: MountConfig) -> None:
    here = config.mountpoint
    say(f"Nearline is mounted at {here}, served from this machine at {config.url}.")
    say("Try, in another terminal:")
    say(f"  cp -r /usr/share/doc/bash {here}/    files appear at once and are sent behind you")
    say(f"  nearline flush {here}    returns when the server has everything")
    say("  nearline status    what is being sent, and what is cached")
    say("Ctrl-C sends what is left, unmounts, and stops the server.")
