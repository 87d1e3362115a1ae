"""Health, readiness and metrics: what they say, and to whom."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from server import gauges
from server.gauges import Gauges
from server.http import health
from server.metadata import schema
from server.metadata.db import Database
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk, noise, until


def problems(server: Running) -> list[str]:
    got = httpx.get(f"{server.url}/readyz")
    told = got.json()
    assert got.status_code == (200 if told["ok"] else 503)
    assert told["ok"] == (not told["problems"])
    assert httpx.get(f"{server.url}/healthz").json() == {"ok": True, "problems": []}
    return list(told["problems"])


def test_a_good_server_is_ready(server: Running) -> None:
    assert problems(server) == []


def test_a_full_disk(start: Start) -> None:
    (wrong,) = problems(start(min_free_bytes=1 << 60))
    assert "min_free_bytes" in wrong


def test_a_blob_directory_that_cannot_be_written(start: Start) -> None:
    server = start()
    shutil.rmtree(server.data / "blobs")
    (wrong,) = problems(server)
    assert "cannot be written" in wrong
    assert str(server.data) not in wrong


def test_a_schema_that_is_not_the_newest(start: Start) -> None:
    server = start()
    with server.app.service.db.write() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    (wrong,) = problems(server)
    assert "0001" in wrong


def test_a_write_thread_that_does_not_answer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "READY_SECONDS", 0.05)
    server, go_on = start(), threading.Event()
    server.app.service.writes.submit(go_on.wait, 20)
    (wrong,) = problems(server)
    assert "did not answer" in wrong
    go_on.set()


# --- metrics ------------------------------------------------------------------------------------


def metrics(server: Running) -> dict[str, float]:
    """Samples by name and labels, as in `name{a="b"}`."""
    shown = httpx.get(f"{server.url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_metrics_tell_what_an_operator_needs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(gauges, "_SHARE", 0.0)
    server = start()
    anna = server.account("anna")
    anna.store("a", make_chunk(noise(1000, "metrics")))
    anna.start("1" * 32, "2" * 32, make_chunk(noise(500, "pending")))
    anna.http.get("/v1/me")
    with server.app.service.db.write() as conn:
        conn.execute(update(schema.drives).values(reserved_bytes=500))
    seen = metrics(server)
    assert seen["nearline_accounts"] == 1
    assert seen["nearline_used_bytes"] == 1000
    assert seen["nearline_reserved_bytes"] == 500
    assert seen['nearline_chunks{state="uploaded"}'] == 1
    assert seen['nearline_chunks{state="pending"}'] == 1
    assert seen['nearline_chunks{state="doomed"}'] == 0
    assert seen['nearline_chunk_bytes{state="uploaded"}'] == 1000
    assert seen["nearline_unverified_chunks"] in (0, 1)
    assert seen["nearline_waiting_arrivals"] == 0
    assert seen["nearline_verification_queue"] >= 0
    assert seen['nearline_jobs{of="write"}'] == 0
    assert seen["nearline_connections"] >= 1
    assert seen["nearline_live_sockets"] == seen["nearline_long_polls"] == 0
    assert seen['nearline_refusals_total{problem="unauthorized"}'] == 1
    assert seen['nearline_request_seconds_count{route="/v1/me"}'] >= 2


def test_jobs_that_wait_are_counted(start: Start) -> None:
    server, go_on = start(), threading.Event()
    service = server.app.service
    jobs = [service.writes.submit(go_on.wait, 20) for _ in range(3)]
    assert metrics(server)['nearline_jobs{of="write"}'] == 3
    go_on.set()
    for job in jobs:
        job.result(20)
    assert metrics(server)['nearline_jobs{of="write"}'] == 0


def test_totals_are_not_asked_for_at_every_scrape(
    server: Running, anna: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, now, real = [], [1000.0], gauges.totals

    def count(db: Database) -> gauges.Totals:
        asked.append(now[0])
        return real(db)

    monkeypatch.setattr(gauges, "totals", count)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    own = Gauges(server.app.service.db, {}, server.app.service.reception)
    for now[0] in (1000.0, 1030.0, 1059.0, 1061.0, 1070.0):
        assert list(own.collect())
    assert asked == [1000.0, 1061.0]


def test_metrics_may_need_a_token(start: Start) -> None:
    server = start(metrics_token="0123456789abcdef")
    good = {"Authorization": "Bearer 0123456789abcdef"}
    anna = server.account("anna")
    for path in ("/metrics", "/schema"):
        assert httpx.get(server.url + path, headers=good).status_code == 200
        for wrong in ({}, {"Authorization": f"Bearer {anna.token}"}, {"Authorization": "Bearer é"}):
            headers = {key: value.encode() for key, value in wrong.items()}
            assert httpx.get(server.url + path, headers=headers).status_code == 401
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_many_who_ask_at_a_time_are_one_look(server: Running) -> None:
    """Anybody may ask, so it must not cost the write thread anything for each."""
    service, go_on = server.app.service, threading.Event()
    service.writes.submit(go_on.wait, 20)
    try:
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(httpx.get, f"{server.url}/readyz") for _ in range(20)]
            until(lambda: server.app.connections.taken >= 20)
            httpx.get(f"{server.url}/healthz")  # what came before has been read by now
            assert service.writes.waiting <= 2
            go_on.set()
            assert {item.result().status_code for item in asked} == {200}
    finally:
        go_on.set()
