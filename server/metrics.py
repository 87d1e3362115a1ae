"""Counters and gauges, and their form for Prometheus. No names of people or files, ever."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server. Safe from any thread (prometheus_client locks)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nearline_requests_total",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "nearline_request_seconds",
            "Time until the answer was sent",
            ["route"],
            registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
        )
        self.operations = Counter(
            "nearline_operations_total",
            "Tree operations answered",
            ["operation", "answer"],
            registry=self.registry,
        )
        self.stored_bytes = Counter(
            "nearline_blob_received_bytes_total",
            "Bytes of stored objects taken in",
            registry=self.registry,
        )
        self.served_bytes = Counter(
            "nearline_edge_sent_bytes_total",
            "Bytes of stored objects served",
            registry=self.registry,
        )
        self.verified_bytes = Counter(
            "nearline_blob_verified_bytes_total",
            "Bytes of stored objects read back and checked",
            registry=self.registry,
        )
        self.bad_chunks = Counter(
            "nearline_chunks_bad_total",
            "Stored objects that were not what their chunk's id says, and were taken away",
            registry=self.registry,
        )
        self.live = Gauge(
            "nearline_live_sockets", "Open change-feed sockets", registry=self.registry
        )

        self.connections = Gauge("nearline_connections", "Open connections", registry=self.registry)
        self.body_bytes = Gauge(
            "nearline_body_bytes", "Room taken by bodies of requests", registry=self.registry
        )
        self.polls = Gauge(
            "nearline_long_polls", "Long polls waiting for changes", registry=self.registry
        )
        self.cut = Counter(
            "nearline_connections_cut_total",
            "Connections refused or ended by a limit",
            ["why"],
            registry=self.registry,
        )
        self.limited = Counter(
            "nearline_rate_limited_total",
            "Requests turned away by a rate, and sockets by their number",
            ["what"],
            registry=self.registry,
        )
        self.refusals = Counter(
            "nearline_refusals_total",
            "Requests answered with a problem",
            ["problem"],
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
