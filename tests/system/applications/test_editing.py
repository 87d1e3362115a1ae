"""Editors and everything else that writes a text again and again: how they save, and that the other
device has each save, and nothing else.

Editors that are not installed everywhere are played: the same system calls in the same order.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.applications.trees import arrives
from tests.system.conftest import Pair
from tests.system.harness import run, wait_until
from tests.system.persons import exchange

OLD, NEW = "an old line\nchange me\n", "an old line\nchanged\n"


def fresh(pair: Pair, name: str) -> Path:
    """A text in a directory of its own, with a mode and an attribute, that both devices have."""
    (pair.a.at / name).mkdir()
    text = pair.a.at / name / "thesis.tex"
    text.write_text(OLD)
    text.chmod(0o640)
    os.setxattr(text, "user.author", b"Anna")
    arrives(pair, name)
    return text


def versions(pair: Pair, name: str) -> int:
    return len(os.listdir(pair.a.at / name / "thesis.tex@@"))


def saved(pair: Pair, name: str, *beside: str) -> Path:
    """`b` has the new text, its old mode, and `beside` next to it; the old version is in the
    history. Where the text is on `b`."""
    theirs = arrives(pair, name)
    assert sorted(os.listdir(theirs)) == sorted(["thesis.tex", *beside])
    assert (theirs / "thesis.tex").read_text() == NEW
    assert stat.S_IMODE((theirs / "thesis.tex").stat().st_mode) == 0o640
    return theirs / "thesis.tex"


def test_sed_edits_in_place(pair: Pair) -> None:
    text = fresh(pair, "sed")
    run("sed", "-i", "s/change me/changed/", text)
    saved(pair, "sed")
    assert versions(pair, "sed") == 2
    run("sed", "-i.bak", "1s/old/older/", text)
    theirs = arrives(pair, "sed")
    assert (theirs / "thesis.tex.bak").read_text() == NEW
    assert (theirs / "thesis.tex").read_text() == NEW.replace("old", "older")


@pytest.mark.parametrize("backup", ["yes", "no", "auto"])
def test_vim_saves(pair: Pair, backup: str) -> None:
    """`backupcopy=yes` writes into the file, `no` renames it away and writes another, `auto`
    chooses. A swap file lies beside while it edits, and a backup afterwards."""
    name = f"vim-{backup}"
    text = fresh(pair, name)
    settings = f"set backup fsync swapfile directory=. backupdir=. backupskip= backupcopy={backup}"
    vim = ["vim.tiny", "-N", "-u", "NONE", "-i", "NONE", "-es"]
    for edit in ("%s/change me/changed/", "%s/changed/change me/", "%s/change me/changed/"):
        run(*vim, "-c", settings, "-c", edit, "-c", "wq", text)
    theirs = saved(pair, name, "thesis.tex~")
    assert (theirs.parent / "thesis.tex~").read_text() == OLD
    assert versions(pair, name) >= 2


def emacs(text: Path) -> None:
    """With its lock (a dangling symbolic link), its auto-save file, and the backup by renaming
    that it makes of the first save."""
    lock, auto = text.with_name(f".#{text.name}"), text.with_name(f"#{text.name}#")
    lock.symlink_to("anna@laptop.4711:1795000000")
    assert lock.readlink() == Path("anna@laptop.4711:1795000000")
    auto.write_text(NEW[:-4])
    mode = stat.S_IMODE(text.stat().st_mode)
    text.rename(text.with_name(f"{text.name}~"))
    with os.fdopen(os.open(text, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())
    text.chmod(mode)
    auto.unlink()
    lock.unlink()


def libreoffice(text: Path) -> None:
    """The lock beside the document; the document is written elsewhere and copied over it."""
    lock = text.with_name(f".~lock.{text.name}#")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    os.write(descriptor, b",anna,laptop,22.11.2026 21:00,file:///home/anna/.config;")
    with pytest.raises(FileExistsError):
        os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    temporary = text.with_name("lu471112ab.tmp")
    temporary.write_text(NEW)
    shutil.copymode(text, temporary)
    temporary.rename(text)
    os.close(descriptor)
    lock.unlink()


def glib(text: Path) -> None:
    """gedit and all of GNOME (`g_file_replace`): a temporary file with the old one's mode, fsync, a
    hard link as the backup, rename over."""
    temporary = text.with_name(".goutputstream-X1Y2Z3")
    with temporary.open("x") as file:
        file.write(NEW)
        os.fchmod(file.fileno(), stat.S_IMODE(text.stat().st_mode))
        file.flush()
        os.fsync(file.fileno())
    os.link(text, text.with_name(f"{text.name}~"))
    temporary.rename(text)


def qt(text: Path) -> None:
    """Kate and all of KDE (`QSaveFile`): a nameless temporary file where there are such, else a
    name."""
    with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is what is asserted
        os.open(text.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert refused.value.errno == errno.EOPNOTSUPP  # it then uses a name
    temporary = text.with_name(f"{text.name}.kXcTRa")
    with temporary.open("x") as file:
        file.write(NEW)
        os.fchmod(file.fileno(), stat.S_IMODE(text.stat().st_mode))
        file.flush()
        os.fdatasync(file.fileno())
    temporary.rename(text)


def code(text: Path) -> None:
    """VS Code writes into the file: truncates it, writes, fsyncs."""
    with text.open("r+") as file:
        file.truncate(0)
        file.write(NEW)
        file.flush()
        os.fdatasync(file.fileno())


def word(text: Path) -> None:
    """Word, as it saves on a network drive: an owner file beside it, the new document under another
    name, the old one renamed away, the new one renamed to its place, the old one deleted."""
    owner, new, old = (text.with_name(name) for name in ("~$thesis", "~WRD0001.tmp", "~WRL2.tmp"))
    owner.write_bytes(b"Anna".ljust(162, b" "))
    new.write_text(NEW)
    shutil.copymode(text, new)
    text.rename(old)
    new.rename(text)
    old.unlink()
    owner.unlink()


def swap(text: Path) -> None:
    """Programs that never leave the name without a file: the new document under another name, the
    two exchanged, the old one deleted."""
    new = text.with_name(f".{text.name}.new")
    new.write_text(NEW)
    shutil.copymode(text, new)
    exchange(new, text)
    new.unlink()


@pytest.mark.parametrize(
    ("editor", "beside"),
    [
        (emacs, ["thesis.tex~"]),
        (libreoffice, []),
        (glib, ["thesis.tex~"]),
        (qt, []),
        (code, []),
        (word, []),
        (swap, []),
    ],
)
def test_an_editors_way_of_saving(
    pair: Pair, editor: Callable[[Path], None], beside: list[str]
) -> None:
    name = editor.__name__
    text = fresh(pair, name)
    editor(text)
    theirs = saved(pair, name, *beside)
    for backup in beside:
        assert (theirs.parent / backup).read_text() == OLD


def test_a_document_that_is_typeset_again_and_again(pair: Pair) -> None:
    """The way of LaTeX: many auxiliary files, each written anew in every run and read back in the
    next, the output through a handle that seeks back to patch its beginning."""
    (pair.a.at / "latex").mkdir()
    place = pair.a.at / "latex"
    (place / "thesis.tex").write_text("\\section{One}\n" * 50)
    for turn in range(5):
        for kind in ("aux", "toc", "lof", "lot", "out", "bbl", "blg", "idx", "fls"):
            file = place / f"thesis.{kind}"
            before = file.read_text() if file.exists() else ""
            assert before.count("\n") == (100 * turn if turn else 0)
            file.write_text(f"{kind} {turn}\n" * 100 * (turn + 1))
        with (place / "thesis.pdf").open("wb") as pdf:
            pdf.write(b"%PDF-1.5 0000000000\n")
            for page in range(20 + turn):
                pdf.write(b"page %d of run %d\n" % (page, turn) * 200)
            size = pdf.tell()
            pdf.seek(9)
            pdf.write(b"%010d" % size)
        with (place / "thesis.log").open("a") as log:
            log.write(f"run {turn}\n")
    theirs = arrives(pair, "latex")
    pdf_there = (theirs / "thesis.pdf").read_bytes()
    assert int(pdf_there[9:19]) == len(pdf_there)
    assert (theirs / "thesis.log").read_text() == "".join(f"run {turn}\n" for turn in range(5))


def test_tail_follows_a_file_that_grows_here_and_one_that_grows_there(pair: Pair) -> None:
    """A handle keeps the version it opened, so `tail -f` shows what is written on its own device;
    `tail -F` opens the name again and shows what comes from the other one too."""
    (pair.a.at / "tail").mkdir()
    log = pair.a.at / "tail" / "log"
    log.write_text("first\n")
    pair.a.flush()
    theirs = pair.b.sees("tail/log", b"first\n")
    here = follow("-f", log)
    there = follow("-F", theirs)
    try:
        assert here.stdout is not None
        assert there.stdout is not None
        assert here.stdout.readline() == there.stdout.readline() == "first\n"
        with log.open("a") as file:
            file.write("second\n")
        assert here.stdout.readline() == "second\n"
        pair.a.flush()
        assert there.stdout.readline() in ("second\n", "first\n")  # a new file: from its beginning
    finally:
        for process in (here, there):
            process.kill()
            process.communicate()


def follow(how: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["tail", how, "-n", "+1", "--sleep-interval=0.1", "--max-unchanged-stats=1", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def saved_later(path: Path, than: int) -> int:
    """Saved when the kernel's clock, which ticks some hundred times a second, is beyond `than`; the
    mtime."""

    def newer() -> bool:
        path.write_text(path.name)
        return path.stat().st_mtime_ns > than

    wait_until(newer, "the clock")
    return path.stat().st_mtime_ns


def test_a_backup_by_newer_files_finds_what_was_saved(pair: Pair) -> None:
    """Editors and build tools compare times: what was saved later is newer, on both devices."""
    (pair.a.at / "newer").mkdir()
    place = pair.a.at / "newer"
    last = 0
    for number in range(10):
        last = saved_later(place / f"{number}", last)
    theirs = arrives(pair, "newer")
    for at in (place, theirs):
        found = run("find", at, "-type", "f", "-newer", at / "6", "-printf", "%f\\n").stdout.split()
        assert sorted(found) == ["7", "8", "9"]
