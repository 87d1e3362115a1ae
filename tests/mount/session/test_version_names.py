"""mount/session/version_names.py: what versions are called, and which one is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount.session.version_names import (
    NoSuchVersion,
    before_current,
    by_id,
    by_second,
    named_in,
    newest_first,
    restored_name,
    version_name,
    version_names,
)
from remote.protocol.messages import VersionInfo

NOON = 1_795_359_845  # 2026-11-22 15:04:05 UTC
NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda name: len(name.encode()) <= 255 and name not in (".", "..")
)


def version(tail: str, second: int = NOON, **more: object) -> VersionInfo:
    """A version whose id ends with `tail`; the ids of one minute begin alike."""
    fields: dict[str, object] = {
        "id": "019ab3c4d5e67000".ljust(32 - len(tail), "8") + tail,
        "file": "f" * 32,
        "size": 1,
        "mtime_ns": 0,
        "created_ns": second * 1_000_000_000 + 999_999_999,
        "device": "laptop",
        "status": "uploaded",
    }
    return VersionInfo(**(fields | more))  # type: ignore[arg-type]  # checked where it is used


def test_a_version_is_named_by_time_id_and_extension() -> None:
    one = version("1a2b3c4d")
    assert version_name("letter.txt", one) == "2026-11-22T15.04.05Z-1a2b3c4d.txt"
    assert version_name("a.tar.gz", one) == "2026-11-22T15.04.05Z-1a2b3c4d.gz"
    for bare in ("Makefile", ".bashrc", "trailing.", "..", f"long.{'x' * 60}"):
        assert version_name(bare, one) == "2026-11-22T15.04.05Z-1a2b3c4d"


@given(NAMES)
def test_every_file_has_versions_with_possible_names(name: str) -> None:
    made = version_name(name, version("1a2b3c4d"))
    assert len(made.encode()) <= 255
    assert "/" not in made
    assert "\0" not in made


def test_versions_saved_in_one_second_have_different_names() -> None:
    same_end = version("1a2b3c4d", id="0" * 24 + "1a2b3c4d")
    listed = [version("1a2b3c4d"), version("5e6f7a8b"), same_end]
    named = version_names("letter.txt", listed)
    assert list(named.values()) == listed
    assert f"2026-11-22T15.04.05Z-{same_end.id}.txt" in named


def test_the_path_of_a_version_names_file_and_version() -> None:
    for name in ("letter.txt", "Makefile", "a@@b.c"):
        for called, one in version_names(name, [version("1a2b3c4d")]).items():
            assert named_in(f"dir/{name}@@/{called}") == (f"dir/{name}", one.id[-8:])
    for other in ("letter.txt", "letter.txt@@", "letter.txt@@/x", "a@@/b/2026Z-1a2b3c4d"):
        assert named_in(other) is None


def test_the_one_before_the_current_one() -> None:
    first, second, third = version("a" * 8, 1), version("b" * 8, 2), version("c" * 8, 3)
    third.current = True
    unfinished = version("d" * 8, 9, status="uploading")
    assert newest_first([first, third, unfinished, second]) == [third, second, first]
    assert before_current([first, unfinished, third, second]) is second
    assert before_current([first, second]) is second  # in the trash none is current
    third.current, first.current = False, True
    with pytest.raises(NoSuchVersion, match="no version before"):
        before_current([first, second, third])


def test_a_version_by_its_id() -> None:
    one, other = version("1a2b3c4d"), version("5e6f7a8b")
    both = [one, other]
    assert by_id(both, one.id) is one
    assert by_id(both, "5e6f7a8b") is other
    assert by_id(both, "6f7a8b") is other
    with pytest.raises(NoSuchVersion, match="means 2 versions"):
        by_id(both, "019ab3c4")
    with pytest.raises(NoSuchVersion, match="no version 999999"):
        by_id(both, "999999")
    with pytest.raises(NoSuchVersion, match="too short"):
        by_id(both, "7a8b")


def test_a_version_by_its_time() -> None:
    versions = [version("1a2b3c4d", 10), version("5e6f7a8b", 11), version("99999999", 11)]
    assert by_second(versions, [10, 3610], "then") is versions[0]
    with pytest.raises(NoSuchVersion, match="then means 2 versions"):
        by_second(versions, [11], "then")
    with pytest.raises(NoSuchVersion, match="no version then"):
        by_second(versions, [12], "then")


@given(NAMES, st.integers(1, 1000))
def test_a_restored_name_is_possible_and_another_one(name: str, number: int) -> None:
    made = restored_name(name, number)
    assert made != name
    assert len(made.encode()) <= 255
    assert "/" not in made


def test_a_restored_name_keeps_the_extension() -> None:
    assert restored_name("letter.txt", 1) == "letter (restored).txt"
    assert restored_name("letter.txt", 2) == "letter (restored 2).txt"
    assert restored_name("Projects", 1) == "Projects (restored)"
