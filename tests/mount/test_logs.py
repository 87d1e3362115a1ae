"""Lines of a mount's log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import structlog

from mount import logs
from remote.protocol.log_lines import VALUE_BYTES


def test_no_line_is_long(tmp_path: Path) -> None:
    """Whatever is logged, and by whom: 10,000 files that failed are one line of a page."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("info", tmp_path / "log")
        why = "\n".join(f"sync: error opening '/home/anna/Nearline/{n}'" for n in range(10_000))
        structlog.get_logger("ours").info("not at rest", why=why)
        logging.getLogger("theirs").warning("said %s", why)
        try:
            raise ValueError(why)
        except ValueError:
            structlog.get_logger("ours").exception("failed")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines[:2])) < VALUE_BYTES + 500
    assert len(lines[2]) < 25_000
    events = [json.loads(line) for line in lines]
    assert events[0]["why"].startswith("sync: error opening")
    assert "9999" in events[2]["exception"][-100:]
