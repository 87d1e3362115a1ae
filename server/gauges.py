"""Metrics of the moment: queues, and the totals of the database.

Knows: where these numbers are. Must not know: HTTP, who asks.

Totals cost a walk over all chunks, so they are asked for at most once a minute, and never more
than a twentieth of the time. Concurrency: any thread but the event loop's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import func, select

from server.metadata.db import Database
from server.metadata.schema import accounts, chunks, drives
from server.pools import Pool

FRESH_SECONDS = 60.0
_SHARE = 20.0

_CHUNKS = select(
    chunks.c.state,
    func.count().label("number"),
    func.coalesce(func.sum(chunks.c.stored_length), 0).label("bytes"),
    func.count(chunks.c.verified_ns).label("verified"),
).group_by(chunks.c.state)
_DRIVES = select(
    func.coalesce(func.sum(drives.c.used_bytes), 0).label("used"),
    func.coalesce(func.sum(drives.c.reserved_bytes), 0).label("reserved"),
)
STATES = ("pending", "uploaded", "doomed", "deleting")


class Totals(NamedTuple):
    """`chunks` and `chunk_bytes` by state; `unverified`: uploaded chunks nobody has read back."""

    accounts: int
    used_bytes: int
    reserved_bytes: int
    chunks: dict[str, int]
    chunk_bytes: dict[str, int]
    unverified: int


def totals(db: Database) -> Totals:
    """Of this moment."""
    with db.read() as conn:
        rows = {row.state: row for row in conn.execute(_CHUNKS)}
        space = conn.execute(_DRIVES).one()
        there = select(func.count()).select_from(accounts).where(accounts.c.removed_ns.is_(None))
        people = conn.execute(there).scalar_one()
    uploaded = rows.get("uploaded")
    return Totals(
        accounts=people,
        used_bytes=space.used,
        reserved_bytes=space.reserved,
        chunks={state: rows[state].number if state in rows else 0 for state in STATES},
        chunk_bytes={state: rows[state].bytes if state in rows else 0 for state in STATES},
        unverified=0 if uploaded is None else uploaded.number - uploaded.verified,
    )


class Received(Protocol):
    """The numbers that `reception` has for metrics."""

    @property
    def waiting_arrivals(self) -> int: ...

    @property
    def waiting_verification(self) -> int: ...


class Gauges:
    """Asked by prometheus_client at each scrape."""

    def __init__(self, db: Database, pools: dict[str, Pool], received: Received) -> None:
        self._db, self._pools, self._received = db, pools, received
        self._lock = threading.Lock()  # guards the two below
        self._totals: Totals | None = None
        self._fresh_until = 0.0

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks the database nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        queues = GaugeMetricFamily(
            "nearline_jobs", "Jobs under way or waiting, by the threads that do them", labels=["of"]
        )
        for name, pool in self._pools.items():
            queues.add_metric([name], pool.waiting)
        yield queues
        yield GaugeMetricFamily(
            "nearline_waiting_arrivals",
            "Stored objects that no transaction has taken note of yet",
            value=self._received.waiting_arrivals,
        )
        yield GaugeMetricFamily(
            "nearline_verification_queue",
            "Stored objects waiting to be read back",
            value=self._received.waiting_verification,
        )
        yield from _shown(self._recent_totals())

    def _recent_totals(self) -> Totals:
        with self._lock:
            began = time.monotonic()
            if self._totals is None or began >= self._fresh_until:
                self._totals = totals(self._db)
                ended = time.monotonic()
                self._fresh_until = ended + max(FRESH_SECONDS, _SHARE * (ended - began))
            return self._totals


def _shown(all_: Totals) -> Iterator[Metric]:
    single = {
        "nearline_accounts": ("Accounts", all_.accounts),
        "nearline_used_bytes": ("Bytes stored for all accounts", all_.used_bytes),
        "nearline_reserved_bytes": ("Bytes promised to uploads", all_.reserved_bytes),
        "nearline_unverified_chunks": ("Uploaded chunks not read back yet", all_.unverified),
    }
    for name, (text, value) in single.items():
        yield GaugeMetricFamily(name, text, value=value)
    by_state = {
        "nearline_chunks": ("Chunks", all_.chunks),
        "nearline_chunk_bytes": ("Bytes of chunks", all_.chunk_bytes),
    }
    for name, (text, values) in by_state.items():
        family = GaugeMetricFamily(name, text, labels=["state"])
        for state, number in values.items():
            family.add_metric([state], number)
        yield family
