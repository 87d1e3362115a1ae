"""A repository in the mount: thousands of small files, renames over, locks, mmap'd packs."""

from __future__ import annotations

from pathlib import Path

from tests.system.applications.trees import arrives, entries
from tests.system.conftest import Pair
from tests.system.harness import run

COMMITS = 300


def history(commits: int = COMMITS) -> str:
    """A repository as git fast-import reads it: that many commits, up to 250 files, some of
    them large enough to be several blocks."""
    lines = []
    for number in range(commits):
        message = f"commit {number}"
        lines += [
            "commit refs/heads/main",
            f"committer Anna <anna@example.org> {10**9 + number} +0000",
        ]
        lines += [f"data {len(message)}", message]
        for path in (f"dir{number % 25}/file{number % 250}.txt", "log.txt"):
            content = f"{path} at {number}\n" * (20_000 if number % 100 == 7 else 30)
            lines += [f"M 100644 inline {path}", f"data {len(content)}", content]
        if number % 50 == 49:
            lines.append(f"D dir{(number - 20) % 25}/file{(number - 20) % 250}.txt")
    return "\n".join(lines) + "\n"


def test_a_clone_lives_in_the_mount(pair: Pair, tmp_path: Path) -> None:
    env = pair.site.env
    origin, clone = tmp_path / "origin", pair.a.at / "clone"
    run("git", "init", "-q", "-b", "main", origin, env=env)
    run("git", "fast-import", "--quiet", env=env, cwd=origin, input=history())
    run("git", "clone", "-q", f"file://{origin}", clone, env=env)
    run("git", "fsck", "--full", "--strict", env=env, cwd=clone)
    assert run("git", "status", "--porcelain", env=env, cwd=clone).stdout == ""
    for number in range(3):
        (clone / "log.txt").write_text(f"written in the mount, {number}\n")
        (clone / f"new{number}").write_text("new\n")
        run("git", "add", "-A", env=env, cwd=clone)
        run("git", "commit", "-q", "-m", f"in the mount {number}", env=env, cwd=clone)
    run("git", "checkout", "-q", "-b", "side", "HEAD~20", env=env, cwd=clone)
    run("git", "checkout", "-q", "main", env=env, cwd=clone)
    run("git", "gc", "-q", env=env, cwd=clone)
    pair.a.flush()

    there = pair.b.sees("clone")
    run("git", "fsck", "--full", "--strict", env=env, cwd=there)
    assert run("git", "status", "--porcelain", env=env, cwd=there).stdout == ""
    out = tmp_path / "out"
    run("git", "clone", "-q", "--no-local", there, out, env=env)
    log = run("git", "log", "--format=%H %s", env=env, cwd=out).stdout
    assert log == run("git", "log", "--format=%H %s", env=env, cwd=clone).stdout
    assert len(log.splitlines()) == COMMITS + 3
    run("git", "fsck", "--full", env=env, cwd=out)
    assert (out / "log.txt").read_text() == "written in the mount, 2\n"

    (there / "log.txt").write_text("and from b\n")
    run("git", "commit", "-q", "-am", "from b", env=env, cwd=there)
    pair.b.flush()
    pair.a.shows(lambda: entries(clone) == entries(there), "all that b has")
    run("git", "fsck", "--full", env=env, cwd=clone)
    assert "from b" in run("git", "log", "-1", "--format=%s", env=env, cwd=clone).stdout


def test_worktrees_branches_and_packing(pair: Pair, tmp_path: Path) -> None:
    """The work of git on many files at once: a working tree beside, switching it, repacking,
    pruning; and a bare repository in the mount that is pushed into and cloned from."""
    env = pair.site.env
    place = pair.a.at / "git"
    place.mkdir()

    def git(*words: str | Path, at: Path = place / "main") -> str:
        return run("git", *words, env=env, cwd=at).stdout

    run("git", "init", "-q", "-b", "main", place / "main", env=env)
    run("git", "fast-import", "--quiet", env=env, cwd=place / "main", input=history(80))
    git("checkout", "-q", "main")
    git("worktree", "add", "-q", "-b", "side", "../side", "HEAD~40")
    (place / "side" / "only here").write_text("side\n")
    git("add", "-A", at=place / "side")
    git("commit", "-q", "-m", "on the side", at=place / "side")
    git("merge", "-q", "-m", "merged", "side")
    git("stash", "list")
    git("rebase", "-q", "HEAD~3")
    git("worktree", "remove", "../side")
    git("branch", "-D", "side")
    git("reflog", "expire", "--expire=now", "--all")
    git("repack", "-qadf")
    git("gc", "-q", "--aggressive", "--prune=now")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == ""
    run("git", "init", "-q", "--bare", "-b", "main", place / "bare.git", env=env)
    git("push", "-q", "../bare.git", "main")
    git("fsck", "--full", at=place / "bare.git")
    run("git", "clone", "-q", place / "bare.git", tmp_path / "out", env=env)

    theirs = arrives(pair, "git")
    assert sorted(path.name for path in theirs.iterdir()) == ["bare.git", "main"]
    git("fsck", "--full", "--strict", at=theirs / "main")
    assert git("status", "--porcelain", at=theirs / "main") == ""
    assert git("worktree", "list", at=theirs / "main").count("\n") == 1
    heads = {git("rev-parse", "main", at=at) for at in (place / "main", theirs / "bare.git")}
    assert heads == {git("rev-parse", "HEAD", at=tmp_path / "out")}
