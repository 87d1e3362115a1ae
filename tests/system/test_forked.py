"""Commands that are forked (`parents`) are as new programs to whoever looks from outside."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.system import forked, harness, parents
from tests.system.harness import Site
from tests.system.processes import NOWHERE, environment, nearline

pytestmark = pytest.mark.skipif(not parents.are_usable(), reason="every command is a new program")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with harness.running() as site:
        yield site


def seen(pid: int, site: Site) -> dict[str, Any]:
    """All that /proc tells of a process, with the names of its site left out."""
    process = Path(f"/proc/{pid}")

    def text(name: str) -> str:
        said = (process / name).read_text().rstrip("\0").replace(site.server.address, "HOST:PORT")
        return said.replace(str(site.base), "BASE")

    status = dict(line.split(":\t", 1) for line in text("status").splitlines())
    session, terminal = text("stat").rpartition(")")[2].split()[3:5]
    return {
        "words": re.sub(r"\0\d+$", "\0DESCRIPTOR", text("cmdline")),
        "environment": sorted(text("environ").split("\0")),
        "limits": text("limits"),
        "directory": os.readlink(process / "cwd"),
        "program": os.readlink(process / "exe"),
        "leads its session": int(session) == pid,
        "terminal": terminal,
        "streams": [
            re.sub(r"\d+", "N", os.readlink(process / "fd" / str(number))).replace(
                re.sub(r"\d+", "N", str(site.base)), "BASE"
            )
            for number in range(3)
        ],
        **{name: status[name] for name in ("Name", "Umask", "Uid", "Groups", "CapEff")},
        **{name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
    }


def looked_at(*, is_new: bool) -> dict[str, Any]:
    """A server, a mount, and what commands of either kind give."""
    with mock.patch.object(parents, "is_off", is_new), harness.running() as site:
        device = site.device("a")
        device.mount()
        pids = {"server": site.server.pid, "mount": device.pid}
        found: dict[str, Any] = {who: seen(pid, site) for who, pid in pids.items()}
        found["all"] = set(site.processes()) == set(pids.values())
        for words in (
            ("mout",),
            ("flush", site.home),
            ("status", device.at, "--bogus"),
            ("doctor",),
        ):
            done = site.cli(*words, check=False)
            found[words[0]] = done.returncode, done.stderr.replace(str(site.base), "BASE")
        device.kill()
        device.umount()
        found["killed"] = site.server.stop(signal.SIGKILL)
        site.server.start()
        found["stopped"] = site.server.stop(signal.SIGTERM)
    return found


def test_what_is_forked_looks_like_a_new_program() -> None:
    forks, programs = looked_at(is_new=False), looked_at(is_new=True)
    for what, found in programs.items():
        assert forks[what] == found
    assert forks["all"]
    assert forks["killed"] == -signal.SIGKILL


def test_what_is_drawn_at_random_differs_between_children_of_one_parent(site: Site) -> None:
    words = ("admin", "token", "add", harness.ACCOUNT, "another", "--data", site.server.data)
    assert len({site.cli(*words).stdout for _ in range(3)}) == 3


def test_who_needs_another_interpreter_gets_a_new_program(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('another')")
    site.env["PYTHONPATH"] = str(tmp_path)
    said = site.cli("status").stdout
    del site.env["PYTHONPATH"]
    assert said.startswith("another")
    usual = environment(NOWHERE, NOWHERE)
    assert forked.could_be(site.env | {"NEARLINE_TOKEN": "its own"}, usual)
    assert not forked.could_be(site.env | {"LC_ALL": "C"}, usual)
    assert not forked.could_be({}, usual)


def test_that_the_parent_has_ended_is_said(tmp_path: Path) -> None:
    parent = parents.Parent("remote", nearline(), environment(NOWHERE, NOWHERE))
    running = parent.fork([nearline(), "status"], env=environment(tmp_path, tmp_path))
    assert running.wait() == 0
    parent.end()
    parent = parents.Parent("remote", nearline(), environment(NOWHERE, NOWHERE))
    os.kill(parent.pid, signal.SIGKILL)
    with pytest.raises(parents.Ended):
        parent.fork([nearline(), "status"])
