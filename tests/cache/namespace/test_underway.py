"""The feed's news of directories that are being listed: kept for those, up to a bound."""

from __future__ import annotations

import pytest

from cache.namespace import underway
from cache.namespace.underway import Underway
from remote.protocol.messages import EntryRecord, FileRecord


def record(id: str, rev: int) -> FileRecord:
    return FileRecord(id=id, kind="file", mode=0o644, mtime_ns=0, ctime_ns=0, rev=rev)


def entry(name: str, file: str | None, rev: int) -> EntryRecord:
    return EntryRecord(parent="d", name=name, file=file, rev=rev)


def test_a_name_is_kept_for_its_directory_alone_and_a_file_for_all() -> None:
    under_way = Underway()
    one, other = under_way.begin(1), under_way.begin(2)
    assert under_way.note(1, entry("a", "f", 5), {"f": record("f", 5)})
    assert not under_way.note(3, entry("b", "g", 6), {})
    under_way.note_file(record("h", 7))
    assert [item.name for item in one.entries] == ["a"]
    assert one.files.keys() == {"f", "h"}
    assert other.entries == []
    assert other.files.keys() == {"h"}


def test_of_a_file_the_newest_record_is_kept() -> None:
    under_way = Underway()
    meanwhile = under_way.begin(1)
    for rev in (3, 5, 4):
        under_way.note_file(record("f", rev))
    assert meanwhile.files["f"].rev == 5


def test_an_end_ends_the_listing_that_it_is_of_and_no_later_one() -> None:
    under_way = Underway()
    first = under_way.begin(1)
    second = under_way.begin(1)
    under_way.end(1, first)
    assert under_way.note(1, entry("a", None, 1), {})
    assert len(second.entries) == 1
    under_way.end(1, second)
    assert not under_way.note(1, entry("a", None, 2), {})
    assert len(under_way) == 0


def test_of_more_than_the_bound_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underway, "MAX_MEANWHILE", 2)
    under_way = Underway()
    meanwhile = under_way.begin(1)
    for number in range(4):
        under_way.note(1, entry(str(number), None, number), {})
        assert meanwhile.is_incomplete == (number >= 2)
    assert meanwhile.entries == []


def test_what_the_feed_cannot_tell_is_known_of_no_listing() -> None:
    under_way = Underway()
    both = [under_way.begin(1), under_way.begin(2)]
    under_way.note(1, entry("a", None, 1), {})
    under_way.forget()
    assert all(item.is_incomplete and not item.entries for item in both)
