"""The whole way: a real mount is started on what power loss left, under the id of another boot.

`/proc/sys/kernel/random/boot_id` is another file in the mount namespace of the new daemon; its
folder is looked at through `/proc/PID/root`.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path
from random import Random

import pytest

from tests.power.disk import Loss, survivors
from tests.power.ledger import Seen
from tests.power.reboot import write_tree
from tests.power.recording import recording
from tests.power.workload import Person
from tests.system.harness import Device, Site, nearline, run, running, wait_until

pytestmark = pytest.mark.system

BOOT_ID = "/proc/sys/kernel/random/boot_id"
POINTS = int(os.environ.get("NEARLINE_POWER_REMOUNTS", "2"))
SEED = int(os.environ.get("NEARLINE_POWER_SEED", "1"))


def mount_after_reboot(site: Site, device: Device, boot: Path) -> int:
    """Mount in a mount namespace of its own; the daemon's process."""
    boot.write_text(f"{boot.name}\n")
    # Nobody else's mount is to go on for as long as this one.
    script = 'umount -a -l -t fuse.nearline; mount --bind "$1" "$2" && shift 2 && exec "$@"'
    command = [nearline(), "mount", site.server.url, str(device.at)]
    where = ["--state", str(device.state), "--cache", str(device.cache)]
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(boot), BOOT_ID, *command, *where]
    run(*words, env=site.env)
    return device.pid


def look_at(folder: Path) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    for above, directories, files in os.walk(folder):
        for name in directories + files:
            path = Path(above, name)
            status = path.lstat()
            names = [item for item in os.listxattr(path) if item != "user.nearline.status"]
            attributes = tuple(sorted((item, os.getxattr(path, item)) for item in names))
            body = None if stat.S_ISDIR(status.st_mode) else path.read_bytes()
            mode = stat.S_IMODE(status.st_mode)
            found[str(path.relative_to(folder))] = Seen(mode, attributes, body)
    return found


def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}/cwd").exists(), "the daemon is gone")


def test_a_mount_that_starts_after_power_loss_shows_what_was_promised(tmp_path: Path) -> None:
    with running() as site:
        device = site.device("a")
        with recording(device.state, tmp_path / "record") as disk:
            device.mount()
            os.listdir(device.at)
            usable = disk.position
            site.server.stop()
            person = Person(device.at, lambda: disk.position, Random(SEED))
            person.work(40)
            person.rest()
            device.kill()
            device.umount()
        events = disk.events()
        for seed in range(SEED * 1_000_000, SEED * 1_000_000 + POINTS):
            random = Random(seed)
            loss, position = Loss.any(random), random.randint(usable, len(events))
            print(f"position {position} seed {seed} {loss}")
            shutil.rmtree(device.state)
            write_tree(survivors(events[:position], loss, random), device.state)
            pid = mount_after_reboot(site, device, tmp_path / f"boot-{seed}")
            try:
                seen = look_at(Path(f"/proc/{pid}/root") / device.at.relative_to("/"))
            finally:
                end(pid)
            assert "the_machine_stopped" in device.log or loss.survival == 1.0
            assert person.ledger.complaint(seen, position) is None
