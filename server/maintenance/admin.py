"""An administrator's work on a data directory, for the command line.

Knows: which module does what, and what each of its errors asks for. Must not know: words of the
command line, how things look.

Every function takes the data directory and returns plain values (dicts, lists, numbers, strings;
`*_ns` are nanoseconds since 1970 UTC), because who calls it may not import the server's types. All
work beside a running server, but for `restore`, which makes a new directory. What goes wrong is
`CannotAdminister`, whose message says what to do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from server import datadir
from server.accounts import accounts, closing, devices, passwords
from server.maintenance import (
    account_removal,
    admin_watch,
    backup,
    backup_restore,
    fsck,
    gc,
    janitor,
    lock,
)
from server.maintenance.fsck import Progress
from server.metadata.db import Database, DataTooNew
from server.permissions import audit
from server.settings import BadSettings, read_config
from server.storage import keys
from server.storage.blobs import LocalBlobStore

_PAGE = 1000


class CannotAdminister(RuntimeError):
    """It was not done; the message says why, and what to do."""


def collect_garbage(data_dir: Path, *, config: Path | None, dry_run: bool) -> dict[str, Any]:
    """Collect what may go, or with `dry_run` count it. What is kept is as `config` says, else as
    the last server on this data was told."""
    with _asked(data_dir), accounts.opened(data_dir) as db:
        options = (
            janitor.remembered(data_dir)
            if config is None
            else janitor.options_of(read_config(config))
        )
        options = msgspec.structs.replace(options, dry_run=dry_run)
        blobs = LocalBlobStore(data_dir / "blobs")
        held = lock.keeping if dry_run else lock.collecting
        with held(data_dir):
            return _plain(gc.run(db, blobs, options))


def check(data_dir: Path, *, read_data: bool, repair: bool, progress: Progress) -> dict[str, Any]:
    """fsck: {ok, checked, findings}."""
    with _asked(data_dir), _current(data_dir) as db:
        blobs = LocalBlobStore(data_dir / "blobs")
        held = lock.collecting if repair else lock.keeping
        with held(data_dir):
            report = fsck.run(db, blobs, read_data=read_data, repair=repair, progress=progress)
        return _plain(report)


def back_up(data_dir: Path, dest: Path, progress: Progress) -> dict[str, Any]:
    """Copy everything to `dest`: {objects, bytes, copied, removed, lost}."""
    with _asked(data_dir):
        with _current(data_dir):
            pass
        return _plain(backup.make(data_dir, dest, progress))


def restore(source: Path, data_dir: Path, progress: Progress) -> dict[str, Any]:
    """Make `data_dir` of a backup: {at_ns, objects, bytes, checked}."""
    with _asked(None):
        return _plain(backup_restore.restore(source, data_dir, progress))


def read_audit(
    data_dir: Path, since_ns: int | None, account: str | None
) -> Iterator[dict[str, Any]]:
    """The audit log, oldest first; `account` is a name."""
    with _asked(data_dir), accounts.opened(data_dir) as db:
        if account is not None:
            with db.read() as conn:
                accounts.account_id(conn, account, removed_too=True)
        after = 0
        while True:
            with db.read() as conn:
                page = audit.read(conn, since_ns, account, after, _PAGE)
            for row in page:
                yield row._asdict()
                after = row.id
            if not page:
                return


def list_accounts(data_dir: Path) -> list[dict[str, Any]]:
    with _asked(data_dir):
        return [row._asdict() for row in accounts.list_accounts(data_dir)]


def set_account(data_dir: Path, name: str, **values: int | None) -> dict[str, Any]:
    """Change `quota_bytes`, `keep_days` and `keep_versions`, those that are given; None: none, or
    as the server's settings say. How the account is then."""
    with _asked(data_dir, ValueError):
        return accounts.set_account(data_dir, name, **values)._asdict()


def set_password(data_dir: Path, name: str, password: str, *, revoke_devices: bool) -> int:
    """Give an account another password; how many devices were revoked with it."""
    with _asked(data_dir, ValueError):
        return passwords.set_password(data_dir, name, password, revoke_devices=revoke_devices)


def lock_account(data_dir: Path, name: str) -> None:
    """Refuse an account from its next request on."""
    with _asked(data_dir):
        closing.lock(data_dir, name)


def unlock_account(data_dir: Path, name: str) -> None:
    with _asked(data_dir):
        closing.unlock(data_dir, name)


def leaving(data_dir: Path, name: str) -> dict[str, Any]:
    """Count what the removal of an account would end: {name, files, used_bytes, links, devices,
    shared, received}."""
    with _asked(data_dir):
        return closing.leaving(data_dir, name)._asdict()


def remove_account(data_dir: Path, name: str) -> dict[str, Any]:
    """Remove an account and empty its drive: what `leaving` says, and `emptied`, which is false
    when something else is at work on the data and the next garbage collection has to do it."""
    with _asked(data_dir):
        told = closing.remove(data_dir, name)._asdict()
        try:
            with accounts.opened(data_dir) as db, lock.collecting(data_dir):
                for _ in account_removal.steps(db, time.time_ns):
                    pass
        except lock.Collecting:
            return told | {"emptied": False}
        return told | {"emptied": True}


def list_tokens(data_dir: Path, account: str | None) -> list[dict[str, Any]]:
    with _asked(data_dir):
        return [row._asdict() for row in devices.list_devices(data_dir, account)]


def add_token(
    data_dir: Path,
    account: str,
    name: str,
    *,
    read_only: bool,
    folder: str | None,
    expires_ns: int | None,
) -> str:
    """A new token of `account`, for a device called `name`."""
    with _asked(data_dir, ValueError):
        limits: dict[str, Any] = {"scope": "read" if read_only else "full", "folder": folder}
        return devices.issue_token(data_dir, account, name, expires_ns=expires_ns, **limits)


def revoke_token(data_dir: Path, device: str) -> str:
    """Refuse a device from its next request on; its name."""
    with _asked(data_dir):
        return devices.revoke_device(data_dir, device)


def rotate_keys(data_dir: Path, *, overlap: bool) -> dict[str, Any]:
    """New keys, which a running server takes up by itself: {edge, until_ns}. `until_ns`: until then
    what was signed before may still be good."""
    with _asked(data_dir, keys.BadKey), accounts.opened(data_dir) as db:
        now = int(time.time())
        made = keys.rotate_keys(data_dir / "keys", now, overlap=overlap)
        told = {"edge": made.edge_id, "overlap": overlap}
        with db.write() as conn:
            audit.note(conn, None, admin_watch.KEYS, None, time.time_ns(), **told)
        until = now + keys.URL_SECONDS if overlap else now
        return {"edge": made.edge_id, "until_ns": until * 10**9}


# --- around all of them -------------------------------------------------------------------------

# Wrong words, wrong places and wrong moments; their messages say what to do.
_FORESEEN = (
    accounts.AccountUnknown,
    backup.BadBackup,
    backup_restore.NotEmpty,
    datadir.NotPrivate,
    lock.Collecting,
    lock.Served,
    devices.DeviceUnknown,
    devices.FolderUnknown,
    BadSettings,
    DataTooNew,
)


@contextlib.contextmanager
def _asked(data_dir: Path | None, *also: type[Exception]) -> Iterator[None]:
    """Turn what is foreseen to go wrong, and `also` these, into `CannotAdminister`; `data_dir` must
    have data, if it is given."""
    if data_dir is not None and not (data_dir / backup.DATABASE).is_file():
        raise CannotAdminister(f"there is no Nearline data in {data_dir}; check --data")
    foreseen: tuple[type[Exception], ...] = (*_FORESEEN, *also)
    try:
        yield
    except SQLAlchemyError as error:
        why = getattr(error, "orig", None) or error
        todo = "look at the disk and its permissions, or restore a backup"
        raise CannotAdminister(f"the database cannot be used: {why}; {todo}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        todo = "run this as the user that the server runs as, and look at the disk"
        raise CannotAdminister(f"{where}{error.strerror or error}; {todo}") from error
    except foreseen as error:
        raise CannotAdminister(str(error)) from error


@contextlib.contextmanager
def _current(data_dir: Path) -> Iterator[Database]:
    """The database as it is: what only looks does not migrate."""
    with datadir.private():
        datadir.secure(data_dir)
        db = Database(data_dir / backup.DATABASE)
        try:
            if not db.is_current():
                raise CannotAdminister(
                    "the data is of an older Nearline; start the server once, or run"
                    " `nearline account list --data DIR`, to bring it up to date"
                )
            yield db
        finally:
            db.close()


def _plain(struct: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(struct)
    return plain
