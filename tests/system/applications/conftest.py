"""One pair of devices for all the applications: each test works in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.conftest import Pair, two_devices


@pytest.fixture(scope="package")
def pair() -> Iterator[Pair]:
    with two_devices() as pair:
        yield pair
