"""The one door from the command line to the server that may be installed beside it.

`mount` must not depend on `server`: a laptop installs `nearline` without the extra
`nearline[server]`, and the layers are checked (`lint-imports`). The commands for a server on this
machine (`serve`, `account`, `admin`, `up`) therefore load it by name, when they are asked for, and
say what to install when it is not there.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mount.failures import Failure

# How `nearline up` tells the server that it starts: where to say that it serves (a file descriptor)
# and whose child it is (a process id).
READY_FD = "NEARLINE_READY_FD"
PARENT = "NEARLINE_PARENT"


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Failure(
            f"this command needs the server ({error.name} is not installed); "
            "run `pip install 'nearline[server]'`"
        ) from error


def serve(
    data_dir: Path,
    listen: str,
    public_url: str | None,
    config: Path | None,
    ready: Callable[[str], None],
    *,
    tls: tuple[Path, Path] | None = None,
    insecure: bool = False,
) -> None:
    """Run the server in the foreground until SIGTERM or SIGINT; `ready` gets its base URL. `tls`:
    files of certificate and key; `insecure`: other machines may connect without."""
    cert, key = tls or (None, None)
    safety = {"tls_cert": cert, "tls_key": key, "insecure": insecure}
    run = _load("server.main").serve
    try:
        run(data_dir, listen, public_url, config, ready, **safety)
    except (OSError, ValueError, RuntimeError) as error:
        raise Failure(_line(error)) from error


def certificate(data_dir: Path) -> str:
    """The certificate (PEM) by which the server on this data is known. Raises `Failure`."""
    try:
        return (data_dir / "server.certificate").read_text()
    except OSError as error:
        raise Failure(
            f"cannot read {error.filename}: {error.strerror}; start the server on this data again"
        ) from error


def fingerprint(data_dir: Path) -> str | None:
    """Its fingerprint; None for a server that has another certificate, from its operator."""
    try:
        return (data_dir / "server.fingerprint").read_text().strip()
    except FileNotFoundError:
        return None


def add_account(data_dir: Path, name: str, password: str) -> None:
    """Make an account in the server's data. Raises `AccountExists`, `Failure`."""
    accounts = _load("server.accounts.accounts")
    try:
        accounts.add_account(data_dir, name, password)
    except accounts.AccountExists as error:
        raise AccountExists(f"{error}; choose another name") from error
    except accounts.BadPassword as error:
        raise Failure(str(error)) from error
    except accounts.BadAccountName as error:
        raise Failure(
            f"{name!r} cannot be an account; {accounts.BadAccountName.__doc__}"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise Failure(f"cannot make the account: {error}; check --data {data_dir}") from error


def issue_token(data_dir: Path, account: str, device_name: str) -> str:
    """A new device's token, without a password: for whoever can read the server's data anyway."""
    token = _load("server.accounts.devices").issue_token(data_dir, account, device_name)
    assert isinstance(token, str)
    return token


def admin(what: str, *values: Any, **options: Any) -> Any:
    """Call the function `what` of `server.maintenance.admin`, which takes and gives plain values.
    Raises
    `Failure`."""
    module = _load("server.maintenance.admin")
    try:
        return getattr(module, what)(*values, **options)
    except module.CannotAdminister as error:
        raise Failure(_line(error)) from error


def read_audit(data_dir: Path, since_ns: int | None, account: str | None) -> Iterator[Any]:
    """The rows of the audit log, oldest first, read as they are asked for. Raises `Failure`."""
    module = _load("server.maintenance.admin")
    try:
        yield from module.read_audit(data_dir, since_ns, account)
    except module.CannotAdminister as error:
        raise Failure(_line(error)) from error


def device_name() -> str:
    """The name of this device in the account's list of devices."""
    return socket.gethostname() or "device"


class AccountExists(Failure):
    """The account is there already."""


def _line(error: Exception) -> str:
    return str(error) or type(error).__name__
