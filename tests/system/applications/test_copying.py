"""Programs that copy trees: rsync, tar, cp, zip, Python's shutil, into the mount and out of it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.system.applications.trees import LONG_AGO_NS, arrives, same_tree, tree
from tests.system.conftest import Pair
from tests.system.harness import noise, run

MIB = 1 << 20
MANY = int(os.environ.get("NEARLINE_APPLICATION_FILES", "600"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on the local disk with one of everything that copying programs care about."""
    top = tmp_path_factory.mktemp("copying") / "source"
    for number in range(28):
        directory = top / f"d{number % 7}" / "deeper"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file {number}").write_bytes(noise(number * 300, number))
    (top / "empty").mkdir()
    (top / "large").write_bytes(noise(3 * MIB, 1))
    (top / "name with ünïcödé 🌍\nand a line").write_text("x")
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o4751)
    (top / "secret").write_text("s")
    (top / "secret").chmod(0o400)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    os.link(top / "large", top / "d1" / "large again")
    os.link(top / "large", top / "d2" / "and again")
    (top / "link").symlink_to("d1/deeper")
    (top / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "large", "user.mime_type", b"application/octet-stream")
    os.setxattr(top / "d1", "user.colour", b"\x00\x01\xff")
    with (top / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"in the middle")
        file.truncate(12 * MIB)
    if os.geteuid() == 0:
        os.chown(top / "secret", 1234, 5678)
        os.lchown(top / "link", 1234, 5678)
    for number, path in enumerate([*sorted(top.rglob("*"), reverse=True), top]):
        os.utime(path, ns=(0, 10**18 + number * 1_000_003), follow_symlinks=False)
    return top


def rsync(*words: str | Path) -> list[str]:
    """The changes that it made, itemised."""
    done = run("rsync", "-aHAX", "--itemize-changes", *words)
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", [[], ["--inplace"], ["--sparse"]], ids=["", "inplace", "sparse"])
def test_rsync_goes_both_ways_and_a_second_run_has_nothing_to_do(
    pair: Pair, source: Path, tmp_path: Path, how: list[str]
) -> None:
    name = f"rsync{''.join(how)}"
    copied = pair.a.at / name
    assert rsync(*how, f"{source}/", f"{copied}/")
    same_tree(source, copied)
    assert rsync(*how, f"{source}/", f"{copied}/") == []
    theirs = arrives(pair, name)
    assert rsync(*how, f"{source}/", f"{theirs}/") == []
    back = tmp_path / "back"
    assert rsync(*how, f"{theirs}/", f"{back}/")
    same_tree(source, back)
    assert rsync(*how, f"{theirs}/", f"{back}/") == []


@pytest.mark.parametrize("how", [[], ["--inplace"]], ids=["", "inplace"])
def test_rsync_updates_and_deletes_what_changed(
    pair: Pair, source: Path, tmp_path: Path, how: list[str]
) -> None:
    """With its delta transfer too (`--no-whole-file`), which reads the old file and writes the
    new."""
    changing = tmp_path / "changing"
    rsync(f"{source}/", f"{changing}/")
    name = f"update{''.join(how)}"
    copied = pair.a.at / name
    rsync(f"{changing}/", f"{copied}/")
    arrives(pair, name)
    with (changing / "large").open("r+b") as file:
        file.seek(MIB)
        file.write(b"changed in the middle")
        file.truncate(2 * MIB)
    (changing / "d3" / "deeper" / "file 10").rename(changing / "moved")
    shutil.rmtree(changing / "d4")
    (changing / "link").unlink()
    (changing / "link").mkdir()  # another type under the same name
    (changing / "program").chmod(0o755)
    # rsync leaves times of the same second as they are, and of those each device has its own.
    for directory in (changing, *(path for path in changing.rglob("*") if path.is_dir())):
        os.utime(directory, ns=(0, LONG_AGO_NS - 10**9))
    done = rsync(*how, "--no-whole-file", "--delete", f"{changing}/", f"{copied}/")
    assert "*deleting" in " ".join(done)
    same_tree(changing, copied)
    theirs = arrives(pair, name)
    assert rsync(*how, "--delete", f"{changing}/", f"{theirs}/") == []


def test_rsync_between_two_directories_of_the_mount(pair: Pair, source: Path) -> None:
    rsync(f"{source}/", f"{pair.a.at / 'from'}/")
    rsync(f"{pair.a.at / 'from'}/", f"{pair.a.at / 'to'}/")
    assert rsync(f"{pair.a.at / 'from'}/", f"{pair.a.at / 'to'}/") == []
    same_tree(source, arrives(pair, "to"))


def test_tar_keeps_holes_links_and_attributes(pair: Pair, source: Path, tmp_path: Path) -> None:
    """Out of a local directory into the mount, and on the other device out of it again."""
    kept = ["--sparse", "--xattrs", "--numeric-owner", "--format=posix"]
    copied = pair.a.at / "tar"
    copied.mkdir()
    run("tar", *kept, "-C", source, "-cf", pair.a.at / "tar.tar", ".")
    run("tar", *kept, "-C", copied, "-xpf", pair.a.at / "tar.tar")
    same_tree(source, copied)
    theirs = arrives(pair, "tar")
    again = tmp_path / "again.tar"
    run("tar", *kept, "-C", theirs, "-cf", again, ".")
    back = tmp_path / "back"
    back.mkdir()
    run("tar", *kept, "-C", back, "-xpf", again)
    same_tree(source, back)
    run("tar", "-C", theirs, "--compare", "-f", pair.b.at / "tar.tar")


@pytest.mark.parametrize("how", ["auto", "never"])
def test_cp_keeps_everything(pair: Pair, source: Path, tmp_path: Path, how: str) -> None:
    """In, within and out; `--reflink=auto` is what cp does by itself: it tries to clone first."""
    name = f"cp-{how}"
    (pair.a.at / name).mkdir()
    cp = ["cp", "-a", f"--reflink={how}"]
    run(*cp, source, pair.a.at / name / "in")
    run(*cp, pair.a.at / name / "in", pair.a.at / name / "within")
    theirs = arrives(pair, name)
    run(*cp, theirs / "within", tmp_path / "out")
    for copied in (theirs / "in", theirs / "within", tmp_path / "out"):
        same_tree(source, copied)


def test_a_clone_is_refused_and_a_copy_in_the_kernel_is_right(pair: Pair, tmp_path: Path) -> None:
    """FICLONE is not supported, and says so; copy_file_range is the kernel's, at any offset,
    within the mount and from another file system."""
    content = noise(3 * MIB + 77, 5)
    ours, local = pair.a.at / "ranges", tmp_path / "ranges"
    ours.mkdir()
    for where in (ours / "from", local):
        where.write_bytes(content)
    assert run("cp", "--reflink=always", ours / "from", ours / "no", check=False).returncode == 1
    (ours / "no").unlink(missing_ok=True)
    expected = bytearray(content)
    with (ours / "from").open("rb") as source, (ours / "to").open("w+b") as to:
        copy_range(source.fileno(), to.fileno(), len(content), 0, 0)
        copy_range(source.fileno(), to.fileno(), 100_000, 12_345, 2 * MIB + 1)
        expected[2 * MIB + 1 : 2 * MIB + 100_001] = content[12_345:112_345]
        with local.open("rb") as other:
            copy_range(other.fileno(), to.fileno(), 5000, 0, len(content))
        expected += content[:5000]
    assert (ours / "to").read_bytes() == expected
    theirs = arrives(pair, "ranges")
    assert (theirs / "to").read_bytes() == expected


def copy_range(source: int, to: int, count: int, at: int, there: int) -> None:
    """As programs do it: where the kernel cannot copy between the two, by reading and writing."""
    while count:
        try:
            done = os.copy_file_range(source, to, count, at, there)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            done = os.pwrite(to, os.pread(source, count, at), there)
        assert done
        count, at, there = count - done, at + done, there + done


def test_mv_goes_in_within_and_out(pair: Pair, source: Path, tmp_path: Path) -> None:
    """From another file system mv copies and deletes; within the mount it renames."""
    moving = tmp_path / "moving"
    shutil.copytree(source, moving, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    before = {name: entry.digest for name, entry in tree(moving).items()}
    (pair.a.at / "mv").mkdir()
    run("mv", moving, pair.a.at / "mv" / "in")
    run("mv", pair.a.at / "mv" / "in", pair.a.at / "mv" / "renamed")
    theirs = arrives(pair, "mv") / "renamed"
    run("mv", theirs, tmp_path / "out")
    assert {name: entry.digest for name, entry in tree(tmp_path / "out").items()} == before
    pair.b.flush()
    pair.a.misses("mv/renamed")


def test_zip_archives_are_made_changed_and_unpacked(pair: Pair, source: Path) -> None:
    ours = pair.a.at / "zip"
    ours.mkdir()
    wanted = ["d1", "d2", "large", "program", "link"]
    for name in wanted:
        run("cp", "-a", source / name, ours)
    run("zip", "-qry", "archive.zip", *wanted, cwd=ours)
    (ours / "program").write_text("#!/bin/sh\necho changed\n")
    run("zip", "-qu", "archive.zip", "program", cwd=ours)
    run("zip", "-qd", "archive.zip", "large", cwd=ours)
    run("unzip", "-q", "archive.zip", "-d", "out", cwd=ours)
    theirs = arrives(pair, "zip")
    run("unzip", "-tq", theirs / "archive.zip")
    assert not (theirs / "out" / "large").exists()
    for name in ("d1", "d2", "program"):
        run("diff", "-r", theirs / name, theirs / "out" / name)
    assert (theirs / "out" / "link").readlink() == (source / "link").readlink()


def test_many_small_files_are_copied_and_removed(pair: Pair, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for number in range(MANY):
        path = many / f"{number % 20}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number)
    run("cp", "-a", many, pair.a.at / "many", seconds=100)
    run("diff", "-r", many, pair.a.at / "many")
    theirs = arrives(pair, "many", contents=False)
    shutil.copytree(theirs / "7", pair.b.at / "many again")
    run("diff", "-r", many / "7", pair.b.at / "many again")
    run("rm", "-rf", pair.b.at / "many")
    shutil.rmtree(pair.b.at / "many again")
    pair.b.flush()
    pair.a.misses("many")
    pair.a.misses("many again")
