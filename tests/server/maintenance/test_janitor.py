"""The server collects by itself: what, when not, and what an administrator's collection keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from server.maintenance import gc, janitor, lock
from server.maintenance.gc_chunks import Options
from server.metadata import schema
from server.settings import Tunables
from tests.server.conftest import Start
from tests.server.deleting import forget
from tests.server.harness import Running, make_chunk, noise, until

HOUR = 3600 * 10**9


def age(running: Running) -> None:
    """Make everything in the tables two hours older."""
    with running.app.service.db.write() as conn:
        for column in (schema.chunks.c.created_ns, schema.chunks.c.doomed_ns):
            conn.execute(update(schema.chunks).values({column: column - 2 * HOUR}))


def states(running: Running) -> list[str]:
    with running.app.service.db.read() as conn:
        return sorted(conn.execute(select(schema.chunks.c.state)).scalars())


def test_a_server_collects_by_itself(start: Start) -> None:
    running = start(collect_seconds=0.05)
    anna = running.account("anna")
    anna.store("kept", make_chunk(noise(1000, "kept")))
    anna.store("gone", make_chunk(noise(1000, "gone")))
    forget(anna, "gone")
    until(lambda: states(running) == ["doomed", "uploaded"])
    age(running)
    until(lambda: states(running) == ["uploaded"])
    assert len(list(running.app.service.blobs.keys())) == 1
    until(lambda: "nearline_collected_bytes_total 1000.0" in anna.http.get("/metrics").text)


def test_it_leaves_a_backup_alone(start: Start) -> None:
    running = start()
    with lock.keeping(running.data):
        assert running.app.service.janitor.collect() is None
    assert running.app.service.janitor.collect() is not None


def test_it_ends_between_two_steps_when_the_server_does(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    begun = threading.Event()

    def forever(*_: object) -> Iterator[None]:
        while True:
            begun.set()
            yield

    monkeypatch.setattr(gc, "steps", forever)
    thread = threading.Thread(target=running.app.service.janitor.collect)
    thread.start()
    assert begun.wait(60)
    running.app.service.janitor.close()
    thread.join(60)
    assert not thread.is_alive()
    with lock.collecting(running.data):
        pass  # it let go of the lock


def test_what_the_server_keeps_an_administrator_keeps_too(tmp_path: Path) -> None:
    assert janitor.remembered(tmp_path) == Options(keep_days=30, keep_versions=10)
    janitor.remember(tmp_path, Tunables(keep_days=365, keep_versions=3))
    assert janitor.remembered(tmp_path) == Options(keep_days=365, keep_versions=3)


def test_a_started_server_remembers(start: Start) -> None:
    running = start(keep_days=77)
    assert janitor.remembered(running.data).keep_days == 77
