"""Our units and helpers under systemd, mount(8) and autofs, in a machine that boots (`make
test-systemd`).

The machine has a server, and an account with mounts: by the system's unit, by a user's unit, by
lines in fstab, by autofs. Not part of `make test`: it needs root and namespaces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.booted.machine import PROGRAM, SECONDS, Machine, missing
from tests.system.harness import wait_until

pytestmark = pytest.mark.system

URL = "http://127.0.0.1:8750"
GOOD = "account=anna,nosuid,nodev,_netdev,nofail"
SAME = "x-systemd.after=nearline-server.service"
MIB20 = "head -c 20000000 /dev/urandom"


@pytest.fixture(scope="module")
def installed() -> Iterator[Machine]:
    """A machine that runs, with server and account; root is logged in, and so is berta."""
    if lacks := missing():
        pytest.fail(lacks)
    machine = Machine()
    try:
        machine.boot()
        machine.install()
        machine.write("/root/password", "correct horse\n", 0o644)
        machine.run("systemctl enable --now nearline-server")
        machine.run("useradd -m berta && chmod 755 /root && loginctl enable-linger berta")
        for name in ("anna", "berta"):
            machine.run(
                f"{PROGRAM}/bin/nearline account add {name} --data /var/lib/nearline "
                "--password-file /root/password"
            )
        machine.run(f"{PROGRAM}/bin/nearline {login(machine, 'anna')}")
        yield machine
    finally:
        machine.remove()


def login(machine: Machine, name: str) -> str:
    print_ = machine.run("cat /var/lib/nearline/server.fingerprint").strip()
    return f"login {URL} --account {name} --password-file /root/password --fingerprint {print_}"


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    """It runs, the server too, and nothing of ours is mounted or asked for."""
    yield installed
    if installed.is_off:
        installed.boot()
    installed.write("/etc/fstab", "")
    for mount in installed.run("findmnt -rno TARGET -t fuse.nearline", check=False).split():
        installed.run(f"umount -l {mount}", check=False)
    installed.run("systemctl disable nearline@drive 2>&1; systemctl reset-failed", check=False)
    installed.run("systemctl daemon-reload; systemctl start nearline-server")


def system_unit(machine: Machine) -> str:
    """A mount by the system's unit, and where."""
    machine.run("mkdir -p /etc/nearline /srv/unit")
    lines = f"URL={URL}\nDIR=/srv/unit\nOPTIONS=account=anna,allow_other,default_permissions\n"
    machine.write("/etc/nearline/drive.mount", lines)
    machine.run("systemctl enable --now nearline@drive")
    return "/srv/unit"


def fstab(machine: Machine, options: str) -> str:
    """A line of fstab that systemd has read, and its directory."""
    machine.run("mkdir -p /srv/files")
    machine.write("/etc/fstab", f"{URL} /srv/files nearline {options} 0 0\n")
    machine.run("systemctl daemon-reload")
    return "/srv/files"


def hold_open(machine: Machine, path: str, by: str = "") -> Callable[[], str]:
    """A process that has `path` open; call what is returned to end it."""
    pid = machine.run(f"{by} sh -c 'exec sleep 1000 <{path}' >/dev/null 2>&1 & echo $!").strip()
    wait_until(lambda: machine.run(f"readlink /proc/{pid}/fd/0", check=False).strip() == path, pid)
    return lambda: machine.run(f"kill {pid}")


def elsewhere(machine: Machine, name: str) -> str:
    """The checksum of `name` as the server has it: seen by another device."""
    machine.run("rm -rf /root/other* && mkdir /root/other")
    where = "--state /root/other-state --cache /root/other-cache"
    machine.run(f"{PROGRAM}/bin/nearline mount {URL} /root/other --account anna {where}")
    try:
        return machine.run(f"sha256sum </root/other/{name}")
    finally:
        machine.run(f"{PROGRAM}/bin/nearline umount /root/other")


def test_the_systems_unit_is_stopped_while_files_are_open(machine: Machine) -> None:
    at = system_unit(machine)
    machine.run(f"echo one >{at}/one")
    let_go = hold_open(machine, f"{at}/one")
    machine.run("systemctl stop nearline@drive")
    assert machine.state("nearline@drive") == "inactive"
    let_go()
    machine.run("systemctl start nearline@drive")
    assert machine.run(f"cat {at}/one") == "one\n"
    machine.run("systemctl restart nearline@drive")
    assert machine.run(f"cat {at}/one; systemctl --failed --no-legend") == "one\n"


def test_the_systems_unit_is_sent_before_the_server_stops(machine: Machine) -> None:
    at = system_unit(machine)
    wrote = machine.run(f"{MIB20} | tee {at}/last | sha256sum")
    machine.power_off()
    machine.forget("etc/systemd/system/multi-user.target.wants/nearline@drive.service")
    machine.boot()
    assert elsewhere(machine, "last") == wrote


def test_the_systems_unit_waits_for_no_server_that_is_away(machine: Machine) -> None:
    at = system_unit(machine)
    machine.run(f"systemctl stop nearline-server; echo unsent >{at}/unsent")
    machine.run("systemctl stop nearline@drive")
    assert machine.state("nearline@drive") == "inactive"
    assert "journal keeps the rest" in machine.run("journalctl --no-pager -u nearline@drive")
    machine.run("systemctl start nearline@drive nearline-server")
    assert machine.run(f"cat {at}/unsent") == "unsent\n"
    machine.run(f"{PROGRAM}/bin/nearline flush {at}")
    assert elsewhere(machine, "unsent") == machine.run(f"sha256sum <{at}/unsent")


def test_a_users_unit(machine: Machine) -> None:
    user = machine.run("id -u berta").strip()
    runtime = f"XDG_RUNTIME_DIR=/run/user/{user} HOME=/home/berta"
    berta = f"setpriv --reuid berta --regid berta --init-groups env {runtime}"
    machine.run(f"{berta} {PROGRAM}/bin/nearline {login(machine, 'berta')}")
    machine.run(f"{berta} {PROGRAM}/bin/python -I -m mount.units")
    machine.run(f"{berta} mkdir -p /home/berta/Nearline /home/berta/.config/nearline")
    lines = f"URL={URL}\nDIR=/home/berta/Nearline\nOPTIONS=account=berta\n"
    machine.write("/home/berta/.config/nearline/main.mount", lines)
    systemctl = f"{berta} systemctl --user"
    machine.run(f"{systemctl} daemon-reload && {systemctl} enable --now nearline@main")
    at = "/home/berta/Nearline"
    machine.run(f"{berta} sh -c 'echo hers >{at}/hers'")
    let_go = hold_open(machine, f"{at}/hers", berta)
    machine.run(f"{systemctl} stop nearline@main")
    assert machine.run(f"{systemctl} is-active nearline@main", check=False) == "inactive\n"
    let_go()
    machine.run(f"{systemctl} restart nearline@main")
    assert machine.run(f"{berta} cat {at}/hers") == "hers\n"
    machine.power_off()
    machine.boot()
    wait_until(
        lambda: machine.run(f"{berta} cat {at}/hers", check=False) == "hers\n",
        "berta's mount after the boot",
    )
    machine.run(f"{systemctl} disable --now nearline@main")


@pytest.mark.parametrize("auto", ["noauto", "auto"])
def test_a_line_with_automount(machine: Machine, auto: str) -> None:
    at = fstab(machine, f"{GOOD},{SAME},{auto},x-systemd.automount")
    machine.power_off()
    machine.boot()
    assert machine.state("srv-files.mount") == "inactive"
    machine.run(f"echo looked >{at}/looked")
    assert machine.state("srv-files.mount") == "active"
    let_go = hold_open(machine, f"{at}/looked")
    assert "busy" in machine.run("systemctl stop srv-files.mount; umount /srv/files", check=False)
    assert machine.run(f"cat {at}/looked") == "looked\n"
    let_go()
    machine.run("systemctl stop srv-files.mount", check=False)
    assert machine.state("srv-files.mount") in ("inactive", "failed")  # of the stop before
    assert machine.run(f"cat {at}/looked") == "looked\n"
    machine.run(f"umount {at}")
    machine.run("systemctl restart srv-files.mount")
    assert machine.run(f"cat {at}/looked") == "looked\n"


@pytest.mark.parametrize("options", [f"{GOOD},{SAME}", "account=anna"])
def test_a_line_that_is_mounted_at_boot(machine: Machine, options: str) -> None:
    """Also the bare one, for which the server is not there yet: the state is known by then."""
    at = fstab(machine, options)
    machine.run(f"mount {at}")
    wrote = machine.run(f"systemctl stop nearline-server; {MIB20} | tee {at}/unsent | sha256sum")
    machine.power_off()
    machine.boot()
    assert machine.run("systemctl is-system-running") == "running\n"
    machine.run(f"{PROGRAM}/bin/nearline flush {at}")
    assert machine.run(f"sha256sum <{at}/unsent") == wrote
    assert elsewhere(machine, "unsent") == wrote


def test_a_plug_that_is_pulled(machine: Machine) -> None:
    at = fstab(machine, f"{GOOD},{SAME}")
    machine.run(f"mount {at}; systemctl stop nearline-server")
    machine.run(f"echo kept >{at}/kept; sync {at}/kept")
    machine.pull_the_plug()
    machine.boot()
    assert machine.run(f"cat {at}/kept") == "kept\n"
    assert machine.run("systemctl is-system-running") == "running\n"


def test_autofs(machine: Machine) -> None:
    if not machine.run("command -v automount", check=False):
        pytest.skip("needs autofs on this machine")
    machine.write("/etc/auto.master", "/auto /etc/auto.nearline --timeout=1\n")
    url = URL.replace(":", "\\:")
    machine.write("/etc/auto.nearline", f"anna -fstype=nearline,account=anna :{url}\n")
    machine.run("mkdir -p /auto; systemctl start autofs")
    try:
        machine.run("echo auto >/auto/anna/auto")
        mounts = "findmnt -rno TARGET -t fuse.nearline"
        wait_until(lambda: not machine.run(mounts, check=False), "it expires")
        assert machine.run("cat /auto/anna/auto") == "auto\n"
    finally:
        machine.run("systemctl stop autofs")
    assert machine.run(mounts, check=False) == ""


FAR = "http://10.77.0.2:8750"
NETWORK = """
ip netns add far
ip link add near type veth peer name far netns far
ip addr add 10.77.0.1/24 dev near
ip link set near up
ip -n far addr add 10.77.0.2/24 dev far
ip -n far link set far up
ip -n far link set lo up
"""
DROP = "ip -n far route {} blackhole 10.77.0.1/32"  # whatever the server says is lost on the way


@pytest.fixture
def far(machine: Machine) -> Iterator[str]:
    """Where a server on another host is mounted, with two files of which nothing is here."""
    nearline = f"{PROGRAM}/bin/nearline"
    machine.run(f"set -e; {NETWORK}")
    machine.run(
        f"systemd-run -q --unit far --service-type=notify -p NetworkNamespacePath=/run/netns/far "
        f"{nearline} serve --data /srv/far --listen 10.77.0.2:8750 --insecure"
    )
    word = "--password-file /root/password"
    machine.run(f"{nearline} account add carl --data /srv/far {word}")
    machine.run(f"{nearline} login {FAR} --account carl --insecure {word}")
    mounting = f"{nearline} mount {FAR} /mnt/far --account carl --insecure --cache /srv/far-cache"
    machine.run(f"mkdir -p /mnt/far; {mounting}")
    machine.run("for i in 1 2; do head -c 300000 /dev/urandom >/mnt/far/cold$i; done")
    machine.run(f"{nearline} umount /mnt/far; rm -r /srv/far-cache; {mounting}; ls -l /mnt/far")
    try:
        yield "/mnt/far"
    finally:
        machine.run(f"{nearline} umount --now /mnt/far", check=False)
        machine.run("systemctl stop far; ip netns del far", check=False)


def test_a_host_whose_packets_are_dropped(machine: Machine, far: str) -> None:
    nearline = f"{PROGRAM}/bin/nearline"

    def is_now(state: str) -> bool:
        said = json.loads(machine.run(f"{nearline} status {far} --json"))
        return bool(said["state"] == state)

    machine.run(DROP.format("add"))
    assert "unreachable" in machine.run(f"cat {far}/cold1 | wc -c", check=False)
    wait_until(lambda: is_now("offline"), "it is known", SECONDS)
    for command in (f"cat {far}/cold2 | wc -c", f"{nearline} pin {far}/cold2"):
        said = machine.run(command, check=False)
        assert "unreachable" in said or "offline" in said
    machine.run(f"echo meanwhile >{far}/meanwhile")
    machine.run(DROP.format("del"))
    wait_until(lambda: is_now("online"), "it is heard again", SECONDS)
    stats = f"{nearline} cache stats {far} --json"
    wait_until(lambda: json.loads(machine.run(stats))["pinned_chunks"], "it is fetched", SECONDS)
    machine.run(f"{nearline} flush {far}")
    assert machine.run(f"cat {far}/cold1 | wc -c") == "300000\n"
