"""What is counted, and how it is shown to Prometheus. No names of people or files, ever."""

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
        self.live = Gauge(
            "nearline_live_sockets", "Open change-feed sockets", registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
