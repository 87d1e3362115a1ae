"""The proxy that docs/admin-guide.md shows works as written."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import structlog
import trustme
from websockets.sync.client import connect

from tests.ports import free_port
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk, noise, until
from tests.server.linking import links_of, make_link, revoke

ROOT = Path(__file__).parents[3]
PLACES = ["/usr/sbin", "/usr/local/sbin", "/usr/bin", f"{sys.prefix}/nginx/usr/sbin"]
NGINX = shutil.which("nginx", path=":".join(PLACES))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


def shown() -> str:
    page = (ROOT / "docs" / "admin-guide.md").read_text()
    found = re.search(r"```nginx\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def proxied(server: Running, directory: Path, port: int) -> Iterator[ssl.SSLContext]:
    """nginx on `port` in front of `server`; gives what a client has to trust."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(b"".join(item.bytes() for item in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    site = (
        shown()
        .replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        .replace("127.0.0.1:8750", server.url.removeprefix("http://"))
        .replace("/etc/ssl/files.example.org.pem", str(cert))
        .replace("/etc/ssl/files.example.org.key", str(key))
    )
    temporary = "".join(
        f"{what}_temp_path {directory}/{what};\n"
        for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors;\n"
        f"events {{}}\nhttp {{\naccess_log {directory}/access;\n{temporary}{site}\n}}\n"
    )
    command = [NGINX or "", "-p", str(directory), "-c", str(directory / "nginx.conf")]
    tried = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=20, check=False
    )
    assert tried.returncode == 0, tried.stderr
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        until(lambda: answers(port))
        yield context
    finally:
        running.terminate()
        running.wait(60)


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_the_proxy_of_the_guide(start: Start, tmp_path: Path) -> None:
    port = free_port()
    origin = f"https://127.0.0.1:{port}"
    with structlog.testing.capture_logs() as seen:
        server = start(origin=origin, trusted_proxies=["127.0.0.1"])
        anna = server.account("anna")
        with proxied(server, tmp_path, port) as context:
            transport = httpx.HTTPTransport(verify=context, local_address="127.0.0.2")
            with httpx.Client(base_url=origin, transport=transport) as http:
                use(Client(http, anna.token), origin)
            listen_live(anna, origin, context)
        until(lambda: any(item.get("status") == 101 for item in seen))
    through = [item["address"] for item in seen if item.get("id") == "through"]
    assert through == ["127.0.0.2"]


def test_visitors_go_on_through_the_proxy(start: Start, tmp_path: Path) -> None:
    """HEAD, ranges, and the last download of a limited link, which breaks off and is finished."""
    port = free_port()
    origin = f"https://127.0.0.1:{port}"
    server = start(origin=origin, trusted_proxies=["127.0.0.1"])
    token = server.account("anna").token
    chunk = make_chunk(noise(3_000_000, "proxied"))
    with (
        proxied(server, tmp_path, port) as context,
        httpx.Client(base_url=origin, verify=context) as http,
        httpx.Client(base_url=origin, verify=context) as hers,
    ):
        anna = Client(hers, token)
        anna.refresh()
        file, version = anna.store("film", chunk)
        made = make_link(anna, file, max_downloads=1)
        download = f"{made.url}/{file}/download"
        signed = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
        for url in (f"{origin}/healthz", made.url, download, signed):
            assert http.head(url).status_code in (200, 303), url
        assert links_of(anna).links[0].downloads == 0
        assert http.get(signed, headers={"Range": "bytes=5-9"}).content == chunk.data[5:10]
        content = http.get(download).headers["location"]
        assert content.startswith(f"{origin}/content/")
        assert http.get(download).status_code == 404
        told = http.head(content)
        assert told.headers["accept-ranges"] == "bytes"
        size = int(told.headers["content-length"])
        with http.stream("GET", content) as broken:
            first = next(broken.iter_bytes(100_000))
        onward = {"Range": f"bytes={len(first)}-", "If-Range": told.headers["etag"]}
        rest = http.get(content, headers=onward)
        assert rest.status_code == 206
        assert rest.headers["content-range"] == f"bytes {len(first)}-{size - 1}/{size}"
        assert first + rest.content == noise(3_000_000, "proxied")
        assert links_of(anna).links[0].downloads == 1
        revoke(anna, made.link.id)
        assert http.get(content, headers=onward).status_code == 404


def use(anna: Client, origin: str) -> None:
    headers = {"X-Request-Id": "through", "X-Forwarded-For": "6.6.6.6"}
    assert anna.http.get("/v1/me", headers=headers).status_code == 401
    anna.refresh()
    chunk = make_chunk(noise(3_000_000, "proxied"))
    file, version = anna.store("a", chunk)
    url = anna.locate(file=file, version=version, chunks=[chunk.id]).chunks[0].url
    assert url.startswith(f"{origin}/chunks/")
    assert anna.http.get(url).content == chunk.data
    assert anna.http.get(url + "x").status_code == 403
    double = url.replace("/chunks/", "/chunks//")
    assert anna.http.get(double).status_code == 400
    assert anna.http.get("/healthz").headers["strict-transport-security"]


def listen_live(anna: Client, origin: str, context: ssl.SSLContext) -> None:
    url = f"{origin.replace('https', 'wss')}/v1/changes/live"
    headers = {"Authorization": f"Bearer {anna.token}"}
    with connect(url, additional_headers=headers, ssl=context) as sock:
        assert sock.recv(timeout=60)
        anna.make("b")
        assert sock.recv(timeout=60)
