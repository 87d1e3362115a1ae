"""Owners of files, and mount(8)'s options, on real mounts of one drive."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import mountinfo
from tests.system import harness
from tests.system.harness import Device, Site, nearline, run, wait_until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several people")

SOMEBODY, GROUP, OTHER = 12345, 23456, 12346
NOBODY = 65534  # a person that every system knows: fusermount3 wants a name
EVERYTHING = f"uid={SOMEBODY},gid={GROUP},umask=027,noexec,suid,dev,sync,allow_other"


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    """Where everybody may go through."""
    with harness.running() as site:
        site.base.chmod(0o711)
        yield site


@pytest.fixture(scope="module")
def real(place: Site) -> Device:
    """A mount by root as it is without options."""
    device = place.device("real", "-o", "allow_other")
    device.mount()
    return device


@pytest.fixture(scope="module")
def chosen(place: Site) -> Device:
    """A mount by root that says otherwise."""
    device = place.device("chosen", "-o", EVERYTHING)
    device.mount()
    return device


def options_of(device: Device) -> set[str]:
    shown = run("findmnt", "--noheadings", "--output", "OPTIONS", device.at).stdout
    return set(shown.strip().split(","))


def shows(device: Device, name: str, uid: int, gid: int, mode: int) -> Path:
    """Wait until a file is there with all that was done to it after it was made; its path."""
    path = device.at / name

    def there() -> bool:
        seen = path.stat()
        return (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (uid, gid, mode)

    device.shows(there, f"{name} of {uid}:{gid} with mode {mode:o} on {device.name}")
    return path


def as_person(uid: int, *command: str | Path, env: dict[str, str] | None = None) -> str:
    """The output of the command, on either stream, run by `uid` without any other group."""
    done = subprocess.run(
        [str(word) for word in command],
        user=uid,
        group=uid,
        extra_groups=[],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=harness.COMMAND_SECONDS,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_mount_by_root_keeps_real_owners_and_shows_them_elsewhere(
    real: Device, chosen: Device
) -> None:
    file = real.at / "owned"
    file.write_text("x")
    os.chown(file, 1234, 4321)
    file.chmod(0o664)
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 4321)
    (real.at / "open").mkdir()
    (real.at / "open").chmod(0o777)
    as_person(OTHER, "touch", real.at / "open" / "made")
    assert (real.at / "open" / "made").stat().st_uid == OTHER
    real.flush()
    shows(chosen, "owned", SOMEBODY, GROUP, 0o640)


def test_under_a_chosen_owner_chown_is_refused_and_chmod_keeps_what_is_hidden(
    real: Device, chosen: Device
) -> None:
    (real.at / "script").write_text("#!/bin/sh\n")
    os.chown(real.at / "script", 1234, 4321)
    (real.at / "script").chmod(0o664)
    real.flush()
    file = shows(chosen, "script", SOMEBODY, GROUP, 0o640)
    os.chown(file, SOMEBODY, GROUP)
    for uid, gid in ((1, -1), (-1, 1), (1234, 4321)):
        with pytest.raises(PermissionError):
            os.chown(file, uid, gid)
    file.chmod(0o700)
    assert stat.S_IMODE(file.stat().st_mode) == 0o700
    chosen.flush()
    there = real.at / "script"
    wait_until(lambda: stat.S_IMODE(there.stat().st_mode) == 0o724, "the x, and the rest as it was")
    assert (there.stat().st_uid, there.stat().st_gid) == (1234, 4321)


def test_permissions_are_those_that_show(real: Device, chosen: Device) -> None:
    (real.at / "secret").write_text("for the owner")
    (real.at / "secret").chmod(0o604)
    real.flush()
    shows(chosen, "secret", SOMEBODY, GROUP, 0o600)
    assert as_person(SOMEBODY, "cat", chosen.at / "secret") == "for the owner"
    assert "Permission denied" in as_person(OTHER, "cat", chosen.at / "secret")
    assert as_person(OTHER, "cat", real.at / "secret") == "for the owner"
    assert "Permission denied" in as_person(SOMEBODY, "touch", real.at / "secret")


def test_the_mount_table_shows_what_was_asked_for(
    place: Site, real: Device, chosen: Device
) -> None:
    for device in (real, chosen):
        fields = run("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", device.at).stdout
        assert fields.split() == [place.server.url, "fuse.nearline"]
    assert options_of(real) >= {"rw", "nosuid", "nodev", "default_permissions", "allow_other"}
    assert options_of(chosen) >= {"rw", "noexec", "sync", "default_permissions", "allow_other"}
    assert not options_of(chosen) & {"nosuid", "nodev"}
    assert f"{place.server.url} on {real.at} type fuse.nearline (" in run("mount").stdout


def test_noexec_suid_and_dev_are_carried_out(real: Device, chosen: Device) -> None:
    shutil.copy("/bin/true", real.at / "program")
    (real.at / "program").chmod(0o755)
    os.mknod(real.at / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    real.flush()
    run(real.at / "program")
    with pytest.raises(PermissionError):
        run(chosen.sees("program"))
    with pytest.raises(PermissionError):
        (real.at / "null").read_bytes()
    assert chosen.sees("null").read_bytes() == b""
    shutil.copy("/usr/bin/id", real.at / "id")
    os.chown(real.at / "id", 1234, 1234)
    (real.at / "id").chmod(0o4755)
    assert as_person(OTHER, real.at / "id", "-u") == f"{OTHER}\n", "nosuid: FUSE's default"


class Person:
    """Somebody who is not root, with a home and a login of their own."""

    def __init__(self, site: Site, uid: int) -> None:
        self.uid, self.site = uid, site
        self.home = site.base / f"person-{uid}"
        for directory in (self.home, self.home / "run", self.home / "files"):
            directory.mkdir(mode=0o700)
            os.chown(directory, uid, uid)
        self.env = harness.environment(self.home, self.home / "run")
        self.at = self.home / "files"
        password = self.home / "password"
        password.write_text(harness.PASSWORD + "\n")
        os.chown(password, uid, uid)
        self("login", site.server.url, "--account", harness.ACCOUNT, "--password-file", password)

    def __call__(self, *words: str | Path) -> str:
        """`nearline WORDS`, also where the program lies in root's home."""
        who = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        reach = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        done = run("setpriv", *who, *reach, nearline(), *words, env=self.env, check=False)
        return done.stdout + done.stderr

    def run(self, *words: str | Path) -> str:
        return as_person(self.uid, *words, env=self.env)


@pytest.fixture(scope="module")
def fuse_for_everybody() -> Iterator[None]:
    """/dev/fuse as udev makes it; in containers and small systems it is root's alone."""
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    device.chmod(before | 0o666)
    yield
    device.chmod(before)


@pytest.fixture(scope="module")
def person(place: Site, fuse_for_everybody: None) -> Iterator[Person]:
    person = Person(place, NOBODY)
    yield person

    def unmounted() -> bool:  # a namespace of another test's may have a copy of it for a moment
        person("umount", person.at, "--now")
        return mountinfo.mounted_at(person.at) is None

    wait_until(unmounted, "it is unmounted")


def test_in_a_persons_own_mount_everything_is_theirs(
    place: Site, real: Device, person: Person
) -> None:
    (real.at / "of-root").write_text("x")
    (real.at / "of-root").chmod(0o600)
    real.flush()
    for option, said in (
        ("allow_other", "user_allow_other"),
        ("allow_root", "user_allow_other"),
        ("suid", "only root may mount with suid"),
        ("dev", "only root may mount with dev"),
    ):
        if said == "user_allow_other" and _allowed_to_all():
            continue
        assert said in person("mount", place.server.url, person.at, "-o", option)
    assert person("mount", place.server.url, person.at, "-o", "noexec") == ""
    seen = person.run("stat", "-c", "%u %g %a", person.at / "of-root")
    assert seen == f"{NOBODY} {NOBODY} 600\n"
    assert person.run("sh", "-c", f"echo mine > {person.at}/of-person; cat {person.at}/of-root")
    direct = ("dd", "if=/dev/zero", f"of={person.at}/direct", "oflag=direct", "bs=4k", "count=1")
    assert person.run(*direct, "status=none") == ""  # offered, mounted by fusermount3 too
    refused = person.run("chown", str(OTHER), person.at / "of-person")
    assert "Operation not permitted" in refused
    with pytest.raises(PermissionError):  # nobody else's business, not even root's
        os.listdir(person.at)
    table = run("findmnt", "--noheadings", "--output", "OPTIONS", person.at).stdout
    assert {"nosuid", "nodev", "noexec", f"user_id={NOBODY}"} <= set(table.strip().split(","))
    told = person("flush", person.at)  # how far it is, if it takes a while
    assert all(line.startswith("flush: working") for line in told.splitlines())
    assert real.sees("of-person", b"mine\n").stat().st_uid == NOBODY


def _allowed_to_all() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except FileNotFoundError:
        return False
    return "user_allow_other" in (line.strip() for line in lines)


def test_a_line_in_fstab_mounts_once_and_says_that_it_cannot_be_remounted(
    place: Site, real: Device, tmp_path: Path
) -> None:
    """With the helper in /sbin of a mount namespace of our own."""
    device = place.device("fstab")
    device.at.mkdir()
    helper = tmp_path / "mount.nearline"
    home = " ".join(f"{name}={place.env[name]}" for name in ("HOME", "XDG_RUNTIME_DIR"))
    path = f"PYTHONPATH={place.env.get('PYTHONPATH', '')}"
    python = f"{sys.executable} -P -m mount.cli.mount_helper"
    helper.write_text(f'#!/bin/sh\nexec env {home} {path} {python} "$@"\n')
    helper.chmod(0o755)
    shutil.copy(helper, tmp_path / "mount.fuse.nearline")
    ours = f"account=anna,state={device.state},cache={device.cache}"
    options = f"ro,nofail,_netdev,x-systemd.automount,umask=077,uid=7,noexec,nosuid,nodev,{ours}"
    fstab = tmp_path / "fstab"
    fstab.write_text(f"{place.server.url} {device.at} nearline {options} 0 0\n")
    script = f"""
        findmnt -rno TARGET -t fuse.nearline | grep -vxF {real.at} | xargs -r umount -l
        mount -t overlay overlay -o lowerdir={tmp_path}:/usr/sbin /usr/sbin
        mount --fstab {fstab} --all
        mount --fstab {fstab} --all
        grep -c ' {device.at} fuse.nearline ' /proc/mounts
        findmnt --noheadings --output OPTIONS {device.at}
        stat -c '%u %a' {device.at}/owned
        mount --fstab {fstab} -o remount,rw {device.at} 2>&1 || true
        touch {device.at}/no 2>&1 || true
        {nearline()} umount {device.at}
        """
    (real.at / "owned").touch()
    (real.at / "owned").chmod(0o664)
    real.flush()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
    said = run(*command, env=place.env).stdout.splitlines()
    count, shown, owner, remount, touched = said
    assert count == "1", "the second --all found it mounted"
    assert {"ro", "noexec", "nosuid", "nodev"} <= set(shown.split(","))
    assert owner == "7 600"
    assert "cannot be changed (remount)" in remount
    assert os.strerror(errno.EROFS) in touched
