"""The mount's Prometheus metrics: `status` as numbers, asked for at each scrape.

Knows: names of metrics. Must not know: where the numbers come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mount.control.messages import Status
from mount.failures import Failure

_LIMIT = 8192
_PATIENCE_SECONDS = 10.0


class _FromStatus:
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        now = self._status()
        gauges = {
            "nearline_mount_online": (now.state == "online", "1 while the server answers"),
            "nearline_journal_operations": (now.journal.operations, "operations not sent yet"),
            "nearline_journal_bytes": (now.journal.bytes, "bytes not sent yet"),
            "nearline_refused_operations": (len(now.refused), "operations refused for good"),
            "nearline_cache_bytes": (now.cache.bytes, "bytes in the block cache"),
            "nearline_cache_limit_bytes": (now.cache.limit, "limit of the block cache"),
            "nearline_feed_lag_seconds": (now.feed.lag_seconds or 0.0, "time since in step"),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        counters = {
            "nearline_downloaded_bytes": (now.transferred.downloaded_bytes, "bytes fetched"),
            "nearline_uploaded_bytes": (now.transferred.uploaded_bytes, "bytes sent"),
            "nearline_requests": (now.transferred.requests, "requests made"),
        }
        for name, (value, text) in counters.items():
            yield CounterMetricFamily(name, text, value=float(value))
        asked = CounterMetricFamily(
            "nearline_kernel_requests", "requests of the kernel, by name", labels=["request"]
        )
        for name, value in now.kernel_requests.items():
            asked.add_metric([name], float(value))
        yield asked


async def open_metrics(port: int) -> list[trio.SocketListener]:
    """Listen on 127.0.0.1:`port`, so that who has that port already is found before there is a
    mount. Raises `Failure`."""
    try:
        return await trio.open_tcp_listeners(port, host="127.0.0.1")
    except OSError as error:
        raise Failure(
            f"cannot listen on 127.0.0.1:{port} for metrics: {error.strerror}; "
            "give another metrics-port"
        ) from error


async def serve_metrics(listeners: list[trio.SocketListener], status: Callable[[], Status]) -> None:
    """Answer any HTTP request on `listeners` with the metrics, until cancelled."""
    registry = CollectorRegistry()
    registry.register(_FromStatus(status))
    await trio.serve_listeners(partial(_answer, registry), listeners)


async def _answer(registry: CollectorRegistry, stream: trio.SocketStream) -> None:
    """One request. A client that breaks off or dawdles is dropped: it must not end the mount."""
    with trio.move_on_after(_PATIENCE_SECONDS), contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            await _answer_request(registry, stream)


async def _answer_request(registry: CollectorRegistry, stream: trio.SocketStream) -> None:
    asked = b""
    while b"\r\n\r\n" not in asked and len(asked) < _LIMIT:
        more = await stream.receive_some(_LIMIT)
        if not more:
            return
        asked += more
    body = generate_latest(registry)
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    await stream.send_all(head.encode() + body)
