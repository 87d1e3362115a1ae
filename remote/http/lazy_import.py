"""Modules that are loaded when something of them is first used.

Knows: importing by name. The HTTP libraries take 0.2 s to load. A mount is in use before it asks
the server anything, and must not wait for them at its start.
"""

from __future__ import annotations

import importlib
from typing import Any


class Late:
    """Stands for the module `name`; importing it from several threads at once is safe."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
