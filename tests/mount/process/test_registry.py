"""Which mounts there are, without touching them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mount import holders, mountinfo
from mount.failures import Failure
from mount.process import registry
from mount.process.registry import Record

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /home/ann/My\\040Files rw,nosuid - fuse.nearline http://localhost:1 rw,user_id=0
41 22 0:36 / /srv rw shared:9 master:2 - tmpfs tmp\\134fs rw
42 41 0:37 / /srv rw - fuse.other x rw
"""


def make(mountpoint: Path | str, pid: int = 0, **more: object) -> Record:
    pid = pid or os.getpid()
    given = {
        "mountpoint": str(mountpoint),
        "state_dir": "/state",
        "cache_dir": "/cache",
        "url": "http://localhost:1",
        "account": "ann",
        "pid": pid,
        "started": registry.started_at(pid),
        "control": "/nowhere/control.sock",
    }
    return Record(**{**given, **more})  # type: ignore[arg-type]  # a test's shorthand


def gone() -> int:
    """The number of a process that has ended."""
    return int(
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
        ).stdout
    )


def test_mountinfo_is_parsed() -> None:
    found = mountinfo.parse(MOUNTINFO)
    assert [str(mount.mountpoint) for mount in found] == [
        "/", "/home/ann/My Files", "/srv", "/srv",
    ]  # fmt: skip
    assert [mount.is_nearline for mount in found] == [False, True, False, False]
    assert found[1].source == "http://localhost:1"
    assert found[2].source == "tmp\\fs"


def test_the_topmost_and_the_deepest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "mounts", lambda: mountinfo.parse(MOUNTINFO))
    top = mountinfo.mounted_at(Path("/srv"))
    assert top is not None
    assert top.fstype == "fuse.other"
    inside = mountinfo.containing(Path("/home/ann/My Files/a/b"))
    assert inside is not None
    assert inside.id == 40
    assert mountinfo.mounted_at(Path("/home/ann")) is None


def test_holders_are_named_by_what_they_have_open(tmp_path: Path) -> None:
    """/proc is itself a mount that a child can hold: by a descriptor, and by its directory."""
    proc = Path("/proc")
    wait = "import sys; f = open('/proc/uptime'); print(flush=True); sys.stdin.read()"
    by_file = subprocess.Popen(
        [sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    by_cwd = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/proc/sys")
    assert by_file.stdout is not None
    by_file.stdout.readline()
    try:
        found = {holder.pid: holder for holder in holders.of(proc)}
        assert by_file.pid in found
        assert str(found[by_cwd.pid]).startswith(f"cat ({by_cwd.pid}) of ")
        assert by_cwd.pid not in {
            holder.pid for holder in holders.of(proc, besides=frozenset({by_cwd.pid}))
        }
    finally:
        by_file.communicate()
        by_cwd.communicate()
    assert holders.of(tmp_path) == []


def test_a_record_is_kept_found_and_removed(home: Path) -> None:
    record = make("/m/one")
    registry.put(record)
    assert registry.get(Path("/m/one")) == record
    assert registry.all_records() == [record]
    assert record.alive
    registry.remove(record)
    assert registry.all_records() == []


def test_a_record_is_not_removed_by_whom_it_is_not(home: Path) -> None:
    old, new = make("/m", state_dir="/old"), make("/m", state_dir="/new")
    registry.put(old)
    registry.put(new)
    registry.remove(old)
    assert registry.get(Path("/m")) == new


def test_a_process_that_is_gone_or_another_is_not_alive() -> None:
    assert not make("/m", pid=gone(), started=5).alive
    assert not make("/m", started=registry.started_at(os.getpid()) - 1).alive


def test_what_is_left_of_gone_mounts_is_forgotten(home: Path) -> None:
    registry.put(make("/m/dead", pid=gone(), started=5))
    registry.put(make("/m/alive"))
    assert [record.mountpoint for record in registry.forget_gone()] == ["/m/dead"]
    assert [record.mountpoint for record in registry.all_records()] == ["/m/alive"]


def test_a_torn_record_counts_as_absent(home: Path) -> None:
    registry.put(make("/m"))
    next(registry.directory().glob("*.json")).write_text('{"mountpoint": "/m"')
    assert registry.get(Path("/m")) is None
    assert registry.all_records() == []


def test_a_path_belongs_to_the_innermost_mount(home: Path) -> None:
    registry.put(make("/m"))
    registry.put(make("/m/inner"))
    assert registry.find(Path("/m/a/../b"))[1] == "b"
    record, below = registry.find(Path("/m/inner/x/y"))
    assert (record.mountpoint, below) == ("/m/inner", "x/y")
    assert registry.find(Path("/m"))[1] == ""
    with pytest.raises(Failure, match="not in a Nearline mount"):
        registry.find(Path("/mm"))


def test_a_symbolic_link_leads_to_its_mount(home: Path, tmp_path: Path) -> None:
    registry.put(make(tmp_path / "real"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert registry.find(tmp_path / "link" / "a")[1] == "a"


def test_a_mount_that_does_not_answer_is_not_live(home: Path) -> None:
    registry.put(make("/m"))
    with pytest.raises(Failure, match="nearline umount /m"):
        registry.live(Path("/m"))
