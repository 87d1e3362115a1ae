"""A person's work on files on one device, as the other device shows it."""

from __future__ import annotations

import errno
import filecmp
import os
import stat
from pathlib import Path

import pytest

from remote.protocol.messages import VersionInfo
from tests.system.conftest import Pair
from tests.system.harness import noise, run, wait_until


def tree_of(pair: Pair, name: str) -> tuple[Path, Path]:
    """A directory of a test's own, made on `a` and already seen on `b`."""
    (pair.a.at / name).mkdir()
    return pair.a.at / name, pair.b.sees(name)


def test_edits_travel_both_ways(pair: Pair) -> None:
    a, b = tree_of(pair, "edits")
    (a / "note").write_text("one")
    pair.b.sees("edits/note", b"one")
    with (b / "note").open("a") as note:
        note.write(" two")
    pair.a.sees("edits/note", b"one two")
    with (a / "note").open("r+b") as note:
        note.seek(1)
        note.write(b"NE")
        note.truncate(4)
    pair.b.sees("edits/note", b"oNE ")
    (b / "note").write_text("")
    pair.a.sees("edits/note", b"")


def test_an_open_handle_keeps_reading_the_version_it_opened(pair: Pair) -> None:
    a, b = tree_of(pair, "handle")
    old, new = noise(600_000, 1), noise(700_000, 2)
    (a / "file").write_bytes(old)
    pair.b.sees("handle/file", old)
    with (b / "file").open("rb") as reading:
        assert reading.read(1000) == old[:1000]
        (a / "file").write_bytes(new)
        pair.b.sees("handle/file", new)
        assert reading.read() == old[1000:]


def test_renames_and_deletes_are_seen(pair: Pair) -> None:
    a, b = tree_of(pair, "moves")
    (a / "inner").mkdir()
    (a / "inner" / "file").write_text("kept")
    pair.b.sees("moves/inner/file", b"kept")
    (a / "inner").rename(a / "outer")
    pair.b.sees("moves/outer/file", b"kept")
    pair.b.misses("moves/inner")
    (b / "outer" / "file").rename(b / "top")
    pair.a.sees("moves/top", b"kept")
    assert os.listdir(a / "outer") == []
    (a / "outer").rmdir()
    (a / "top").unlink()
    pair.b.misses("moves/outer")
    pair.b.misses("moves/top")
    assert os.listdir(b) == []


def test_metadata_is_seen(pair: Pair) -> None:
    a, b = tree_of(pair, "metadata")
    file = a / "file"
    file.write_text("x")
    file.chmod(0o741)
    os.chown(file, 1234, 4321)
    os.utime(file, ns=(5, 1_234_567_890_123_456_789))
    os.setxattr(file, "user.colour", b"blue\0green")
    os.setxattr(file, "user.gone", b"1")
    os.removexattr(file, "user.gone")
    (a / "link").symlink_to("no/such/ünïcode")
    os.link(file, a / "twin")
    (a / "dir").mkdir(mode=0o705)
    os.mkfifo(a / "fifo")
    pair.a.flush()
    pair.b.sees("metadata/fifo")
    seen = (b / "file").stat()
    assert stat.S_IMODE(seen.st_mode) == 0o741
    assert (seen.st_uid, seen.st_gid) == (1234, 4321)
    assert seen.st_mtime_ns == 1_234_567_890_123_456_789
    assert os.getxattr(b / "file", "user.colour") == b"blue\0green"
    assert os.listxattr(b / "file") == ["user.colour"]
    assert os.readlink(b / "link") == "no/such/ünïcode"
    assert seen.st_nlink == 2
    assert (b / "twin").stat().st_ino == seen.st_ino
    assert stat.S_IMODE((b / "dir").stat().st_mode) == 0o705
    assert stat.S_ISFIFO((b / "fifo").stat().st_mode)


def test_changed_metadata_reaches_who_knows_the_file(pair: Pair) -> None:
    a, b = tree_of(pair, "changed")
    (a / "file").write_text("x")
    pair.b.sees("changed/file", b"x")
    (a / "file").chmod(0o600)
    wait_until(lambda: stat.S_IMODE((b / "file").stat().st_mode) == 0o600, "the new mode on b")
    os.utime(a / "file", ns=(7, 7_000_000_007))
    wait_until(lambda: (b / "file").stat().st_mtime_ns == 7_000_000_007, "the new mtime on b")
    os.setxattr(a / "file", "user.a", b"1")
    wait_until(lambda: os.listxattr(b / "file") == ["user.a"], "the attribute on b")
    assert (b / "file").read_bytes() == b"x"


def test_there_is_no_time_of_birth(pair: Pair) -> None:
    a, b = tree_of(pair, "birth")
    (a / "file").write_text("x")
    pair.b.sees("birth/file", b"x")
    assert [run("stat", "-c", "%w", at / "file").stdout.strip() for at in (a, b)] == ["-", "-"]


def test_a_write_through_one_hard_link_is_seen_through_the_other(pair: Pair) -> None:
    a, b = tree_of(pair, "links")
    (a / "one").write_text("first")
    os.link(a / "one", a / "two")
    pair.b.sees("links/two", b"first")
    (b / "two").write_text("second")
    pair.a.sees("links/one", b"second")
    (a / "one").unlink()
    pair.b.misses("links/one")
    assert (b / "two").read_text() == "second"
    wait_until(lambda: (b / "two").stat().st_nlink == 1, "one link left")


def versions(pair: Pair, path: Path, name: str) -> tuple[str, list[VersionInfo]]:
    """The file id of entry `name` in the directory `path` of the root, and its versions."""

    async def ask(api):  # type: ignore[no-untyped-def]  # ApiClient, by Site.ask
        root = (await api.me()).root
        for part in (path.name, name):
            page = await api.children(root)
            root = next(c.file.id for c in page.children if c.entry.name == part)
        return root, (await api.versions(root)).versions

    return pair.site.ask(ask)  # type: ignore[no-any-return]


def test_saving_by_rename_keeps_identity_and_history(pair: Pair) -> None:
    """Editors write a temporary file and rename it over the old one."""
    a, _b = tree_of(pair, "saved")
    (a / "letter").write_text("draft")
    pair.a.flush()
    before, first = versions(pair, a, "letter")
    (a / ".letter.swp").write_text("final")
    (a / ".letter.swp").rename(a / "letter")
    pair.a.flush()
    after, both = versions(pair, a, "letter")
    assert after == before
    assert len(first) == 1
    assert len(both) == 2
    assert {info.size for info in both} == {5}
    pair.b.sees("saved/letter", b"final")
    pair.b.misses("saved/.letter.swp")
    assert (a / "letter").read_text() == "final"


def test_an_unlinked_file_lives_while_it_is_open(pair: Pair) -> None:
    a, b = tree_of(pair, "unlinked")
    content = noise(2_000_000, 4)
    (a / "uploaded").write_bytes(content)
    pair.b.sees("unlinked/uploaded", content)
    for name in ("uploaded", "new"):
        with (a / name).open("w+b" if name == "new" else "r+b") as file:
            if name == "new":
                file.write(content)
                file.flush()
            (a / name).unlink()
            assert not (a / name).exists()
            file.seek(1_000_000)
            assert file.read(100) == content[1_000_000:1_000_100]
            file.seek(0, os.SEEK_END)
            file.write(b"more")
            file.flush()
            assert os.fstat(file.fileno()).st_size == len(content) + 4
            assert os.fstat(file.fileno()).st_nlink == 0
    pair.a.flush()
    pair.b.misses("unlinked/uploaded")
    assert os.listdir(a) == os.listdir(b) == []


def test_a_file_deleted_elsewhere_is_still_read_by_who_has_it_open(pair: Pair) -> None:
    a, b = tree_of(pair, "deleted")
    content = noise(400_000, 5)
    (a / "file").write_bytes(content)
    pair.b.sees("deleted/file", content)
    with (b / "file").open("rb") as reading:
        (a / "file").unlink()
        pair.b.misses("deleted/file")
        assert reading.read() == content


def test_exclusive_creation_append_and_errors(pair: Pair) -> None:
    a, _b = tree_of(pair, "errors")
    (a / "file").write_text("1")
    with pytest.raises(FileExistsError):
        os.open(a / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(NotADirectoryError):
        (a / "file" / "below").stat()
    (a / "dir").mkdir()
    (a / "dir" / "child").write_text("")
    with pytest.raises(OSError, match="not empty"):
        (a / "dir").rmdir()
    for name, code in ((b"\xff", errno.EILSEQ), (b"n" * 256, errno.ENAMETOOLONG)):
        with pytest.raises(OSError, match=r"name|character") as refused:
            os.mkdir(os.fsencode(a) + b"/" + name)
        assert refused.value.errno == code
    (a / ("ö" * 127)).write_text("a long name")
    pair.b.sees("errors/" + "ö" * 127, b"a long name")


def test_status_attribute_tells_where_a_file_is(pair: Pair) -> None:
    a, b = tree_of(pair, "where")
    content = noise(1 << 20, 6)

    def state(path: Path) -> bytes:
        return os.getxattr(path, "user.nearline.status")

    with (a / "file").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        assert state(a / "file") in (b"pending", b"uploading")
    pair.a.flush()
    assert state(a / "file") == b"synced"
    pair.b.sees("where/file")
    wait_until(lambda: (b / "file").stat().st_size == len(content), "the size on b")
    assert state(b / "file") == b"online-only"
    assert (b / "file").read_bytes() == content
    # What was read is put into the cache behind the reader.
    wait_until(lambda: state(b / "file") == b"synced", "the file is in b's cache")
    assert "user.nearline.status" not in os.listxattr(a / "file")
    with pytest.raises(PermissionError):
        os.setxattr(a / "file", "user.nearline.status", b"synced")


def test_statfs_is_of_the_drive(pair: Pair) -> None:
    found = os.statvfs(pair.a.at)
    assert found.f_namemax == 255
    assert 0 < found.f_bavail <= found.f_blocks
    run("df", pair.a.at, seconds=10)


def test_a_deep_directory_is_removed_from_the_other_device(pair: Pair) -> None:
    a, b = tree_of(pair, "deep")
    for number in range(300):
        (a / f"dir{number % 10}" / f"sub{number % 30}").mkdir(parents=True, exist_ok=True)
        (a / f"dir{number % 10}" / f"sub{number % 30}" / f"file{number}").touch()
    pair.a.flush()
    wait_until(lambda: sum(p.is_file() for p in b.rglob("*")) == 300, "300 files on b")
    run("rm", "-r", b)
    pair.a.misses("deep")


def test_two_devices_write_the_same_file_and_the_last_one_stands(pair: Pair) -> None:
    a, b = tree_of(pair, "both")
    (a / "file").write_text("start")
    pair.b.sees("both/file", b"start")
    (a / "file").write_text("from a")
    (b / "file").write_text("from b!")
    pair.flush()
    wait_until(lambda: (a / "file").read_bytes() == (b / "file").read_bytes(), "both devices agree")
    _, found = versions(pair, a, "file")
    assert {info.size for info in found} >= {5, 6, 7}


def test_two_devices_make_the_same_name_and_both_files_are_kept(pair: Pair) -> None:
    a, b = tree_of(pair, "clash")
    (a / "file").write_text("from a")
    (b / "file").write_text("from b!")
    pair.flush()
    wait_until(lambda: sorted(os.listdir(a)) == sorted(os.listdir(b)), "both devices agree")
    contents = sorted((a / name).read_text() for name in os.listdir(a))
    assert contents == ["from a", "from b!"]
    match, mismatch, errors = filecmp.cmpfiles(a, b, os.listdir(a), shallow=False)
    assert (len(match), mismatch, errors) == (2, [], [])
