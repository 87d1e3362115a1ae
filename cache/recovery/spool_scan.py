"""The files of the spool directory, for who must judge dirty bytes without the database.

Knows: sparse files. Must not know: layers.
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path

from cache.metadata.durable import copy_private
from cache.metadata.intervals import Range
from cache.recovery.mending import SpoolFile
from cache.recovery.quarantine import layer_files


def find(spool: Path | None) -> dict[int, SpoolFile]:
    """Every spool file by layer."""
    files = {} if spool is None else layer_files(spool)
    return {
        number: SpoolFile(
            path.stat().st_size,
            functools.partial(data_ranges, path),
            functools.partial(_copy, path),
        )
        for number, path in files.items()
    }


def data_ranges(path: Path) -> list[Range]:
    """Where the file has bytes, in whole pages of the file system; between them are holes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, at, found = os.fstat(descriptor).st_size, 0, list[Range]()
        while at < size:
            try:
                start = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, at))
        return found
    finally:
        os.close(descriptor)


def _copy(path: Path, number: int) -> None:
    """The same bytes for another layer, which are written apart from now on."""
    copy_private(path, path.with_name(f"{number}.layer"))
