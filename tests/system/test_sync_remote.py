"""`--sync=remote`: when fsync or close has returned, the server has it; else they fail, and nothing
is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.http.api import ApiClient
from remote.protocol import messages
from remote.protocol.errors import Forbidden
from tests.system import harness
from tests.system.conftest import Proxied
from tests.system.faultproxy import Fault, FaultProxy
from tests.system.harness import Site, noise, wait_until


@pytest.fixture(scope="module")
def remote() -> Iterator[Proxied]:
    """`a` has `--sync=remote`; `b` has not."""
    port = harness.free_port()
    with (
        FaultProxy("127.0.0.1", port) as proxy,
        harness.running(public_url=proxy.url, port=port) as site,
    ):
        proxied = Proxied(site, proxy, site.device("a", "--sync", "remote"), site.device("b"))
        proxied.a.mount()
        proxied.b.mount()
        yield proxied


@pytest.fixture
def calm(remote: Proxied) -> Iterator[Proxied]:
    remote.proxy.forget()
    remote.b.comes_online()
    yield remote
    remote.proxy.forget()
    remote.a.comes_online()
    remote.a.flush()


def record(site: Site, *path: str) -> messages.FileRecord | None:
    """The file as the server has it now."""

    async def ask(client: ApiClient) -> messages.FileRecord | None:
        file = (await client.me()).root
        found = None
        for name in path:
            page = await client.children(file)
            children = {child.entry.name: child.file for child in page.children}
            found = children.get(name)
            if found is None:
                return None
            file = found.id
        return found

    return site.ask(ask)


def versions(site: Site, *path: str) -> list[int]:
    """The sizes of the file's versions, newest first."""
    found = record(site, *path)
    assert found is not None

    async def ask(client: ApiClient) -> list[int]:
        page = await client.versions(found.id, None)
        return [item.size for item in page.versions]

    return site.ask(ask)


def close_error(descriptor: int) -> int | None:
    try:
        os.close(descriptor)
    except OSError as error:
        return error.errno
    return None


def test_when_close_has_returned_the_server_has_it(calm: Proxied) -> None:
    (calm.a.at / "dir").mkdir()
    content = noise(3_000_000, 1)
    (calm.a.at / "dir" / "file").write_bytes(content)
    found = record(calm.site, "dir", "file")
    assert found is not None
    assert found.size == len(content)
    calm.b.sees("dir/file", content)
    with (calm.a.at / "dir" / "file").open("ab") as file:
        file.write(b"more")
    found = record(calm.site, "dir", "file")
    assert found is not None
    assert found.size == len(content) + 4
    assert calm.a.status()["journal"]["operations"] == 0


def test_when_fsync_has_returned_the_server_has_it(calm: Proxied) -> None:
    with (calm.a.at / "synced").open("wb") as file:
        for text in (b"one", b"two"):
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            found = record(calm.site, "synced")
            assert found is not None
            assert found.size == file.tell()


def test_fsync_of_a_directory_waits_for_the_names_in_it(calm: Proxied) -> None:
    """Whatever was done to a name: made, renamed, removed; also of a file that is still open."""
    where = calm.a.at / "names"
    where.mkdir()
    (where / "old").write_bytes(b"old")
    (where / "gone").write_bytes(b"gone")
    slow = calm.proxy.add(Fault("POST /v1/changes/apply", latency=0.5))
    (where / "sub").mkdir()
    (where / "old").rename(where / "new")
    (where / "gone").unlink()
    with (where / "open").open("wb") as file:
        file.write(b"written")
        file.flush()
        descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        slow.lift()
        names = {name: record(calm.site, "names", name) for name in ("sub", "new", "old", "gone")}
        assert [name for name, found in names.items() if found] == ["sub", "new"]
        assert record(calm.site, "names", "open") is not None


def test_a_shell_never_shows_the_empty_file(calm: Proxied) -> None:
    """It closes a duplicate before anything is written, and that close is not the end."""
    calm.site.cli("flush", calm.a.at)
    for number in range(3):
        script = f"echo first > f{number}; echo second > f{number}"
        subprocess.run(["sh", "-c", script], cwd=calm.a.at, check=True)
        assert versions(calm.site, f"f{number}") == [7, 6]


def test_not_either_while_another_file_is_closed(calm: Proxied) -> None:
    """A wait for one file does not hurry another that has nothing in it yet."""
    with (calm.a.at / "slow to come").open("wb") as file:
        (calm.a.at / "another").write_bytes(b"x")
        assert record(calm.site, "slow to come") is None
        file.write(b"at last")
    assert versions(calm.site, "slow to come") == [7]


def test_an_empty_file_is_there_after_fsync_and_soon_after_close(calm: Proxied) -> None:
    (calm.a.at / "touched").touch()
    wait_until(lambda: record(calm.site, "touched"), "the server has the empty file")
    descriptor = os.open(calm.a.at / "empty", os.O_WRONLY | os.O_CREAT)
    os.fsync(descriptor)
    assert record(calm.site, "empty") is not None
    os.close(descriptor)


def test_truncated_to_nothing_it_is_so_after_fsync(calm: Proxied) -> None:
    (calm.a.at / "cut").write_bytes(b"something")
    descriptor = os.open(calm.a.at / "cut", os.O_WRONLY)
    os.ftruncate(descriptor, 0)
    assert close_error(descriptor) is None
    assert versions(calm.site, "cut") == [0, 9]


def test_an_editors_save_is_there_when_the_editor_says_saved(calm: Proxied) -> None:
    """Temporary, fsync, rename over, fsync of the directory."""
    target = calm.a.at / "saved"
    target.write_bytes(b"before")
    before = record(calm.site, "saved")
    with (calm.a.at / ".saved.tmp").open("wb") as file:
        file.write(b"after")
        file.flush()
        os.fsync(file.fileno())
    (calm.a.at / ".saved.tmp").rename(target)
    descriptor = os.open(calm.a.at, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    after = record(calm.site, "saved")
    assert before is not None
    assert after is not None
    assert (after.id, after.size) == (before.id, 5)
    assert record(calm.site, ".saved.tmp") is None


def test_offline_it_fails_at_once_and_nothing_is_lost(calm: Proxied) -> None:
    (calm.a.at / "there").write_bytes(b"before")
    calm.proxy.cut()
    calm.a.goes_offline()
    descriptor = os.open(calm.a.at / "there", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"written offline")
    with pytest.raises(OSError, match=r".") as failed:
        os.fsync(descriptor)
    assert failed.value.errno == errno.ENETUNREACH
    assert close_error(descriptor) == errno.ENETUNREACH
    assert (calm.a.at / "there").read_bytes() == b"written offline"
    assert calm.a.status()["journal"]["operations"] > 0
    calm.proxy.mend()
    calm.b.sees("there", b"written offline")


def test_who_waits_when_the_network_goes_is_told(calm: Proxied) -> None:
    """The bytes were on their way."""
    stalled = calm.proxy.add(Fault("POST /v1/(files|changes/apply)", stall=True))
    failed: list[int | None] = []

    def save() -> None:
        descriptor = os.open(calm.a.at / "under way", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, noise(200_000, 2))
        failed.append(close_error(descriptor))

    writer = threading.Thread(target=save)
    writer.start()
    wait_until(lambda: stalled.befell, "the mount is sending")
    calm.proxy.cut()
    writer.join(90)
    assert failed == [errno.ENETUNREACH]
    calm.proxy.forget()
    calm.b.sees("under way", noise(200_000, 2))


def test_what_the_server_refuses_is_an_io_error_and_kept(calm: Proxied) -> None:
    """Changed once more, it is asked for again."""
    no = calm.proxy.add(Fault("^POST /v1/files", problem=Forbidden(message="not here")))
    descriptor = os.open(calm.a.at / "refused", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"bytes")
    with pytest.raises(OSError, match=r".") as failed:
        os.fsync(descriptor)
    assert failed.value.errno == errno.EIO
    assert close_error(descriptor) == errno.EIO
    assert (calm.a.at / "refused").read_bytes() == b"bytes"
    assert os.getxattr(calm.a.at / "refused", "user.nearline.status") == b"error"
    assert [item["path"] for item in calm.a.status()["refused"]] == ["refused"]
    assert record(calm.site, "refused") is None
    no.lift()
    (calm.a.at / "not refused").write_bytes(b"x")
    assert record(calm.site, "not refused") is not None
    (calm.a.at / "refused").chmod(0o640)
    descriptor = os.open(calm.a.at / "refused", os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)
    assert versions(calm.site, "refused") == [5]


def test_after_a_crash_while_waiting_it_is_sent(site: Site) -> None:
    """The one who was waiting was told nothing; the next mount sends it, and goes on promising."""
    device = site.device("a", "--sync", "remote")
    device.mount()
    (device.at / "before").write_bytes(b"before")
    site.server.stop()
    device.goes_offline()
    descriptor = os.open(device.at / "waiting", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"waiting")
    assert close_error(descriptor) == errno.ENETUNREACH
    device.kill()
    device.umount()
    device.mount()
    device.goes_offline()
    descriptor = os.open(device.at / "waiting", os.O_WRONLY)
    with pytest.raises(OSError, match="unreachable"):
        os.fsync(descriptor)
    site.server.start()
    device.comes_online()
    os.fsync(descriptor)
    assert close_error(descriptor) is None
    assert record(site, "waiting") is not None
    with contextlib.suppress(FileNotFoundError):
        Path(device.at / "before").unlink()
    (device.at / "after").write_bytes(b"after")
    assert record(site, "after") is not None
