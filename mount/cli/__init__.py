"""The `nearline` command.

Knows: the words of the command line and how to report. Must not know: how anything is done; every
command is a few lines that call the modules beside this package.

Exit codes: 0 done, 1 failed, 2 wrong usage. A failure is one line on standard error that says what
happened and what to do; `--debug` adds the traceback. Modules are imported when their command
runs, because `nearline status` in a shell prompt must not wait for an HTTP client to load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mount.failures import Failure

# 128 + SIGINT, what shells expect.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's own) name; the exit code."""
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    try:
        return run(words)
    except Failure as error:
        if debug:
            raise
        print(f"nearline: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nearline: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left: nobody to tell, and nothing is wrong
        return 1


def run(words: Sequence[str]) -> int:
    """Parse and perform; raises `Failure` for whatever goes wrong."""
    from cyclopts import CycloptsError

    from mount.cli.app import app
    from mount.failures import UsageFailure

    try:
        result = app(list(words) or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageFailure(f"{_plain(error)}; see `nearline --help`") from error
    return result if isinstance(result, int) else 0


def _plain(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(" .,")


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    end = words.index("--") if "--" in words else len(words)
    if "--debug" not in words[:end]:
        return words, False
    return [word for word in words[:end] if word != "--debug"] + words[end:], True
