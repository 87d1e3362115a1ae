"""mount/control/server.py and its client, over a real socket with a made-up mount."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import trio
from msgspec import json

from mount.control import client, messages, server
from mount.failures import Failure
from tests.mount.asking import serve


class FakeMount:
    """Answers as told; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.flushing = trio.Event()
        self.cancelled = trio.Event()
        self.finish = trio.Event()

    def status(self) -> messages.Status:
        return messages.Status(
            state="online", mountpoint="/m", url="http://localhost", account="ann", pid=os.getpid()
        )

    async def flush(self, report: server.Report, unless_offline: bool) -> None:
        self.flushing.set()
        await report(messages.Progress(files_done=1, files_total=2, bytes_done=3, bytes_total=4))
        try:
            await self.finish.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        await report(messages.Progress(files_done=2, files_total=2, bytes_done=4, bytes_total=4))

    async def retry(self, path: str, report: server.Report) -> str:
        self.asked.append(("retry", path))
        await self.finish.wait()
        return "all taken"

    async def stop(self, flush: bool) -> None:
        self.asked.append(("stop", flush))

    async def pin(self, path: str, report: server.Report) -> None:
        raise Failure(f"{path} is not there")

    async def unpin(self, path: str) -> None:
        raise OSError(2, "No such file or directory", path)

    async def warm(self, path: str, report: server.Report) -> None:
        raise KeyError(path)

    def cache_stats(self) -> messages.CacheStats:
        return messages.CacheStats(bytes=5, limit=10)

    async def cache_clear(self) -> int:
        return 42

    def limit(self, request: messages.LimitRequest) -> messages.TransferLimits:
        self.asked.append(request)
        return messages.TransferLimits(up=None, down=9000, transfers=3)


@pytest.fixture
async def mount(tmp_path: Path, nursery: trio.Nursery) -> tuple[FakeMount, Path]:
    fake, path = FakeMount(), tmp_path / "control.sock"
    await nursery.start(serve, path, fake)
    return fake, path


async def _ask(path: Path, request: messages.Request, **how: object) -> object:
    call = partial(client.ask, path, request, **how)
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def test_status_is_answered(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    assert await _ask(path, messages.StatusRequest()) == fake.status()


async def test_flush_reports_until_it_is_done(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    seen: list[messages.Progress] = []
    fake.finish.set()
    answer = await _ask(path, messages.FlushRequest(), on_progress=seen.append)
    assert answer == messages.Done()
    assert [progress.files_done for progress in seen] == [1, 2]


async def test_retry_is_answered_with_what_came_of_it(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    with pytest.raises(client.MountRefused) as caught:
        await _ask(path, messages.RetryRequest("a/b", timeout=0.01))
    assert caught.value.timed_out
    fake.finish.set()
    assert await _ask(path, messages.RetryRequest("a/b")) == messages.Done("all taken")
    assert fake.asked == [("retry", "a/b")] * 2


async def test_limits_are_asked_for_by_what_is_said(mount: tuple[FakeMount, Path]) -> None:
    """No limit is said too; what is not said is left as it is."""
    fake, path = mount
    requests = [
        messages.LimitRequest(),
        messages.LimitRequest(up=None, transfers=3),
        messages.LimitRequest(down=9000),
    ]
    for request in requests:
        answer = await _ask(path, request)
        assert answer == messages.TransferLimits(up=None, down=9000, transfers=3)
    assert fake.asked == requests


@pytest.mark.parametrize("said", [{"up": 8191}, {"down": 0}, {"transfers": 0}, {"transfers": 17}])
async def test_limits_that_cannot_be(mount: tuple[FakeMount, Path], said: dict[str, int]) -> None:
    fake, path = mount
    with pytest.raises(client.MountRefused, match="not a request"):
        await _ask(path, messages.LimitRequest(**said))  # type: ignore[arg-type]  # by name
    assert fake.asked == []


async def test_flush_fails_when_time_is_up(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    with pytest.raises(client.MountRefused) as caught:
        await _ask(path, messages.FlushRequest(timeout=0.01))
    assert caught.value.timed_out
    assert fake.cancelled.is_set()


async def test_an_asker_that_leaves_cancels_its_call(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    stream = await trio.open_unix_socket(str(path))
    await stream.send_all(messages.encode(messages.FlushRequest()))
    await fake.flushing.wait()
    await stream.aclose()
    with trio.fail_after(60):
        await fake.cancelled.wait()
    assert await _ask(path, messages.CacheClearRequest()) == messages.Done("42")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (messages.PinRequest("a"), "a is not there"),
        (messages.UnpinRequest("a"), "No such file"),
        (messages.WarmRequest("a"), "KeyError inside the mount"),
    ],
)
async def test_failures_are_answers_and_do_not_end_the_mount(
    mount: tuple[FakeMount, Path], request_: messages.Request, words: str
) -> None:
    _, path = mount
    with pytest.raises(client.MountRefused, match=words):
        await _ask(path, request_)
    assert await _ask(path, messages.CacheStatsRequest()) == messages.CacheStats(bytes=5, limit=10)


async def test_stop_passes_its_flag(mount: tuple[FakeMount, Path]) -> None:
    fake, path = mount
    await _ask(path, messages.StopRequest(flush=False))
    assert fake.asked == [("stop", False)]


@pytest.mark.parametrize("line", [b"{}\n", b"not json\n", b'{"type":"format-disk"}\n', b"\n"])
async def test_what_is_no_request_is_refused(mount: tuple[FakeMount, Path], line: bytes) -> None:
    _, path = mount
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(line)
        answer = messages.decode_answer(await stream.receive_some(65536))
    assert isinstance(answer, messages.Failed)
    assert answer.kind == "usage"


async def test_an_endless_line_is_cut_off(mount: tuple[FakeMount, Path]) -> None:
    _, path = mount
    async with await trio.open_unix_socket(str(path)) as stream:
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * (64 << 20))
    assert isinstance(await _ask(path, messages.StatusRequest()), messages.Status)


async def test_the_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with server.listening(path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_a_socket_left_by_a_crash_is_replaced(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "control.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert not client.answers(path)
    await nursery.start(serve, path, FakeMount())
    assert await trio.to_thread.run_sync(client.answers, path)


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(client.NotAnswering, match="does not answer"):
        client.status(tmp_path / "control.sock")


async def test_a_socket_is_in_the_state_directory_however_long_its_path(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """So nobody else can take its name: no directory that all users share is needed."""
    state = tmp_path / ("x" * 120)
    state.mkdir()
    path = messages.socket_path(state)
    assert path.parent == state
    fake = FakeMount()
    await nursery.start(serve, path, fake)
    assert await _ask(path, messages.StatusRequest()) == fake.status()
    assert await trio.to_thread.run_sync(client.answers, path)


async def test_a_socket_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.mkdir()
    with pytest.raises(Failure, match="give another --state"):
        async with server.listening(path):
            pass


def test_the_status_schema_only_grows() -> None:
    """Scripts read these fields of `nearline status --json`; remove nothing here."""
    plain = json.decode(
        json.encode(
            messages.Status(
                state="online",
                mountpoint="/m",
                url="u",
                account="a",
                pid=1,
                uploads=[messages.UploadStatus("p", 1, 2)],
                refused=[messages.RefusedStatus("p", "write", "quota")],
            )
        )
    )
    assert {"state", "mountpoint", "url", "account", "pid", "reason"} <= plain.keys()
    assert plain["journal"].keys() >= {"operations", "bytes"}
    assert plain["uploads"][0].keys() >= {"path", "bytes_done", "bytes_total", "error"}
    assert plain["refused"][0].keys() >= {"path", "operation", "error"}
    assert plain["refused"][0].keys() >= {"since_ns", "waiting", "advice"}
    assert plain["cache"].keys() >= {"bytes", "limit"}
    assert plain["transferred"].keys() >= {"downloaded_bytes", "uploaded_bytes", "requests"}
    assert plain["feed"].keys() >= {"mode", "lag_seconds"}
