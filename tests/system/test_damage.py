"""Damage to what a real mount keeps on this machine: everything that can be read goes on."""

from __future__ import annotations

import errno
import json
import sqlite3
from pathlib import Path

import pytest

from tests.system.harness import Device, Site, noise, wait_until
from tests.system.selection import some

PAGE = 4096


def errno_of(path: Path) -> int:
    with pytest.raises(OSError, match=r".") as failed:
        path.read_bytes()
    return failed.value.errno or 0


@pytest.fixture
def device(site: Site) -> Device:
    """A mount that has sent something, and that its server has left."""
    device = site.device("a")
    device.mount()
    (device.at / "sent").write_bytes(noise(100_000, 1))
    device.flush()
    site.server.stop()
    device.goes_offline()
    return device


def save(device: Device, files: int) -> dict[str, bytes]:
    made = {f"dir {n % 7}/file {n}": noise(9000, n) for n in range(files)}
    for name, content in made.items():
        path = device.at / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return made


def end(device: Device) -> None:
    device.kill()
    device.umount()


def put_log_away(state: Path) -> None:
    """Move the log into the database, as a mount does now and then."""
    with sqlite3.connect(state / "tree.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def spool_file(state: Path, name: str) -> Path:
    with sqlite3.connect(state / "tree.sqlite") as db:
        query = "SELECT layer.id FROM layer JOIN entry USING (ino) WHERE name = ?"
        (layer,) = db.execute(query, (name,)).fetchone()
    db.close()
    return state / "spool" / f"{layer}.layer"


def content(site: Site, name: str) -> dict[str, bytes]:
    """The files that another device sees."""
    other = site.device(name)
    other.mount()
    return {
        str(path.relative_to(other.at)): path.read_bytes()
        for path in other.at.rglob("*")
        if path.is_file()
    }


def test_a_damaged_database_is_salvaged_and_everything_arrives(site: Site, device: Device) -> None:
    made = save(device, 120)
    end(device)
    put_log_away(device.state)
    tree = device.state / "tree.sqlite"
    data = bytearray(tree.read_bytes())
    middle = len(data) // PAGE // 2 * PAGE
    data[middle : middle + 2 * PAGE] = noise(2 * PAGE, 5)
    tree.write_bytes(data)

    device.mount()
    [directory] = device.state.glob("quarantine-*")
    assert (directory / "tree.sqlite").read_bytes() == bytes(data)
    assert device.status()["quarantined"] == [str(directory)]
    assert "state_salvaged" in device.log
    said = site.cli("doctor", check=False).stdout
    assert f"damaged state was put aside in {directory}" in said
    assert str(directory) in site.cli("status", str(device.at)).stdout

    site.server.start()
    device.comes_online()
    device.flush()
    seen = content(site, "b")
    assert seen["sent"] == noise(100_000, 1)
    lost = [name for name, dirty in made.items() if dirty not in seen.values()]
    assert not lost
    assert {name for name in seen if name in made} == {
        name for name in made if (device.at / name).exists()
    }


def test_a_damaged_log_is_salvaged_and_everything_arrives(site: Site, device: Device) -> None:
    """SQLite would drop everything behind the first wrong byte without a word."""
    made = save(device, 60)
    end(device)
    log = device.state / "tree.sqlite-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data)

    device.mount()
    assert list(device.state.glob("quarantine-*"))
    for name, dirty in made.items():
        assert (device.at / name).read_bytes() == dirty, name
    site.server.start()
    device.comes_online()
    device.flush()
    seen = content(site, "b")
    assert {name: seen.get(name) for name in made} == made


def test_damaged_dirty_bytes_are_errors_and_others_go_on(site: Site, device: Device) -> None:
    made = save(device, 6)
    (device.state / "spool" / "notes.txt").write_text("not ours")
    end(device)
    bad = ["dir 0/file 0", "dir 1/file 1"]
    gone, cut = (spool_file(device.state, Path(name).name) for name in bad)
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])

    device.mount()
    for name in bad:
        assert errno_of(device.at / name) == errno.EIO
    good = {name: dirty for name, dirty in made.items() if name not in bad}
    for name, dirty in good.items():
        assert (device.at / name).read_bytes() == dirty
    assert (device.state / "spool" / "notes.txt").read_text() == "not ours"

    site.server.start()
    device.comes_online()
    wait_until(lambda: len(device.status()["refused"]) == 2, "the damaged ones are refused")
    assert all("damaged" in item["error"] for item in device.status()["refused"])
    seen = content(site, "b")
    assert {name: seen[name] for name in good} == good
    assert not set(bad) & set(seen), "nobody sees a file with holes"


def test_a_state_of_a_newer_program_is_refused(site: Site, device: Device) -> None:
    end(device)
    with sqlite3.connect(device.state / "tree.sqlite") as db:
        db.execute("ALTER TABLE op ADD COLUMN colour TEXT")
        db.execute("PRAGMA user_version = 99")
    db.close()
    refused = device.mount(check=False)
    assert refused.returncode == 1
    assert "newer version of Nearline" in refused.stderr
    assert not list(device.state.glob("quarantine-*"))


@pytest.mark.parametrize("harm", some(["flipped", "cut", "foreign", "empty", "state"], 2))
def test_a_damaged_block_cache_is_begun_anew(site: Site, harm: str) -> None:
    device = site.device("a")
    device.mount()
    saved = noise(3_000_000, 1)
    (device.at / "file").write_bytes(saved)
    device.flush()
    device.umount()
    blocks = device.cache / "blocks"
    (blocks / "notes.txt").write_text("not ours")
    data = blocks / "map" / "data.mdb"
    if harm == "state":
        (blocks / "state.json").write_bytes(b"\xff" * 50)
    elif harm == "flipped":
        spoiled = bytearray(data.read_bytes())
        spoiled[: 16 * PAGE] = noise(16 * PAGE, 7)
        data.write_bytes(spoiled)
    else:
        data.write_bytes(
            {"cut": data.read_bytes()[: 5 * PAGE + 7], "foreign": b"SQLite format 3\0" * 999}.get(
                harm, b""
            )
        )
    device.mount()
    assert (device.at / "file").read_bytes() == saved
    assert (blocks / "notes.txt").read_text() == "not ours"


@pytest.mark.parametrize("which", ["identity.json", "logins.json"])
def test_damaged_settings_are_said(site: Site, which: str) -> None:
    device = site.device("a")
    device.mount()
    device.umount()
    home = site.home / ".config" / "nearline" / "credentials"
    path = device.state / which if which == "identity.json" else home / which
    json.loads(path.read_text())
    path.write_bytes(b"\xff\xfe{")
    refused = device.mount(check=False)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    what = str(path) if which == "identity.json" else "nearline login"
    assert what in refused.stderr
