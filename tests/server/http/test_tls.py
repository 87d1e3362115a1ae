"""TLS of the server's own, and where it may listen without."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from mount.cli import main
from remote.http.api import ApiClient
from remote.protocol.errors import Unreachable
from remote.protocol.messages import LoginRequest
from server.accounts.accounts import add_account
from server.http.listen import check_safe, listening, public_url
from server.http.tls import Certificate
from server.main import serve
from server.settings import BadSettings, Settings, Tunables
from tests.server.harness import until

ROOT = Path(__file__).parents[3]


class Files:
    """A certificate authority, and a certificate of it in files."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.trusted = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.trusted)
        self.renew()

    def renew(self) -> None:
        issued = self.authority.issue_cert("127.0.0.1")
        self.cert.write_bytes(b"".join(item.bytes() for item in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.key)

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def serving(data: Path, *options: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nearline serve`; gives its URL."""
    command = [sys.executable, "-m", "mount.cli", "serve", "--data", data]
    with (data.parent / "server.log").open("a") as log:
        running = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert running.stdout is not None
    try:
        yield running, running.stdout.readline().removeprefix("Nearline serves at").strip()
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def certificate_of(url: str, files: Files) -> bytes:
    """The certificate that a new connection is shown, which is a good one."""
    host, port = url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        files.context().wrap_socket(plain, server_hostname=host) as sock,
    ):
        shown = sock.getpeercert(binary_form=True)
        assert sock.version() in ("TLSv1.2", "TLSv1.3")
    assert shown is not None
    return shown


@pytest.mark.slow
def test_a_client_logs_in_over_tls_and_a_new_certificate_is_taken(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    add_account(data, "anna", "a secret")

    async def log_in(url: str) -> str:
        async with ApiClient(url, None) as client:
            token = (await client.login(LoginRequest("anna", "a secret", "here"))).token
            return (await client.with_token(token).me()).account

    with serving(data, "--tls-cert", files.cert, "--tls-key", files.key) as (running, url):
        assert url.startswith("https://127.0.0.1:")
        with pytest.raises(Unreachable, match="not trusted"):
            trio.run(log_in, url)
        monkeypatch.setenv("SSL_CERT_FILE", str(files.trusted))
        assert trio.run(log_in, url) == "anna"
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https:", "http:") + "/healthz")
        got = httpx.get(f"{url}/healthz", verify=files.context())
        assert got.headers["strict-transport-security"]
        old = certificate_of(url, files)
        files.renew()
        running.send_signal(signal.SIGHUP)
        until(lambda: certificate_of(url, files) != old)
        new = certificate_of(url, files)
        log = tmp_path / "server.log"
        files.cert.write_text("nonsense")
        running.send_signal(signal.SIGHUP)
        until(lambda: "certificate_not_reloaded" in log.read_text())
        assert certificate_of(url, files) == new


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_protocols_are_not_spoken(files: Files) -> None:
    context = Certificate(files.cert, files.key).context
    shake_hands(files.context(), context)
    old = files.context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shake_hands(old, context)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A handshake in memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(back, there, server_hostname="127.0.0.1"),
        server.wrap_bio(there, back, server_side=True),
    ]
    for side in sides * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert sides[0].version() is not None


def test_certificates_that_cannot_be_used_are_said_so(files: Files, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="PEM"):
        Certificate(tmp_path / "nothing.pem", files.key)
    with pytest.raises(BadSettings, match="PEM"):
        Certificate(files.cert, files.trusted)
    other = trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes()
    files.key.write_bytes(other)
    with pytest.raises(BadSettings, match="PEM"):
        Certificate(files.cert, files.key)
    for half in ({"tls_cert": files.cert}, {"tls_key": files.key}):
        with pytest.raises(BadSettings, match="both"):
            serve(tmp_path / "data", "127.0.0.1:0", **half)
    config = tmp_path / "config.toml"
    config.write_text(f'tls_cert = "{files.cert}"')
    with pytest.raises(BadSettings, match="both"):
        serve(tmp_path / "data", "127.0.0.1:0", config=config)


# --- where to listen ----------------------------------------------------------------------------


def test_other_machines_are_not_served_without_tls(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="--tls-cert"):
        serve(tmp_path / "data", "0.0.0.0:0", "http://files.example")
    assert not (tmp_path / "data" / "nearline.sqlite").exists()


def test_what_makes_it_safe_to_listen(tmp_path: Path) -> None:
    no = {"tls": False, "proxied": False, "insecure": False}
    with listening("0.0.0.0:0") as sock:
        with pytest.raises(BadSettings):
            check_safe(sock, **no)
        for good in no:
            check_safe(sock, **no | {good: True})
    with listening("127.0.0.1:0") as sock:
        check_safe(sock, **no)


def test_the_public_url() -> None:
    with listening("0.0.0.0:0") as sock:
        with pytest.raises(BadSettings, match="--public-url"):
            public_url(sock, None, tls=True)
        assert public_url(sock, "https://files.example/", tls=True) == "https://files.example"
    with listening("127.0.0.1:0") as sock:
        port = sock.getsockname()[1]
        assert public_url(sock, None, tls=False) == f"http://127.0.0.1:{port}"
        assert public_url(sock, None, tls=True) == f"https://127.0.0.1:{port}"
        with pytest.raises(BadSettings, match="https"):
            public_url(sock, "http://files.example", tls=True)


def test_trusted_proxies_are_addresses(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="trusted_proxies"):
        Settings(tmp_path, "http://h", Tunables(trusted_proxies=("proxy.example",)))


def test_the_command_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving = ["serve", "--data", str(tmp_path / "data")]
    assert main([*serving, "--tls-cert", "cert.pem"]) == 2
    assert "--tls-key" in capsys.readouterr().err
    assert main([*serving, "--listen", "0.0.0.0:0", "--public-url", "http://h"]) == 1
    assert "--insecure" in capsys.readouterr().err
    assert main([*serving, "--listen", "0.0.0.0:0", "--insecure"]) == 1
    assert "--public-url" in capsys.readouterr().err
