"""mount/units and mount/starting/helper.py: what the service manager and mount(8) are given."""

from __future__ import annotations

import os
import plistlib
import subprocess
from pathlib import Path

import pytest

from mount import units
from mount.cli import mounting
from mount.config import Options
from mount.failures import Failure
from mount.starting import helper
from mount.units.__main__ import place

COMMAND = "/opt/nearline/.venv/bin/nearline"


@pytest.mark.parametrize("name", units.TEMPLATES)
def test_every_template_names_the_command_and_nothing_of_this_machine(name: str) -> None:
    text = units.render(name, COMMAND)
    assert COMMAND in text
    assert "@NEARLINE@" not in text
    assert str(Path.home()) + "/" not in units.template(name) or os.getuid() == 0


def test_every_file_is_listed() -> None:
    here = Path(units.__file__).parent
    files = {
        str(f.relative_to(here)) for f in here.rglob("*") if f.suffix in (".service", ".plist")
    }
    assert files == set(units.TEMPLATES)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    names = [name for name in units.TEMPLATES if name.endswith(".service")]
    files = []
    for name in names:
        files.append(tmp_path / name.replace("/", "-").replace("@", "@x"))
        files[-1].write_text(units.render(name, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(tmp_path) not in done.stderr, done.stderr
    assert not [line for line in done.stderr.splitlines() if "nearline" in line]


def test_launchd_accepts_the_plist() -> None:
    plist = plistlib.loads(units.render("launchd/org.nearline.server.plist", COMMAND).encode())
    assert COMMAND in plist["ProgramArguments"][2]


def test_a_command_that_would_break_a_unit_is_refused() -> None:
    for command in ("nearline", "/opt/my tools/nearline", "/a\nExecStart=/b"):
        with pytest.raises(Failure):
            units.render("user/nearline@.service", command)
    with pytest.raises(Failure):
        units.template("../../etc/passwd")


def test_where_units_belong(home: Path) -> None:
    assert place("linux", root=True) == ("system", Path("/etc/systemd/system"))
    assert place("linux", root=False) == ("user", home / ".config/systemd/user")
    assert place("darwin", root=False)[0] == "launchd"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Options]]:
    calls: list[tuple[str, str, Options]] = []

    def start(url: str, directory: str, options: Options, *, foreground: bool) -> None:
        assert not foreground
        calls.append((url, directory, options))

    monkeypatch.setattr(mounting, "start", start)
    return calls


def test_the_helper_as_mount8_calls_it(started: list[tuple[str, str, Options]]) -> None:
    words = ["http://localhost:1/", "/mnt", "-n", "-o", "rw,account=ann,_netdev", "-t", "nearline"]
    assert helper.main(words) == 0
    assert started == [("http://localhost:1", "/mnt", Options(account="ann", read_only=False))]


def test_fake_checks_and_mounts_nothing(
    started: list[tuple[str, str, Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert helper.main(["http://localhost:1", "/mnt", "-fv", "-o", "account=ann"]) == 0
    assert started == []
    assert "http://localhost:1 on /mnt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["http://localhost:1"],
        ["nowhere", "/mnt"],
        ["http://localhost:1", "/mnt", "-o", "bogus"],
        ["http://localhost:1", "/mnt", "-Z"],
        ["http://localhost:1", "/mnt", "-N", "5"],
    ],
)
def test_wrong_usage_of_the_helper(
    words: list[str],
    started: list[tuple[str, str, Options]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert helper.main(words) == 2
    assert started == []
    assert capsys.readouterr().err.count("\n") == 1


def test_sloppy(started: list[tuple[str, str, Options]]) -> None:
    assert helper.main(["http://localhost:1", "/mnt", "-s", "-o", "bogus,ro"]) == 0
    assert started[0][2].read_only is True
