"""Unit templates for systemd (a user's and the system's) and launchd, and how they are filled in.

Knows: the templates beside this file and the one word in them that differs between installations,
`@NEARLINE@`: the absolute path of the `nearline` command. Must not know: which services run.
"""

from __future__ import annotations

from importlib.resources import files

from mount.failures import Failure

TEMPLATES = (
    "user/nearline@.service",
    "user/nearline-up.service",
    "system/nearline-server.service",
    "system/nearline@.service",
    "launchd/org.nearline.server.plist",
)


def template(name: str) -> str:
    """The text of the template `name`, one of `TEMPLATES`."""
    if name not in TEMPLATES:
        raise Failure(f"there is no unit {name!r}; choose one of {', '.join(TEMPLATES)}")
    return files("mount.units").joinpath(name).read_text()


def render(name: str, command: str) -> str:
    """The unit `name` for the installation whose `nearline` is at the absolute path `command`."""
    if not command.startswith("/") or any(character.isspace() for character in command):
        raise Failure(f"{command!r} is not an absolute path without spaces; install it elsewhere")
    return template(name).replace("@NEARLINE@", command)
