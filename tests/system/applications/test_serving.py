"""Programs that read: servers, players, searches. On the second device, which has nothing yet."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.system.applications.trees import arrives
from tests.system.conftest import Pair
from tests.system.harness import noise, run, wait_until

KIB, MIB = 1 << 10, 1 << 20


class Handler(SimpleHTTPRequestHandler):
    """Python's, with sendfile(2), as nginx and others do it."""

    def copyfile(self, source: BinaryIO, outputfile: Any) -> None:  # type: ignore[override]
        self.wfile.flush()
        offset, size = 0, os.fstat(source.fileno()).st_size
        while offset < size:
            sent = os.sendfile(self.connection.fileno(), source.fileno(), offset, size - offset)
            assert sent
            offset += sent

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture
def served(pair: Pair) -> Iterator[HTTPConnection]:
    """The files of `b`, by HTTP."""

    def handler(*words: Any) -> Handler:
        return Handler(*words, directory=str(pair.b.at))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = HTTPConnection(*server.server_address[:2])  # type: ignore[misc]  # host, port
        try:
            yield client
        finally:
            client.close()
            server.shutdown()
            thread.join()


def fetched(client: HTTPConnection, path: str) -> bytes:
    client.request("GET", path)
    answer = client.getresponse()
    assert answer.status == 200
    return answer.read()


def test_a_web_server_sends_files_by_sendfile(pair: Pair, served: HTTPConnection) -> None:
    """Cold, from the cache, and after another device has saved."""
    (pair.a.at / "www").mkdir()
    contents = {f"page{number}": noise(number * 700 * KIB + 1, number) for number in range(4)}
    for name, content in contents.items():
        (pair.a.at / "www" / name).write_bytes(content)
    pair.a.flush()
    pair.b.sees("www/page3")
    for _turn in range(2):
        for name, content in contents.items():
            assert fetched(served, f"/www/{name}") == content
    changed = noise(300 * KIB, 9)
    (pair.a.at / "www" / "page1").write_bytes(changed)
    pair.a.flush()
    wait_until(lambda: fetched(served, "/www/page1") == changed, "the new page")


def test_a_mount_receives_from_a_socket_by_splice(pair: Pair) -> None:
    (pair.a.at / "received").mkdir()
    content = noise(2 * MIB + 5, 20)
    one, other = socket.socketpair()
    sender = threading.Thread(target=lambda: (one.sendall(content), one.close()))
    sender.start()
    reading, writing = os.pipe()
    with other, (pair.a.at / "received" / "file").open("wb") as file:
        while count := os.splice(other.fileno(), writing, 64 * KIB):
            while count:
                count -= os.splice(reading, file.fileno(), count)
    sender.join()
    for descriptor in (reading, writing):
        os.close(descriptor)
    assert (arrives(pair, "received") / "file").read_bytes() == content


def test_a_player_that_looks_at_the_end_first_fetches_little(pair: Pair) -> None:
    """As ffprobe does with a film: the index at the end, then the beginning, then here and
    there."""
    size = 48 * MIB
    parts = [noise(MIB, 100 + number) for number in range(8)]
    with (pair.a.at / "film").open("wb") as file:
        for number in range(size // MIB):  # each MiB another
            file.write(number.to_bytes(8, "big") + parts[number % 8][8:])
    pair.a.flush()
    film = pair.b.sees("film")
    wait_until(lambda: film.stat().st_size == size, "all of the film")

    def expected(offset: int, count: int) -> bytes:
        first, last = offset // MIB, (offset + count - 1) // MIB
        whole = b"".join(n.to_bytes(8, "big") + parts[n % 8][8:] for n in range(first, last + 1))
        return whole[offset - first * MIB :][:count]

    before = pair.b.downloaded
    with film.open("rb") as file:
        for offset, count in (
            (size - 64 * KIB, 64 * KIB),
            (0, 64 * KIB),
            (size // 2 + 123, 4 * KIB),
            (size // 3, 32 * KIB),
            (size - 10, 10),
        ):
            file.seek(offset)
            assert file.read(count) == expected(offset, count), offset
    assert pair.b.downloaded - before < size / 4


def test_find_and_grep_see_everything_once(pair: Pair) -> None:
    """Also where find trusts the number of links of a directory (its leaf optimisation)."""
    place = pair.a.at / "searched"
    for number in range(120):
        directory = place / f"d{number % 6}" / f"e{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        word = "needle" if number % 40 == 7 else "hay"
        (directory / f"f{number}").write_text(f"{word} {number}\n" * (1 + number % 30))
    (place / "big").write_bytes(bytes(300 * KIB))
    os.link(place / "big", place / "d1" / "the same")
    (place / "link").symlink_to("d1")
    theirs = arrives(pair, "searched")
    for at in (place, theirs):
        searches(at)


def searches(at: Path) -> None:
    def find(*words: str) -> list[str]:
        return sorted(run("find", ".", *words, cwd=at).stdout.splitlines())

    assert len(find("-type", "f")) == 122
    assert len(find("-type", "d")) == 1 + 6 + 6  # in each of `d0` to `d5` one more
    two_names = ["./big", "./d1/the same"]
    assert find("-size", "+200k") == find("-links", "2", "-type", "f") == two_names
    assert find("-samefile", "big") == two_names
    assert find("-type", "l") == ["./link"]
    assert len(find("-name", "f1*")) == 31
    assert find("-newermt", "2100-01-01") == []
    hits = sorted(run("grep", "-rl", "needle", ".", cwd=at).stdout.split())
    assert hits == sorted(f"./d{n % 6}/e{n % 3}/f{n}" for n in (7, 47, 87))
    assert run("grep", "-rc", "nowhere", ".", cwd=at, check=False).returncode == 1
