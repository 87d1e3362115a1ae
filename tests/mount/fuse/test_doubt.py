"""Names of a directory whose listing is not believed any more, or not had to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache.metadata.tree import ROOT
from mount.fuse.attributes import TIMEOUT_SECONDS
from mount.session.session import Session
from tests.mount.fuse.test_turns import Mounted


class Doubted(Mounted):
    """The kernel's requests over a `State`, with the session's own word on what is in doubt."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.doubts: list[int] = []
        session: Any = self.system._session
        session.listing = SimpleNamespace(doubt=self.doubts.append)
        session.in_doubt = lambda ino: Session.in_doubt(session, ino)

    async def timeout(self, name: str) -> float:
        context: Any = SimpleNamespace(pid=1)
        found = await self.system.lookup(ROOT, name.encode(), context)
        return found.entry_timeout


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Doubted]:
    found = Doubted(tmp_path)
    yield found
    found.state.close()


async def test_what_is_known_is_answered_and_asked_for_again(mounted: Doubted) -> None:
    """Nobody waits for the network, the kernel does not keep it, and the directory is listed."""
    mounted.state.born("a")
    assert await mounted.timeout("a") == TIMEOUT_SECONDS
    assert mounted.doubts == []
    await mounted.state.merge.reset("r", 7, None)
    assert await mounted.timeout("a") == 0
    assert mounted.doubts == [ROOT]
    mounted.state.list_directory(ROOT, [("a", mounted.state.record(rev=3))], 7)
    assert await mounted.timeout("a") == TIMEOUT_SECONDS
    assert mounted.doubts == [ROOT]
