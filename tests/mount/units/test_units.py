"""mount/units and mount/cli/mount_helper.py: what the service manager and mount(8) are given."""

from __future__ import annotations

import os
import plistlib
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import units
from mount.cli import mount_helper, mounting
from mount.failures import Failure
from mount.options import Options
from mount.units import trust
from mount.units.__main__ import check, install, place

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


def directives(name: str) -> dict[str, set[str]]:
    """The settings of a unit: the values by name."""
    found: dict[str, set[str]] = {}
    for line in units.template(name).splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, set()).add(value)
    return found


SANDBOX = {
    "CapabilityBoundingSet": {""},
    "LockPersonality": {"yes"},
    "MemoryDenyWriteExecute": {"yes"},
    "NoNewPrivileges": {"yes"},
    "RestrictAddressFamilies": {"AF_INET AF_INET6 AF_UNIX"},
    "RestrictNamespaces": {"yes"},
    "RestrictRealtime": {"yes"},
    "RestrictSUIDSGID": {"yes"},
    "SystemCallArchitectures": {"native"},
    "SystemCallErrorNumber": {"EPERM"},
    "UMask": {"0077"},
}
OF_THE_SERVER = {
    **{name: {"yes"} for name in ("DynamicUser", "PrivateDevices", "PrivateTmp", "PrivateUsers")},
    **{name: {"yes"} for name in ("ProtectClock", "ProtectHome", "ProtectHostname", "PrivateIPC")},
    **{f"ProtectKernel{what}": {"yes"} for what in ("Logs", "Modules", "Tunables")},
    "ProtectControlGroups": {"yes"},
    "ProtectProc": {"invisible"},
    "ProtectSystem": {"strict"},
    "SystemCallFilter": {"@system-service", "~@privileged @resources"},
}
# Each gives a unit a mount namespace of its own, or a user who may not mount for everybody
# (systemd.exec(5)).
HIDES_MOUNTS = {"ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset", "ProtectKernelLogs"}
HIDES_MOUNTS |= {"ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups"}
HIDES_MOUNTS |= {"PrivateTmp", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateUsers"}
HIDES_MOUNTS |= {"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "DynamicUser"}
HIDES_MOUNTS |= {"RootDirectory", "TemporaryFileSystem", "User"}


def test_the_servers_unit_is_sandboxed() -> None:
    found = directives("system/nearline-server.service")
    expected = SANDBOX | OF_THE_SERVER
    assert {name: found.get(name) for name in expected} == expected


def test_the_mounts_unit_is_sandboxed_as_far_as_its_mount_is_seen_by_others() -> None:
    found = directives("system/nearline@.service")
    expected = SANDBOX | {
        "CapabilityBoundingSet": {"CAP_SYS_ADMIN"},
        "DevicePolicy": {"closed"},
        "DeviceAllow": {"/dev/fuse rw"},
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "@system-service @mount" in found["SystemCallFilter"]
    assert not found.keys() & HIDES_MOUNTS


def test_a_persons_units_leave_fusermount3_its_rights() -> None:
    """For a user's service manager each of these implies NoNewPrivileges, and mounting needs a
    set-user-id program (systemd.exec(5))."""
    for name in ("user/nearline@.service", "user/nearline-up.service"):
        found = directives(name)
        assert not found.keys() & ((SANDBOX.keys() | HIDES_MOUNTS) - {"UMask"})
        assert found["UMask"] == {"0077"}


@pytest.mark.parametrize(
    ("name", "exposure"),
    [("system/nearline-server.service", 15), ("system/nearline@.service", 45)],
)
def test_systemd_finds_little_exposed(name: str, exposure: int, tmp_path: Path) -> None:
    """Tenths of what docs/admin-guide.md says, with a little room for other versions of systemd."""
    unit = tmp_path / Path(name).name.replace("@", "@x")
    unit.write_text(units.render(name, "/bin/true"))
    run = ["systemd-analyze", "security", "--offline=true", f"--threshold={exposure}", unit]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def ours() -> Iterator[Path]:
    """A directory on the way to which nobody else may write; /tmp is for all."""
    with tempfile.TemporaryDirectory(dir=pwd.getpwuid(os.getuid()).pw_dir) as made:
        place = Path(made)
        (place / "bin").mkdir()
        (place / "bin/nearline").write_text("#!/bin/sh\n")
        yield place


ME = {0, os.getuid()}


def test_what_only_we_can_change_is_trusted(ours: Path) -> None:
    assert trust.first_untrusted(ours, ME) is None
    (ours / "link").symlink_to("bin/../bin/nearline")
    assert trust.first_untrusted(ours / "link", ME) is None
    assert trust.first_untrusted(ours / "not there", ME) is None


def test_a_group_of_which_we_are_the_only_member_is_trusted(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours / "bin").chmod(0o775)
    monkeypatch.setattr(trust, "_members", lambda _: {os.getuid()})
    assert trust.first_untrusted(ours, ME) is None
    monkeypatch.setattr(trust, "_members", lambda _: {os.getuid(), 12345})
    wrong = trust.first_untrusted(ours, ME)
    assert wrong is not None
    assert wrong.startswith(f"{ours}/bin may be written by the group ")


@pytest.mark.parametrize("changed", ["bin/nearline", "bin", "."])
def test_what_others_may_change_is_not_trusted(ours: Path, changed: str) -> None:
    place = ours / changed
    place.chmod(place.stat().st_mode | 0o002)
    wrong = f"{place} may be written by everybody"
    assert trust.first_untrusted(ours / "bin/nearline", ME) == wrong
    assert trust.first_untrusted(ours, ME) == wrong


def test_links_are_followed_by_every_step(ours: Path, tmp_path: Path) -> None:
    """Both ends lie where they should, but a link on the way to the target does not."""
    tmp_path.chmod(0o707)
    (tmp_path / "hop").symlink_to(ours / "bin")
    (ours / "first").symlink_to(tmp_path / "hop")
    found = trust.first_untrusted(ours / "first/nearline", ME)
    assert found is not None
    assert "may be written by everybody" in found
    assert trust.first_untrusted(ours, ME) == found, "links in it are followed too"
    (ours / "first").unlink()
    (ours / "round").symlink_to("round")
    with pytest.raises(OSError, match="too many symbolic links"):
        trust.first_untrusted(ours / "round", ME)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_not_trusted(ours: Path) -> None:
    os.chown(ours / "bin/nearline", 12345, 0)
    assert trust.first_untrusted(ours, {0}) == f"{ours}/bin/nearline belongs to user 12345"
    assert trust.first_untrusted(ours, {0, 12345}) is None
    (ours / "bin").chmod(0o775)
    os.chown(ours / "bin", 0, 54321)
    assert trust.first_untrusted(ours, {0}) == f"{ours}/bin may be written by the group 54321"


def test_units_of_a_program_that_others_may_change_are_refused(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part of it: the command, the interpreter, or where modules come from."""
    command, python, modules = ours / "bin/nearline", ours / "python", ours / "site-packages"
    python.touch()
    modules.mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "path", [str(modules), str(ours / "python311.zip")])
    check("user", command, os.getuid())
    for part in (command, python, modules):
        part.chmod(part.stat().st_mode | 0o002)
        with pytest.raises(Failure, match=rf"{part} may be .*as root: `scripts/install-system`"):
            check("user", command, os.getuid())
        part.chmod(part.stat().st_mode & ~0o002)
    monkeypatch.setattr("mount.units.__main__.HOMES", (ours,))
    with pytest.raises(Failure, match="is in a home directory"):
        check("system", command, os.getuid())


def test_units_can_be_read_by_all_and_written_by_their_owner(
    tmp_path: Path, no_umask: None
) -> None:
    files = install("system", tmp_path / "systemd", Path(COMMAND))
    assert [file.name for file in files] == ["nearline-server.service", "nearline@.service"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
    assert (tmp_path / "systemd").stat().st_mode & 0o777 == 0o755


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A stand-in for a virtual environment: its `python` is our own."""
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "bin/python").chmod(0o755)
    return place


def install_helper(installation: Path, dest: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[3] / "scripts/install-helper"
    env = {**os.environ, "DESTDIR": str(dest)}
    run = ["sh", script, installation]
    return subprocess.run(run, env=env, capture_output=True, text=True, check=False)


def test_root_is_given_no_helper_that_others_may_change(installation: Path, tmp_path: Path) -> None:
    (installation / "bin").chmod(0o777)
    done = install_helper(installation, tmp_path / "dest")
    assert done.returncode == 1
    assert "may be written by everybody" in done.stderr
    assert "scripts/install-system" in done.stderr
    assert not (tmp_path / "dest").exists()


def test_the_helper_that_is_installed(installation: Path, tmp_path: Path) -> None:
    """Where the check finds nothing: a `python` that says so."""
    python = installation / "bin/python"
    python.write_text(
        f'#!/bin/sh\n[ "$*" = "-I -m mount.units.trust {python}" ]'
        f' || exec "{sys.executable}" "$@"\n'
    )
    conf = tmp_path / "dest/etc/updatedb.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text('PRUNEFS="NFS"\n')
    assert install_helper(installation, tmp_path / "dest").returncode == 0
    installed = tmp_path / "dest/sbin/mount.nearline"
    assert f'exec "{python}" -I -m mount.cli.mount_helper "$@"' in installed.read_text()
    assert os.readlink(installed.with_name("mount.fuse.nearline")) == installed.name
    assert conf.read_text() == 'PRUNEFS="NFS fuse.nearline"\n'


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


@pytest.mark.parametrize(
    ("user", "given", "flags"),
    [
        (0, "rw", {"suid", "dev"}),
        (0, "rw,nosuid", {"nosuid", "dev"}),
        (0, "rw,noexec,nosuid,nodev", {"noexec", "nosuid", "nodev"}),
        (0, "rw,user", {"noexec", "nosuid", "nodev"}),
        (1000, "rw", set()),
    ],
)
def test_for_root_suid_and_dev_are_the_default_of_mount8(
    started: list[tuple[str, str, Options]],
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    given: str,
    flags: set[str],
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert mount_helper.main(["http://localhost:1", "/mnt", "-o", given]) == 0
    assert started[0][2].fuse_options == flags


def test_the_helper_as_mount8_calls_it(
    started: list[tuple[str, str, Options]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    words = ["http://localhost:1/", "/mnt", "-n", "-o", "rw,account=ann,_netdev", "-t", "nearline"]
    assert mount_helper.main(words) == 0
    assert started == [("http://localhost:1", "/mnt", Options(account="ann", read_only=False))]


def test_fake_checks_and_mounts_nothing(
    started: list[tuple[str, str, Options]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_helper.main(["http://localhost:1", "/mnt", "-fv", "-o", "account=ann"]) == 0
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
    assert mount_helper.main(words) == 2
    assert started == []
    assert capsys.readouterr().err.count("\n") == 1


def test_sloppy(started: list[tuple[str, str, Options]]) -> None:
    assert mount_helper.main(["http://localhost:1", "/mnt", "-s", "-o", "bogus,ro"]) == 0
    assert started[0][2].read_only is True
