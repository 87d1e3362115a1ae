"""Names and attributes are as POSIX has them: on a real mount, and on a local file system, which
proves the expectations right. For root: the scripts act as several users."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import harness, posix_scripts
from tests.system.harness import Device
from tests.system.posix_actor import Actor

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    with Actor() as actor:
        yield actor


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with harness.running() as site:
        device = site.device("a", "-o", "allow_other")
        device.mount()
        yield device


@pytest.fixture(scope="module")
def mounted(device: Device) -> Path:
    return device.at


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.mark.parametrize("place", ["local", "mounted"])
@pytest.mark.parametrize("family", posix_scripts.FAMILIES)
def test_calls_do_what_posix_says(
    family: str, place: str, actor: Actor, request: pytest.FixtureRequest
) -> None:
    where: Path = request.getfixturevalue(place)
    complaints = {}
    for name, text in posix_scripts.scripts(family):
        directory = Path(tempfile.mkdtemp(dir=where))
        directory.chmod(0o755)
        if found := actor.play(directory, text):
            complaints[name] = found
    assert complaints == {}
