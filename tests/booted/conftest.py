"""These tests boot a machine: they are looked at only where that is asked for."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "NEARLINE_BOOTED" in os.environ else ["test_*.py"]
