"""NAME@@ while something else happens: between the question to the server and its answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from cache.metadata.tree import HISTORY, ROOT
from mount.session.old_versions import Versions
from remote.protocol.errors import Unreachable
from remote.protocol.ids import FileId
from remote.protocol.messages import FileRecord, VersionInfo, VersionsPage
from tests.cache.namespace.test_shares import at, folder, root, share
from tests.cache.state import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path)
    yield opened
    opened.close()


def version(of: FileRecord) -> VersionInfo:
    return VersionInfo(
        id=of.version or "",
        file=of.id,
        size=3,
        mtime_ns=1,
        created_ns=1,
        device="bob's",
        status="uploaded",
        current=True,
    )


async def test_a_share_that_ends_while_the_server_is_asked_shows_nothing(state: State) -> None:
    proj = folder(state)
    share(state, root(proj, "proj"))
    inside = state.record(size=3)
    state.list_directory(at(state, "Shared/bob/proj").ino, [("inside", inside)], 5)
    parent = at(state, "Shared/bob/proj").ino
    state.in_use.add(at(state, "Shared/bob/proj/inside").ino)

    async def pages(file: FileId, cursor: str | None) -> VersionsPage:
        share(state)
        return VersionsPage(versions=[version(inside)])

    with pytest.raises(FileNotFoundError):
        await Versions(state.db, state.tree, pages).find(parent, "inside@@")
    assert state.db.all("SELECT 1 FROM node WHERE drive = ?", HISTORY) == []


async def test_what_was_seen_before_is_shown_without_the_server(state: State) -> None:
    record = state.born("file", size=3)
    answers = [VersionsPage(versions=[version(record)])]

    async def pages(file: FileId, cursor: str | None) -> VersionsPage:
        if not answers:
            raise Unreachable("offline")
        return answers.pop()

    versions = Versions(state.db, state.tree, pages)
    first = await versions.find(ROOT, "file@@")
    again = await versions.find(ROOT, "file@@")
    assert first is not None
    assert again is not None
    assert first.ino == again.ino
    assert len(state.listing(again.ino)) == 1


async def test_a_new_version_that_comes_while_the_server_is_asked_hides_nothing(
    state: State,
) -> None:
    """The file is a new inode then, and the old one is gone: nobody has it open."""
    record = state.born("file", size=3)

    async def pages(file: FileId, cursor: str | None) -> VersionsPage:
        newer = structs.replace(record, version="9" * 32, size=7, rev=2)
        state.remote(2, [newer], [])
        state.collector.collect()
        return VersionsPage(versions=[version(record)])

    shown = await Versions(state.db, state.tree, pages).find(ROOT, "file@@")
    assert shown is not None
    assert len(state.listing(shown.ino)) == 1
