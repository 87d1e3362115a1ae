"""The server's keys: what somebody can do with a copy of them, and exchanging them under way."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mount.cli import main
from remote.protocol import signing
from remote.protocol.signing import LONGEST_SECONDS, BadSignature
from server.links.signing import COOKIE_SECONDS, LinkSigner, Wanted
from server.maintenance import admin
from server.permissions import audit
from server.settings import BadSettings, Settings, read_config
from server.storage import keys
from server.storage.blobs import BlobKey, Head
from server.storage.keys import CURSOR_SECONDS, URL_SECONDS, BadKey, load_keys, rotate_keys
from server.storage.signer import UrlSigner
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk, new_id, noise, until

NOW = 1_800_000_000
NS = 10**9
ORIGIN = "https://h"
KEY = BlobKey("d" * 32, b"k" * 32)
CHUNK = make_chunk(noise(100, "keys"))
WANTED = Wanted("1" * 32, "2" * 32, "3" * 32)
YEARS = 3 * 365 * 86_400
HEAD = Head(CHUNK.descriptor.stored_length, CHUNK.descriptor.sha256)
SOMEBODY = 65534


class Signers:
    """Everything that signs, with the keys of a directory as they are at a moment."""

    def __init__(self, directory: Path, now: int = NOW) -> None:
        settings = Settings(directory, ORIGIN)
        loaded = load_keys(directory, now)
        self.urls, self.links = UrlSigner(loaded, settings), LinkSigner(loaded, settings)

    def signed(self, now: int) -> dict[str, str]:
        """One of each kind, as it is made at `now`."""
        return {
            "get": self.urls.get(KEY, now * NS)[0].removeprefix(ORIGIN),
            "put": self.urls.put(KEY, HEAD, now * NS).url.removeprefix(ORIGIN),
            "content": self.links.content_url(WANTED, now * NS).removeprefix(ORIGIN),
            "cookie": self.links.cookie("link", "hash", now * NS),
        }

    def good(self, signed: dict[str, str], now: int) -> set[str]:
        """Those that are accepted at `now`."""
        length, sha256 = CHUNK.descriptor.stored_length, CHUNK.descriptor.sha256
        checks: dict[str, Callable[[str], Any]] = {
            "get": lambda url: self.urls.check_get(url, now * NS),
            "put": lambda url: self.urls.check_put(url, length, sha256, now * NS),
            "content": lambda url: self.links.check_content(url, now * NS),
            "cookie": lambda text: _proven(self.links.proves(text, "link", "hash", now * NS)),
        }
        return {kind for kind, text in signed.items() if not _refused(checks[kind], text)}


ALL = {"get", "put", "content", "cookie"}


def _proven(right: bool) -> None:
    if not right:
        raise BadSignature


def _refused(check: Callable[[str], Any], text: str) -> bool:
    try:
        check(text)
    except BadSignature:
        return True
    return False


# --- somebody has a copy of the keys ------------------------------------------------------------


def test_what_is_signed_for_years_with_a_copy_of_the_keys_is_refused(tmp_path: Path) -> None:
    signers = Signers(tmp_path)
    assert signers.good(signers.signed(NOW), NOW) == ALL
    assert signers.good(signers.signed(NOW + YEARS), NOW) == set()


def test_the_edge_refuses_a_url_that_is_good_for_years(server: Running, anna: Client) -> None:
    anna.store("a", CHUNK)
    copied = load_keys(server.data / "keys", int(time.time()))
    url = f"{server.url}/chunks/{anna.me.drive}/{CHUNK.id.hex()}"
    for seconds, status in ((600, 200), (LONGEST_SECONDS + 600, 403), (YEARS, 403)):
        forged = signing.sign_get(copied.edge, copied.edge_id, url, int(time.time()) + seconds)
        assert anna.http.get(forged).status_code == status, seconds


def test_nothing_is_signed_for_longer_than_is_accepted(tmp_path: Path) -> None:
    assert COOKIE_SECONDS <= LONGEST_SECONDS
    for setting in ("get_url_seconds", "put_url_seconds"):
        config = tmp_path / "nearline.toml"
        config.write_text(f"{setting} = {LONGEST_SECONDS + 1}\n")
        with pytest.raises(BadSettings, match=setting):
            read_config(config)


# --- rotating -----------------------------------------------------------------------------------


def test_what_was_signed_before_a_rotation_is_good_until_it_expires(tmp_path: Path) -> None:
    before = Signers(tmp_path)
    signed = before.signed(NOW)
    rotate_keys(tmp_path, NOW)
    after = Signers(tmp_path)
    assert after.good(signed, NOW + 200) == ALL
    assert before.good(after.signed(NOW), NOW) == set()
    assert after.good(after.signed(NOW), NOW) == ALL
    # A server that has not noticed yet goes on for a moment with the keys before.
    assert after.good(before.signed(NOW + keys.NOTICE_SECONDS), NOW + 100) == ALL


def test_who_has_the_keys_of_before_signs_nothing_new(tmp_path: Path) -> None:
    thief = Signers(tmp_path)
    rotate_keys(tmp_path, NOW)
    later = NOW + URL_SECONDS - 200
    after = Signers(tmp_path, later)
    assert after.good(thief.signed(later), later) == set()
    assert Signers(tmp_path, NOW + URL_SECONDS).urls._made.keys.past_edges == ()


def test_without_overlap_everything_signed_before_ends(tmp_path: Path) -> None:
    signed = Signers(tmp_path).signed(NOW)
    rotate_keys(tmp_path, NOW - 10)
    rotate_keys(tmp_path, NOW, overlap=False)
    after = Signers(tmp_path)
    assert after.good(signed, NOW) == set()
    assert after.good(after.signed(NOW), NOW) == ALL


def test_what_is_over_is_removed_by_the_next_rotation(tmp_path: Path) -> None:
    for moment in (NOW, NOW + URL_SECONDS, NOW + CURSOR_SECONDS):
        rotate_keys(tmp_path, moment)
    assert {path.name for path in tmp_path.iterdir()} == {
        "edge.pem",
        "put.secret",
        "cursor.secret",
        f"edge-{NOW + CURSOR_SECONDS}.pub",
        f"put-{NOW + CURSOR_SECONDS}.secret",
        f"cursor-{NOW + CURSOR_SECONDS}.secret",
        f"cursor-{NOW + URL_SECONDS}.secret",
    }
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert b"PRIVATE" not in (tmp_path / f"edge-{NOW + CURSOR_SECONDS}.pub").read_bytes()


def test_a_rotation_may_be_interrupted_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = Signers(tmp_path).signed(NOW)
    write = keys.write_private
    for allowed in range(6):
        left = itertools.count(allowed, -1)

        def dies(path: Path, data: bytes, left: Any = left) -> bytes:
            if next(left) <= 0:
                raise OSError(28, "No space left on device")
            return write(path, data)

        monkeypatch.setattr(keys, "write_private", dies)
        with pytest.raises(OSError, match="No space"):
            rotate_keys(tmp_path, NOW + allowed)
        monkeypatch.setattr(keys, "write_private", write)
        now = Signers(tmp_path)
        assert now.good(signed, NOW) == ALL, allowed
        assert now.good(now.signed(NOW), NOW) == ALL, allowed
    rotate_keys(tmp_path, NOW + 10)
    assert Signers(tmp_path).good(signed, NOW) == ALL


# --- beside a running server --------------------------------------------------------------------


def fetched(anna: Client, file: str, version: str) -> str:
    return anna.locate(file=file, version=version, chunks=[CHUNK.id]).chunks[0].url


@pytest.mark.slow
def test_a_running_server_takes_up_new_keys_by_itself(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    file, version = anna.store("a", CHUNK)
    url, cursor = fetched(anna, file, version), anna.me.cursor
    begun = anna.start(new_id(), new_id(), other := make_chunk(noise(50, "other")))
    assert main(["admin", "keys", "rotate", "--data", str(server.data)]) == 0
    until(lambda: fetched(anna, file, version) != url)
    assert anna.http.get(url).content == CHUNK.data  # a download that is under way goes on
    assert anna.http.get(fetched(anna, file, version)).content == CHUNK.data
    assert anna.put(begun.chunks[0], other).status_code == 200
    assert not anna.changes(cursor).reset
    assert server.app.service.cursors.write(server.app.service.cursors.read(cursor)) != cursor
    with server.app.service.db.read() as conn:
        rotated = [item for item in audit.read(conn) if item.action == "keys_rotate"]
    assert [item.detail["overlap"] for item in rotated] == [True]


def test_keys_that_others_have_end_at_once(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    file, version = anna.store("a", CHUNK)
    url, cursor = fetched(anna, file, version), anna.me.cursor
    admin.rotate_keys(server.data, overlap=False)
    server.app.service.beside.look()
    assert anna.http.get(url).status_code == 403
    assert anna.http.get(fetched(anna, file, version)).content == CHUNK.data
    assert not anna.changes(cursor).reset


def test_a_damaged_key_leaves_the_server_with_those_it_has(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    file, version = anna.store("a", CHUNK)
    admin.rotate_keys(server.data, overlap=True)
    (server.data / "keys" / "edge.pem").write_text("nonsense")
    with pytest.raises(keys.BadKey):
        server.app.service.beside.look()
    assert anna.http.get(fetched(anna, file, version)).content == CHUNK.data


# --- what is no key -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["put.secret", "cursor.secret"])
@pytest.mark.parametrize("held", [b"", b"short"])
def test_a_secret_that_can_be_guessed_is_refused(tmp_path: Path, name: str, held: bytes) -> None:
    load_keys(tmp_path / "keys", NOW)
    (tmp_path / "keys" / name).write_bytes(held)
    with pytest.raises(BadKey, match=f"{name} has {len(held)} bytes"):
        load_keys(tmp_path / "keys", NOW)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_root_copies_no_file_of_its_own_into_the_keys_of_another_user(
    tmp_path: Path, link: str
) -> None:
    directory = tmp_path / "data" / "keys"
    load_keys(directory, NOW)
    for path in (directory.parent, *directory.parent.rglob("*")):
        os.chown(path, SOMEBODY, SOMEBODY)
    (tmp_path / "roots").write_bytes(b"r" * 32)
    (directory / "put.secret").unlink()
    getattr(directory / "put.secret", link)(tmp_path / "roots")
    with pytest.raises(BadKey, match=r"put\.secret is"):
        rotate_keys(directory, NOW)
    assert not list(directory.glob("put-*"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_root_makes_no_keys_where_a_link_of_another_user_leads(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    (data / "keys").symlink_to(elsewhere)
    os.chown(data, SOMEBODY, SOMEBODY)
    with pytest.raises(BadKey, match="no directory of user"):
        rotate_keys(data / "keys", NOW)
    assert not list(elsewhere.iterdir())
