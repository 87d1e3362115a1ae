"""Where the server's log lines go: one JSON object a line, without secrets.

Knows: structlog and logging. Must not know: what is logged.

structlog and the standard library share one chain, so nothing gets past the redaction, also not
what libraries log or the text of an exception.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from server.http import redaction


def configure(stream: TextIO | None = None) -> None:
    """Log to `stream`, by default to standard error: our own lines from INFO, others' from
    WARNING."""
    stream = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        redaction.processor,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.filters[:] = [_worth_a_line]


def _worth_a_line(record: logging.LogRecord) -> bool:
    """uvicorn 0.54 calls it an error when a WebSocket handshake is refused over HTTP, as `api.live`
    does for everybody without a good token, and warns of every connection that speaks no HTTP; the
    access log and the metrics have that already."""
    said = record.getMessage()
    return "without completing handshake" not in said and "Invalid HTTP request" not in said
