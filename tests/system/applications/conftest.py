"""One pair of devices for all the applications: each test works in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import harness
from tests.system.conftest import Pair


@pytest.fixture(scope="package")
def pair() -> Iterator[Pair]:
    with harness.running() as site:
        pair = Pair(site, site.device("a"), site.device("b"))
        pair.a.mount()
        pair.b.mount()
        yield pair
