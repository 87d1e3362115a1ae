"""mount/process/fstab.py: lines that would let a boot wait for a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount import doctor
from mount.cli import mount_helper
from mount.process import fstab

TEXT = """\
# https://a /commented nearline defaults 0 0
/dev/sda1 / ext4 defaults 0 1
https://a /bare nearline
https://a /with\\040space fuse.nearline _netdev,account=x 0 0
https://a /good nearline _netdev,nofail,noauto,x-systemd.automount 0 0
https://a /asked nearline noauto 0 0
https://a /automount nearline noauto,x-systemd.automount 0 0
"""


def test_what_is_missing() -> None:
    found = {str(line.mountpoint): fstab.missing(line) for line in fstab.parse(TEXT)}
    assert found == {
        "/bare": "_netdev and nofail",
        "/with space": "nofail",
        "/good": "",
        "/asked": "",
        "/automount": "_netdev and nofail",
    }


def test_doctor_and_the_helper_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fstab, "FSTAB", tmp_path / "fstab")
    assert list(doctor.check_fstab()) == []
    (tmp_path / "fstab").write_text(TEXT)
    assert [item.level for item in doctor.check_fstab()] == ["warn"] * 3
    assert mount_helper.main(["https://a", "/bare", "-f"]) == 0
    said = capsys.readouterr().err
    assert "/bare in" in said
    assert "add _netdev" in said
    assert mount_helper.main(["https://a", "/good", "-f"]) == 0
    assert capsys.readouterr().err == ""
