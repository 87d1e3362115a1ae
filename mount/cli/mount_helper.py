"""/sbin/mount.nearline: what mount(8) runs for `mount -t nearline URL DIR -o OPTIONS` and fstab.

Knows: how mount(8) calls a helper (mount(8), "External helpers": `SPEC DIR [-sfnv] [-N namespace]
[-o options] [-t type.subtype]`). Must not know: how a mount is made; it says the same as
`nearline mount`, with the same exit codes, and the account in the options.

mount(8) hands helpers `nosuid` and `nodev`, never `suid` and `dev`, which are the default of every
file system. So for root their absence asks for them, as it does for libfuse's mount.fuse.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from getopt import GetoptError, gnu_getopt
from pathlib import Path

from mount.config import normal_url
from mount.failures import Failure, UsageFailure
from mount.options import ROOT_FLAGS, parse_options
from mount.process import fstab

USAGE = "mount -t nearline URL DIR [-o OPTIONS]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount as asked; the exit code."""
    try:
        mount(list(sys.argv[1:] if arguments is None else arguments))
    except Failure as error:
        print(f"mount.nearline: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def mount(arguments: list[str]) -> None:
    """Raises `Failure`. -n (no mtab) means nothing any more; -f checks only what was written."""
    try:
        flags, words = gnu_getopt(arguments, "sfnvN:o:t:")
    except GetoptError as error:
        raise UsageFailure(f"{error}; use {USAGE}") from error
    if len(words) != 2:
        raise UsageFailure(f"a URL and a directory are needed; use {USAGE}")
    given = {flag for flag, _ in flags}
    if "-N" in given:
        raise UsageFailure("mounting in another namespace (-N) is not possible; use nsenter")
    strings = [value for flag, value in flags if flag == "-o"]
    defaults = [",".join(sorted(ROOT_FLAGS))] if os.getuid() == 0 else []
    options = parse_options([*defaults, *strings], sloppy="-s" in given)
    url, directory = normal_url(words[0]), words[1]
    if warning := fstab.warning(Path(directory)):
        print(f"mount.nearline: {warning}", file=sys.stderr)
    if "-v" in given:
        print(f"mount.nearline: {url} on {directory} ({','.join(strings) or 'defaults'})")
    if "-f" not in given:
        from mount.cli.mounting import start

        start(url, directory, options, foreground=False)


if __name__ == "__main__":
    sys.exit(main())
