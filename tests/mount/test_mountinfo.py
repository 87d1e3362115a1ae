"""mount/mountinfo.py: which mounts an unmounting leaves, and what autofs has at a place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount import mountinfo
from mount.mountinfo import masters_of, parse, staying
from mount.process import preflight

HERE = """\
20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 20 0:50 / /mnt rw shared:2 - fuse.nearline https://a rw
31 20 0:50 /folder /bind rw - fuse.nearline https://a rw
32 30 0:50 /x /mnt/inside rw - fuse.nearline https://a rw
33 20 0:51 / /other rw - fuse.nearline https://a rw
"""
SERVICE = """\
120 100 8:1 / / rw shared:9 master:1 - ext4 /dev/sda1 rw
130 120 0:50 / /mnt rw master:2 - fuse.nearline https://a rw
"""
NESTED = SERVICE.replace("shared:9 master:1", "master:9")
CONTAINER = """\
220 200 0:60 / / rw - overlay overlay rw
230 220 0:50 / /mnt rw master:2 - fuse.nearline https://a rw
"""
MOVED = SERVICE.replace(" /mnt ", " /elsewhere ")


@pytest.mark.parametrize(
    ("there", "stay"),
    [
        (HERE, ["/bind"]),
        (SERVICE, []),
        (NESTED, []),
        (CONTAINER, ["/mnt"]),
        (MOVED, ["/elsewhere"]),
    ],
)
def test_what_stays_when_one_is_unmounted(there: str, stay: list[str]) -> None:
    here = parse(HERE)
    masters = masters_of([here, parse(SERVICE)])
    found = staying(here[1], here, parse(there), masters)
    assert [str(mount.mountpoint) for mount in found] == stay


def test_autofs_is_a_place_for_a_mount_and_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = f"40 20 0:40 / {tmp_path} rw - autofs systemd-1 rw,direct\n"
    ours = f"41 40 0:50 / {tmp_path} rw - fuse.nearline https://a rw\n"
    (tmp_path / "seen only by who looks").touch()
    monkeypatch.setattr(mountinfo, "mounts", lambda: parse(trigger))
    assert mountinfo.mounted_at(tmp_path) is None
    preflight.check_mountpoint(tmp_path)
    monkeypatch.setattr(mountinfo, "mounts", lambda: parse(trigger + ours))
    assert not mountinfo.is_trigger(tmp_path)
    assert mountinfo.mounted_at(tmp_path) == parse(ours)[0]
