#!/bin/sh
# Importing an ORM and its tool for migrations makes each full garbage collection of CPython 3.11 stop every
# thread for tens of milliseconds, for as long as the process lives: the collector looks through all
# that was imported, again and again, and finds nothing. What is not collected by age is not skipped:
# modules, classes and functions never leave the oldest generation. gc.freeze(), once after the
# imports, takes them out of it.
#
# Seen with SQLAlchemy 2.1.9, alembic 1.20.1, CPython 3.11.7, Linux, 2 busy cores:
#     bare           7459 objects    0.6 ms a collection
#     imported      58989 objects   76.4 ms a collection
#     frozen            1 objects    0.0 ms a collection
# In a server under load there were about ten such collections in eight seconds, of 70 to 95 ms each.
#
# Fails when that is not so any more: when imports leave fewer than 30,000 objects to look through, or
# a collection after them is less than ten times one after gc.freeze().
set -eu
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check alembic==1.20.1 SQLAlchemy==2.1.9
"$there/venv/bin/python" - <<'PYTHON'
import gc
import platform
import statistics
import time


def look(what: str) -> tuple[int, float]:
    """How many objects a full collection looks through, and how long it takes, in milliseconds."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        gc.collect()
        times.append((time.perf_counter() - began) * 1000)
    objects, middle = len(gc.get_objects()), statistics.median(times)
    print(f"{what:10} {objects:8} objects {middle:7.1f} ms a collection")
    return objects, middle


print(platform.python_implementation(), platform.python_version())
look("bare")
import alembic.command  # noqa: E402, F401
import sqlalchemy.dialects.postgresql  # noqa: E402, F401
import sqlalchemy.orm  # noqa: E402, F401

objects, slow = look("imported")
gc.freeze()
_, quick = look("frozen")
if objects < 30_000 or slow < 10 * quick:
    raise SystemExit("the behaviour has changed")
PYTHON
