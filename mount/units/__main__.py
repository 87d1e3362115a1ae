"""`python -m mount.units`: put the units where the service manager of this system looks for them.

As root the system's units, otherwise the user's. Nothing is enabled or started. Refused if others
than root, or than this user, could change the program that the units run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mount.failures import Failure
from mount.units import TEMPLATES, render, trust

# ProtectHome= in systemd.exec(5).
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


def place(system: str, root: bool) -> tuple[str, Path]:
    """Which templates (the directory of their names) belong where on this machine."""
    if system == "darwin":
        return "launchd", Path.home() / "Library/LaunchAgents"
    if root:
        return "system", Path("/etc/systemd/system")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return "user", config / "systemd/user"


def check(kind: str, command: Path, user: int) -> None:
    """Raise `Failure` if units of this `kind` must not run `command`: whoever could change it would
    get the rights of the unit's user, or the sandbox hides it."""
    trust.check_program({trust.ROOT, user}, command)
    if kind == "system" and any(command.is_relative_to(home) for home in HOMES):
        raise Failure(
            f"{command} is in a home directory, which the server's unit does not see; install a "
            "copy elsewhere (as root: `scripts/install-system`)"
        )


def install(kind: str, directory: Path, command: Path) -> list[Path]:
    """Write the units of this `kind`; their files."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    files = []
    for name in TEMPLATES:
        if name.startswith(f"{kind}/"):
            files.append(directory / Path(name).name)
            files[-1].write_text(render(name, str(command)))
            files[-1].chmod(0o644)
    return files


def main() -> int:
    os.umask(0o022)  # units are for all to read and for their owner to write, whatever it was
    kind, directory = place(sys.platform, os.getuid() == 0)
    command = Path(sys.executable).with_name("nearline")
    check(kind, command, os.getuid())
    for file in install(kind, directory, command):
        print(f"installed {file}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, OSError) as error:
        print(f"nearline: {error}", file=sys.stderr)
        sys.exit(1)
