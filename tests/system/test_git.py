"""A repository in the mount: thousands of small files, renames over, locks, mmap'd packs."""

from __future__ import annotations

from pathlib import Path

from tests.system.conftest import Pair
from tests.system.harness import run

COMMITS = 300


def history() -> str:
    """A repository as git fast-import reads it: `COMMITS` commits, 250 files, some of them large
    enough to be several blocks."""
    lines = []
    for number in range(COMMITS):
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
    pair.a.sees("clone/log.txt", b"and from b\n")
    run("git", "fsck", "--full", env=env, cwd=clone)
    assert "from b" in run("git", "log", "-1", "--format=%s", env=env, cwd=clone).stdout
