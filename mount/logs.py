"""Where log lines go: one JSON object a line, to a rotated private file or to standard error.

Knows: structlog and logging. Must not know: what is logged. Tokens and signatures are kept out by
whoever logs; here values are only cut to a length (`remote.protocol.log_lines`).
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
from pathlib import Path

import structlog

from remote.protocol.log_lines import bounded

_BYTES_PER_FILE = 5 * 1024 * 1024
_OLD_FILES = 3


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    """A rotating log that only its owner can read, whatever the umask is."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def configure_for_a_command() -> None:
    """Only warnings, to standard error: a command tells what happened itself, and its standard
    output is for whoever reads that."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        # Asked for at each line, and not kept: standard error may be another one by then.
        logger_factory=lambda *_names: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configure(level: str, file: Path | None) -> None:
    """Send everything at `level` and above to `file`, or to standard error as readable lines."""
    handler = (
        _PrivateRotatingFile(file, maxBytes=_BYTES_PER_FILE, backupCount=_OLD_FILES)
        if file
        else logging.StreamHandler()
    )
    render = (
        structlog.processors.JSONRenderer()
        if file
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler.setFormatter(_formatter(shared, render, tracebacks_as_text=file is not None))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(max(root.level, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _formatter(
    shared: list[structlog.typing.Processor],
    render: structlog.typing.Processor,
    *,
    tracebacks_as_text: bool,
) -> logging.Formatter:
    trace = [structlog.processors.format_exc_info] if tracebacks_as_text else []
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *trace,
            _bounded,
            render,
        ],
    )


def _bounded(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Behind whatever makes text of exceptions."""
    return {
        key: value if key == "exc_info" else bounded(key, value) for key, value in event.items()
    }
