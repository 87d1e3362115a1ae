"""`python -m mount.units`: put the units where the service manager of this system looks for them.

As root the system's units, otherwise the user's. Nothing is enabled or started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mount.failures import Failure
from mount.units import TEMPLATES, render


def place(system: str, root: bool) -> tuple[str, Path]:
    """Which templates (the directory of their names) belong where on this machine."""
    if system == "darwin":
        return "launchd", Path.home() / "Library/LaunchAgents"
    if root:
        return "system", Path("/etc/systemd/system")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return "user", config / "systemd/user"


def main() -> int:
    kind, directory = place(sys.platform, os.getuid() == 0)
    command = str(Path(sys.executable).with_name("nearline"))
    directory.mkdir(parents=True, exist_ok=True)
    for name in TEMPLATES:
        if name.startswith(f"{kind}/"):
            file = directory / Path(name).name
            file.write_text(render(name, command))
            print(f"installed {file}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, OSError) as error:
        print(f"nearline: {error}", file=sys.stderr)
        sys.exit(1)
