"""Which commands there are.

Their functions are named, not imported: cyclopts loads one when it is asked for (`App.command` with
an import path). The first line of each help is here for the same reason.
"""

from __future__ import annotations

from importlib.metadata import version

from cyclopts import App

_COMMANDS = {
    "up": ("mount.cli.setup:up", "A server, an account and a mount, in one command."),
    "serve": ("mount.cli.setup:serve", "Run a server in the foreground."),
    "login": ("mount.cli.setup:login", "Get a token for this device, with your password."),
    "passwd": ("mount.cli.setup:passwd", "Change the password of your account."),
    "mount": ("mount.cli.mounting:mount", "Mount your drive; returns when it is usable."),
    "umount": ("mount.cli.mounting:umount", "Wait for the journal, then unmount."),
    "flush": ("mount.cli.mounting:flush", "Return when the server has everything."),
    "retry": ("mount.cli.mounting:retry", "Try again what the server refused."),
    "status": ("mount.cli.status:status", "What the mounts are doing."),
    "doctor": ("mount.cli.status:doctor", "Check this machine, and say what to do."),
    "pin": ("mount.cli.status:pin", "Keep a file or folder on this machine."),
    "unpin": ("mount.cli.status:unpin", "Let a pinned file or folder be evicted again."),
    "warm": ("mount.cli.status:warm", "Fetch a file or folder into the cache now."),
    "limit": ("mount.cli.limiting:limit", "How fast a mount may upload and download."),
    "share": ("mount.cli.sharing:share", "Let another account see or change a file or folder."),
    "unshare": ("mount.cli.sharing:unshare", "Take back what share gave."),
    "shares": ("mount.cli.sharing:shares", "Who has access to a file or folder."),
    "shared": ("mount.cli.sharing:shared", "What others share with you."),
    "leave": ("mount.cli.sharing:leave", "Give up what somebody shares with you."),
    "link": ("mount.cli.sharing:link", "Make a URL for people without an account."),
    "links": ("mount.cli.sharing:links", "The links to your files."),
    "log": ("mount.cli.history:log", "The versions of a file."),
    "restore": ("mount.cli.history:restore", "Go back to an earlier version, or undelete."),
    "trash": ("mount.cli.history:trash", "What was deleted, and bringing it back."),
    "devices": ("mount.cli.devices:devices", "The devices and tokens of your account."),
    "admin": ("mount.cli.admin:admin", "Look after a server's data, also while it runs."),
}

_ACCOUNT_COMMANDS = {
    "add": ("mount.cli.setup:account_add", "Make an account."),
    "list": ("mount.cli.accounts:account_list", "What each account has and may."),
    "set": ("mount.cli.accounts:account_set", "Change quota and history of an account."),
    "passwd": ("mount.cli.accounts:account_passwd", "Give an account another password."),
    "lock": ("mount.cli.accounts:account_lock", "Refuse an account everywhere."),
    "unlock": ("mount.cli.accounts:account_unlock", "Let a locked account in again."),
    "remove": ("mount.cli.accounts:account_remove", "Delete an account for good."),
}


def _make() -> App:
    app = App(
        name="nearline",
        help="Your files on a server you own, shown as an ordinary folder.",
        version=lambda: version("nearline"),
        result_action="return_value",
    )
    for name, (path, summary) in _COMMANDS.items():
        app.command(path, name=name, help=summary)
    account = App(name="account", help="Accounts of a server on this machine.")
    for name, (path, summary) in _ACCOUNT_COMMANDS.items():
        account.command(path, name=name, help=summary)
    app.command(account)
    cache = App(name="cache", help="The block cache of a mount.")
    cache.command("mount.cli.status:cache_stats", name="stats", help="How full it is.")
    cache.command("mount.cli.status:cache_clear", name="clear", help="Drop what is not pinned.")
    app.command(cache)
    return app


app = _make()
