"""Names on two devices: every one that is UTF-8, as long and as deep as they come."""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.conftest import Pair
from tests.system.harness import run, wait_until

DEPTH = int(os.environ.get("NEARLINE_DEPTH", "200"))
EXAMPLES = int(os.environ.get("NEARLINE_NAME_EXAMPLES", "5"))
LONGEST = ["n" * 255, "ü" * 127 + "n", "日" * 85, "😀" * 63 + "abc"]
ODD = [
    " ", " lead", "trail ", "dot.", "...", "-rf", "~", "*", "?", "a\\b", "a:b", 'a"b', "a|b", "%41",
    "new\nline", "tab\t", "\x01", "\x7f", "\x1b[31mred", "\u202egnp.exe", "\ufeffbom", "\ufffe",
    "\uffff", "\U0010ffff", "e\u0301", "\u00e9", "ﬁ", "fi", "ß", "ẞ", "SS", "ss", "İ", "i", "I",
    "case", "Case", "CASE", "שלום", "👩\u200d👩\u200d👧", "con", "nul.txt", "NAME@@",
    "Shared", "x (conflicted copy, host 2026-11-22).txt", "x (restored)", "recovered 1",
]  # fmt: skip
NOT_UTF8 = [b"\xff", b"latin-\xe9", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]


@contextlib.contextmanager
def fails_with(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match="Errno") as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def both(pair: Pair, name: str) -> tuple[Path, Path]:
    (pair.a.at / name).mkdir()
    return pair.a.at / name, pair.b.sees(name)


def arrive(pair: Pair, there: Path, names: set[str]) -> None:
    """Every name, with its own bytes, is listed and found on the other device."""
    pair.a.flush()
    wait_until(lambda: set(os.listdir(there)) == names, "the names on b")
    for name in names:
        assert (there / name).read_bytes() == name.encode()


def test_odd_and_long_names_are_different_files_on_both_devices(pair: Pair) -> None:
    here, there = both(pair, "odd")
    names = {*ODD, *LONGEST}
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) < len(names)
    for name in names:
        (here / name).write_bytes(name.encode())
    assert set(os.listdir(here)) == names
    arrive(pair, there, names)
    for name in names:
        (there / name).unlink()
    wait_until(lambda: os.listdir(here) == [], "nothing on a")


def test_every_utf8_name_travels(pair: Pair) -> None:
    here, there = both(pair, "any")
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
    names = st.text(letters, min_size=1, max_size=60).filter(
        lambda name: name not in (".", "..") and len(name.encode()) <= 255
    )

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.sets(names, min_size=5, max_size=40))
    def travel(some: set[str]) -> None:
        for name in some:
            (here / name).write_bytes(name.encode())
        arrive(pair, there, some)
        for name in some:
            (here / name).unlink()

    travel()


def test_what_is_not_utf8_is_refused_wherever_a_name_is_given(pair: Pair) -> None:
    here, _ = both(pair, "bytes")
    (here / "file").write_text("x")
    (here / "dir").mkdir()
    top, file, directory = (os.fsencode(path) for path in (here, here / "file", here / "dir"))
    for name in NOT_UTF8:
        bad = top + b"/" + name
        for call in (
            lambda bad: os.open(bad, os.O_CREAT | os.O_WRONLY),
            lambda bad: os.open(bad, os.O_RDONLY),
            os.mkdir,
            os.mknod,
            os.mkfifo,
            os.stat,
            os.lstat,
            os.readlink,
            os.unlink,
            os.rmdir,
            lambda bad: os.symlink(b"target", bad),
            lambda bad: os.link(file, bad),
            lambda bad: os.rename(file, bad),
            lambda bad: os.rename(bad, top + b"/good"),
            lambda bad: os.rename(directory, bad),
        ):
            with fails_with(errno.EILSEQ):
                call(bad)
        with fails_with(errno.EILSEQ):
            os.symlink(name, top + b"/link")
    assert sorted(os.listdir(here)) == ["dir", "file"]


def test_a_name_has_255_bytes_and_a_target_4095(pair: Pair) -> None:
    here, there = both(pair, "long")
    for name in (*(name + "x" for name in LONGEST), "n" * 4000):
        for call in (Path.mkdir, Path.write_text, Path.lstat, Path.unlink, Path.rmdir):
            with fails_with(errno.ENAMETOOLONG):
                call(here / name, *(["x"] if call is Path.write_text else []))
        with fails_with(errno.ENAMETOOLONG):
            (here / name).symlink_to("x")
    (here / "file").write_text("x")
    with fails_with(errno.ENAMETOOLONG):
        os.link(here / "file", here / ("n" * 256))
    with fails_with(errno.ENAMETOOLONG):
        (here / "file").rename(here / ("n" * 256))
    (here / "file").rename(here / LONGEST[1])
    for target in ("t" * 4095, "/" + "日" * 1364):
        (here / str(len(target))).symlink_to(target)
    with fails_with(errno.ENAMETOOLONG):
        (here / "longer").symlink_to("t" * 4096)
    pair.a.flush()
    assert os.readlink(pair.b.sees("long/4095")) == "t" * 4095
    assert os.readlink(there / "1365") == "/" + "日" * 1364
    assert (there / LONGEST[1]).read_text() == "x"


def test_shared_is_taken_at_the_top_and_nowhere_else(pair: Pair) -> None:
    with fails_with(errno.EPERM):
        (pair.a.at / "Shared").mkdir()
    (pair.a.at / "shared").mkdir()
    pair.b.sees("shared")


def test_directories_may_be_deeper_than_any_path_is_long(pair: Pair) -> None:
    """Made, seen on the other device, moved, and removed through `..` and relative names."""
    here, there = both(pair, "deep")
    name = "level"
    descend(here, name, make=True)
    pair.a.flush()
    assert descend(there, name) == DEPTH
    (here / "moved").mkdir()
    (here / name).rename(here / "moved" / name)
    with fails_with(errno.EINVAL):
        run_inside(here / "moved" / name, f"{name}/{name}", here / "moved")
    pair.a.flush()
    wait_until(lambda: (there / "moved" / name).exists(), "the move on b")
    assert descend(there / "moved", name) == DEPTH
    run("rm", "-r", there / "moved")
    wait_until(lambda: os.listdir(here) == [], "nothing on a")
    pair.b.flush()
    pair.site.cli("trash", "list", pair.b.at)


def test_a_path_that_would_be_longer_than_64_kib_is_refused_at_the_call(pair: Pair) -> None:
    top, name = pair.a.at / "long path", "n" * 255
    top.mkdir()
    at, levels = os.open(top, os.O_RDONLY), 0
    with fails_with(errno.ENAMETOOLONG):
        while levels < 300:
            os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at, levels = below, levels + 1
    os.mkdir("s" * 100, dir_fd=at)  # what fits still does
    os.close(at)
    assert levels == (65536 - len("/long path")) // 256
    run("rm", "-r", top)


def descend(top: Path, name: str, *, make: bool = False) -> int:
    """Go down as deep as it goes, and return the depth; the deepest directory has a file."""
    depth, at = 0, os.open(top, os.O_RDONLY)
    try:
        while depth < DEPTH if make else name in os.listdir(at):
            if make:
                os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at, depth = below, depth + 1
        if make:
            os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        assert os.listdir(at) == ["bottom"]
    finally:
        os.close(at)
    return depth


def run_inside(directory: Path, into: str, moved: Path) -> None:
    """Move a directory into what is below it."""
    os.rename(moved, directory / into / "x")


def test_a_deep_tree_is_shared_in_one_piece_with_tar(pair: Pair, tmp_path: Path) -> None:
    """Paths of nearly 4,096 bytes, as programs use them."""
    here, there = both(pair, "path")
    part = "p" * 200
    levels = (4095 - len(os.fsencode(here))) // (len(part) + 1)
    deepest = here.joinpath(*[part] * levels)
    deepest.mkdir(parents=True)
    with fails_with(errno.ENAMETOOLONG):
        (deepest / part).mkdir()
    (deepest / "f").write_text("at the end")
    pair.a.flush()
    same = there.joinpath(*[part] * levels, "f")
    assert same.read_text() == "at the end"
    run("tar", "-C", there, "-cf", tmp_path / "deep.tar", ".")
    run("tar", "-df", tmp_path / "deep.tar", "-C", here)
