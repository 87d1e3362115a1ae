"""/sbin/mount.nearline: what mount(8) runs for `mount -t nearline URL DIR -o OPTIONS` and fstab.

Knows: how mount(8) calls a helper (mount(8), "External helpers": `SPEC DIR [-sfnv] [-N namespace]
[-o options] [-t type.subtype]`). Must not know: how a mount is made; it says the same as
`nearline mount`, with the same exit codes, and the account in the options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from getopt import GetoptError, gnu_getopt

from mount.config import normal_url, parse_options
from mount.failures import Failure, UsageFailure

USAGE = "mount -t nearline URL DIR [-o OPTIONS]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount as asked; the exit code."""
    try:
        mount(list(sys.argv[1:] if arguments is None else arguments))
    except Failure as failure:
        print(f"mount.nearline: {failure}", file=sys.stderr)
        return failure.exit_code
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
    options = parse_options(strings, sloppy="-s" in given)
    url, directory = normal_url(words[0]), words[1]
    if "-v" in given:
        print(f"mount.nearline: {url} on {directory} ({','.join(strings) or 'defaults'})")
    if "-f" not in given:
        from mount.cli.mounting import start

        start(url, directory, options, foreground=False)


if __name__ == "__main__":
    sys.exit(main())
