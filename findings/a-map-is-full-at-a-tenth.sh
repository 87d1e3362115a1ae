#!/bin/sh
# LMDB says MDB_MAP_FULL for a map that is 90% free, and by its own count. A value that does not fit into a
# page lies in overflow pages, which must be *one run* of free pages; nothing is ever moved or split. When
# values are deleted here and there, as a cache does that evicts by use, what is free lies in holes of the
# size of what was there: larger values do not fit, none at all, for as long as the neighbours live. Even 4%
# more is too much when every second value has gone. Evicting "until there is room" by adding up sizes does
# not make any.
#
# What helps: values of one size, larger ones in pieces, or a copy with compaction, which needs the room.
#
# Seen with lmdb 3.0.0 (LMDB 0.9.36), CPython 3.11.7; a map of 64 MiB, full of values of 100,000 bytes:
#     1 of 2 kept, used  50%: 320 values of  100000 fit
#     1 of 2 kept, used  50%:   5 values of  104000 fit
#     1 of 2 kept, used  50%:   0 values of  150000 fit
#     1 of 10 kept, used  10%: 191 values of  250000 fit
#     1 of 10 kept, used  10%:   0 values of 1000000 fit
#
# Fails when that is not so any more.
set -eu
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check lmdb==3.0.0
"$there/venv/bin/python" - "$there" <<'PYTHON'
import platform
import shutil
import sys

import lmdb

MAP, VALUE = 64 << 20, 100_000


def used(env: lmdb.Environment) -> float:
    stat = env.stat()
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages * stat["psize"] / MAP


def fill(env: lmdb.Environment, prefix: bytes, size: int) -> int:
    """How many values of `size` fit, each in a transaction of its own."""
    count = 0
    try:
        while True:
            with env.begin(write=True) as transaction:
                transaction.put(prefix + b"%08d" % count, bytes(size))
            count += 1
    except lmdb.MapFullError:
        return count


def fit(there: str, every: int, keep: int, size: int) -> int:
    """How many values of `size` fit when, of `every` values in a full map, `keep` are left."""
    env = lmdb.open(f"{there}/map", map_size=MAP, sync=False)
    for number in range(fill(env, b"a", VALUE)):
        if number % every >= keep:
            with env.begin(write=True) as transaction:
                transaction.delete(b"a%08d" % number)
    for number in range(4):  # what a transaction frees can be used by the one after the next
        with env.begin(write=True) as transaction:
            transaction.put(b"n", b"%d" % number)
    share = used(env)
    count = fill(env, b"b", size)
    env.close()
    shutil.rmtree(f"{there}/map")
    print(f"{keep} of {every} kept, used {share:4.0%}: {count:3} values of {size:7} fit")
    assert share < keep / every + 0.05, "nothing was freed"
    return count


print("CPython", platform.python_version(), "lmdb", lmdb.__version__, "LMDB", lmdb.version())
there = sys.argv[1]
same = fit(there, 2, 1, VALUE)
little, half = fit(there, 2, 1, 104_000), fit(there, 2, 1, 150_000)
fit(there, 10, 1, 250_000)
tenth = fit(there, 10, 1, 1_000_000)
if same < 300:
    raise SystemExit("this script does not work")
if little > 20 or half or tenth:
    raise SystemExit("the behaviour has changed")
PYTHON
