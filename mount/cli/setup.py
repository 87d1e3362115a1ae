"""`up`, `serve`, `account add`, `login`: what is needed before there is a mount."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from cyclopts import Parameter

from mount import credentials
from mount.cli import flags
from mount.config import needs_insecure, needs_pin, normal_url
from mount.failures import Failure, UsageFailure, advised
from mount.options import absolute, parse_options

T = TypeVar("T")


def up(
    directory: Annotated[str, Parameter(name="DIR")] = "~/Nearline",
    *,
    data: Annotated[str | None, Parameter(help="Where the server keeps everything.")] = None,
    options: flags.MountOptions = None,
) -> None:
    """Start a server on this machine, make an account, and mount it at DIR.

    Stays in the foreground. Ctrl-C uploads what is left, unmounts and stops the server; a second
    Ctrl-C leaves the rest for the next start."""
    from mount.process.up import start

    data_dir = start.default_data_dir() if data is None else absolute(data)
    start.run(absolute(directory), data_dir, parse_options(options or []))


def serve(
    *,
    data: flags.Data,
    listen: Annotated[str, Parameter(help="HOST:PORT to listen on.")] = "127.0.0.1:8750",
    config: Annotated[str | None, Parameter(help="A configuration file.")] = None,
    public_url: Annotated[
        str | None, Parameter(help="The URL that clients use, when it is not the one listened on.")
    ] = None,
    tls_cert: Annotated[
        str | None, Parameter(help="A certificate chain, PEM. Read again at SIGHUP.")
    ] = None,
    tls_key: Annotated[str | None, Parameter(help="Its key, PEM, without a password.")] = None,
    insecure: Annotated[
        bool, Parameter(help="Serve other machines without TLS.", negative=())
    ] = False,
) -> None:
    """Run a server in the foreground until Ctrl-C or SIGTERM."""
    from mount.process import embedded, processes

    if embedded.PARENT in os.environ:
        processes.die_with_parent(int(os.environ[embedded.PARENT]))
    check_listen(listen)
    settings = None if config is None else absolute(config)
    if settings is not None and not settings.is_file():
        raise UsageFailure(f"there is no configuration file {settings}; give another --config")
    tls = None
    if tls_cert is not None or tls_key is not None:
        if tls_cert is None or tls_key is None:
            raise UsageFailure("TLS needs both --tls-cert and --tls-key; give the other one too")
        tls = absolute(tls_cert), absolute(tls_key)
    where = absolute(data)

    def serving(url: str) -> None:
        _serving(url, embedded.fingerprint(where))

    embedded.serve(where, listen, public_url, settings, serving, tls=tls, insecure=insecure)


def check_listen(listen: str) -> None:
    """Raise `UsageFailure` unless `listen` is HOST:PORT."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageFailure(f"--listen {listen} is not HOST:PORT; write it like 127.0.0.1:8750")


def _serving(url: str, key: str | None) -> None:
    """Tell whoever waits: a person, systemd, or the `up` that started this server."""
    from mount.process import embedded, processes

    print(f"Nearline serves at {url}", flush=True)
    if key is not None:
        print(f"Its key for programs on this machine is {key}", flush=True)
    processes.sd_notify("READY=1")
    if embedded.READY_FD in os.environ:
        descriptor = int(os.environ.pop(embedded.READY_FD))
        os.write(descriptor, url.encode() + b"\n")
        os.close(descriptor)


def account_add(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    data: flags.Data,
    password_file: flags.PasswordFile = None,
) -> None:
    """Make an account in the server's data, also while the server runs."""
    from mount.process import embedded

    prompt = f"Password for the new account {name}: "
    password = credentials.read_secret("password", prompt, password_file)
    embedded.add_account(absolute(data), name, password)
    print(f"Account {name} is there. On a device: nearline login URL --account {name}")


def login(
    url: Annotated[str, Parameter(name="URL")],
    /,
    *,
    account: Annotated[str, Parameter(help="The account's name.")],
    password_file: flags.PasswordFile = None,
    token_file: flags.TokenFile = None,
    fingerprint: Annotated[
        str | None,
        Parameter(help="The key that a server on this machine has to have: SHA256:..."),
    ] = None,
    insecure: flags.Insecure = False,
) -> None:
    """Exchange the account's password for a token of this device, and keep the token. Or keep a
    token that `nearline devices add` made.

    The key of a server on this machine (http://127.0.0.1) is shown, and kept too."""
    url = normal_url(url)
    if needs_insecure(url) and not insecure:
        raise UsageFailure(
            f"{url} is without TLS, so anybody on the way could read the password; "
            "use an https URL, or give --insecure if you trust the network"
        )
    if token_file is not None and password_file is not None:
        raise UsageFailure("give --password-file or --token-file, not both")
    server = _Server(url, insecure, _met(url, insecure, fingerprint))
    if token_file is not None:
        token = credentials.read_secret("token", "Token: ", token_file)
        _check_token(server, account, token)
    else:
        prompt = f"Password of {account} at {url}: "
        password = credentials.read_secret("password", prompt, password_file)
        token = _log_in(server, account, password)
    if server.pin is not None:
        credentials.keep_certificate(url, server.pin)
    where = credentials.save(url, account, token)
    print(f"Logged in to {url} as {account}; the token is in {where}.")
    tell_of_mounts(url, account)


def tell_of_mounts(url: str, account: str) -> None:
    """Running mounts of the account take the new token if they need it. They stay the device that
    they are while that is accepted."""
    from mount.process import registry

    for record in registry.all_records():
        if not record.alive or record.url != url:
            continue
        if record.account == account:
            print(f"The mount at {record.mountpoint} {_goes_on(Path(record.control))}.")
        else:
            print(
                f"The mount at {record.mountpoint} is of {record.account} and stays so; for the"
                f" files of {account}: nearline mount {url} DIR --account {account}"
            )


def _goes_on(control: Path) -> str:
    """With which token, asked of the mount itself."""
    from mount.control import client

    try:
        return client.check_token(control)
    except (client.NotAnswering, client.MountRefused) as error:
        return f"did not take the new token ({error})"


def passwd(
    where: Annotated[str | None, Parameter(name="DIR-OR-URL")] = None,
    /,
    *,
    account: flags.Account = None,
    password_file: Annotated[
        str | None,
        Parameter(help="Read the password of now from this file.", allow_leading_hyphen=True),
    ] = None,
    new_password_file: Annotated[
        str | None,
        Parameter(help="Read the new password from this file.", allow_leading_hyphen=True),
    ] = None,
    revoke_devices: flags.RevokeDevices = False,
    insecure: flags.Insecure = False,
) -> None:
    """Change the password of your account, on the server of a mount or at a URL.

    Its devices go on with their tokens, unless they are revoked; this one goes on in any case."""
    url, name = _kept_login(where, account)
    token = credentials.load(url, name)
    old = credentials.read_secret("password", f"Password of {name} at {url}: ", password_file)
    new = credentials.read_new_secret("new-password", "New password: ", new_password_file)
    server = _Server(url, insecure, credentials.pin_for(url, name, insecure=insecure))
    revoked = _change_password(server, token, (old, new), revoke_devices)
    became = f"devices refused: {revoked}" if revoke_devices else "its devices go on"
    print(f"{name} has a new password; {became}.")


def _kept_login(where: str | None, account: str | None) -> tuple[str, str]:
    """The (URL, account) that is meant: of a URL, of a mount, or the only one there is."""
    from mount.cli import target

    if where is not None and where.startswith(("http://", "https://")):
        url = normal_url(where)
        return url, credentials.account_for(url, account)
    logins = credentials.logins()
    if where is None and len(logins) == 1:
        return logins[0].url, logins[0].account
    record = target.chosen(where)
    return record.url, record.account


def _change_password(
    server: _Server, token: str, passwords: tuple[str, str], revoke_devices: bool
) -> int:
    from remote.http.api import ApiClient
    from remote.protocol.account_messages import ChangePassword, PasswordReply

    url, insecure, pin = server
    old, new = passwords
    wanted = ChangePassword(old=old, new=new, revoke_devices=revoke_devices)

    async def ask() -> PasswordReply:
        async with ApiClient(url, token, insecure=insecure, pin=pin) as client:
            return await client.change_password(wanted)

    unknown = f"{url} does not know this device any more; log in again with `nearline login`"
    return _asked(url, ask, unknown).devices_revoked


class _Server(NamedTuple):
    """The server to log in to. `pin`: the certificate of a server on this machine."""

    url: str
    insecure: bool
    pin: str | None


def _met(url: str, insecure: bool, fingerprint: str | None) -> str | None:
    """The certificate of a server on this machine, before anything is sent to it."""
    if not needs_pin(url) or insecure:
        if fingerprint is not None:
            raise UsageFailure(
                "--fingerprint is for servers on this machine (http://127.0.0.1) without "
                "--insecure; leave it out"
            )
        return None
    from mount import trust_on_first_use

    shown = trust_on_first_use.certificate_of(url)
    name = trust_on_first_use.accepted(url, shown, credentials.certificate(url), fingerprint)
    print(f"The key of {url} is {name}.", flush=True)
    return shown


def _log_in(server: _Server, account: str, password: str) -> str:
    from mount.process import embedded
    from remote.http.api import ApiClient
    from remote.protocol.messages import LoginReply, LoginRequest

    url, insecure, pin = server

    async def ask() -> LoginReply:
        async with ApiClient(url, None, insecure=insecure, pin=pin) as client:
            return await client.login(LoginRequest(account, password, embedded.device_name()))

    unknown = f"{url} does not know the account {account} with this password; try again"
    return _asked(url, ask, unknown).token


def _check_token(server: _Server, account: str, token: str) -> None:
    """Raise `Failure` unless the token is good, and of that account."""
    from remote.http.api import ApiClient
    from remote.protocol.messages import Me

    url, insecure, pin = server

    async def ask() -> Me:
        async with ApiClient(url, token, insecure=insecure, pin=pin) as client:
            return await client.me()

    found = _asked(url, ask, f"{url} does not know this token; have another one made").account
    if found.casefold() != account.casefold():
        raise Failure(f"this token is of the account {found}, not of {account}")


def _asked(url: str, ask: Callable[[], Awaitable[T]], unknown: str) -> T:
    """The server's answer to one question; every way in which there is none as a `Failure`."""
    import trio

    from mount import logs
    from remote.protocol import errors

    logs.configure_for_a_command()
    try:
        return trio.run(ask)
    except errors.Refused as error:
        if isinstance(error.problem, errors.Unauthorized):
            is_explained = ";" in str(error)  # as that the account is locked
            raise Failure(str(error) if is_explained else unknown) from error
        if isinstance(error.problem, errors.Forbidden | errors.BadRequest):
            raise Failure(str(error)) from error
        raise Failure(f"{url} refused: {error}; try again later") from error
    except errors.Unreachable as error:
        raise Failure(advised(str(error), "check the URL and that the server runs")) from error
    except errors.ProtocolError as error:
        raise Failure(f"{error}; check that {url} is a Nearline server") from error
