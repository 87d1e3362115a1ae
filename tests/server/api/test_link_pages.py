"""The pages of links: what is on them, whatever files are called; passwords; headers."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from remote.protocol.account_messages import LinkMade
from server.links import html, tree, zip
from server.links.filenames import disposition, packed, shown
from server.links.signing import COOKIE_SECONDS, LinkSigner
from server.settings import Settings
from server.storage.keys import load_keys
from tests.server.conftest import Start
from tests.server.harness import Client, Running, make_chunk
from tests.server.linking import Visitor, make_link, revoke
from tests.server.links.test_links import audit_of

Visit = Callable[[LinkMade], Visitor]

HOSTILE = [
    "<script>alert(1)<script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% include 'x' %}",
    "&lt;b&gt;<b>bold",
    "two\nlines\r\nSet-Cookie: a=b",
    "exe.\u202egpj",
    "\x1b[31mred",
    "\u2066isolated",
    "javascript:alert(1)",
    "..\\..\\evil",
    "C:evil",
    "  spaces  ",
    "100%41.txt",
    "grüße-日本語-🙂.txt",
]


@pytest.fixture
def visit(server: Running) -> Iterator[Visit]:
    visitors: list[Visitor] = []

    def begin(made: LinkMade) -> Visitor:
        visitors.append(Visitor.at(server.url, made))
        return visitors[-1]

    yield begin
    for item in visitors:
        item.http.close()


class Seen(HTMLParser):
    """The elements of a page, and the text of each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def links(self) -> list[str]:
        return [attrs["href"] or "" for tag, attrs in self.elements if tag == "a"]

    def names(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "bdi"]


def tags(seen: Seen) -> set[str]:
    return {tag for tag, _ in seen.elements}


# --- what is on a page --------------------------------------------------------------------------


def test_a_file_has_a_page_with_a_button(anna: Client, visit: Visit) -> None:
    file, _ = anna.store("report.pdf", make_chunk(b"x" * 1500))
    visitor = visit(make_link(anna, file, expires_ns=time.time_ns() + 10**15))
    page = visitor.get()
    seen = Seen(page.text)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert seen.names() == ["report.pdf"]
    assert "1.5 kB, changed " in page.text
    assert "1970-01-01 00:00 UTC" in page.text
    assert "This link works until" in page.text
    assert seen.links() == [f"{visitor.url}/{file}/download"]
    assert visitor.get(f"/{file}").content == page.content


def test_a_directory_lists_and_leads_on(anna: Client, visit: Visit) -> None:
    top = anna.mkdir("holiday")
    below = anna.mkdir("below", top)
    file, _ = anna.store("photo.jpg", make_chunk(b"jpeg"), parent=below)
    anna.make("symlink", below, kind="symlink", target="/etc/passwd")
    anna.make("pipe", below, kind="fifo")
    visitor = visit(make_link(anna, top))
    first = Seen(visitor.get().text)
    assert first.names() == ["holiday", "below"]
    assert first.links() == [f"{visitor.url}/{top}/zip", f"{visitor.url}/{below}"]
    page = visitor.get(f"/{below}")
    second = Seen(page.text)
    assert second.names() == ["holiday", "below", "photo.jpg", "pipe", "symlink"]
    assert second.links() == [
        visitor.url,
        f"{visitor.url}/{below}/zip",
        f"{visitor.url}/{file}/download",
    ]
    assert "symbolic link" in page.text
    assert "special file" in page.text
    assert "passwd" not in page.text
    third = Seen(visitor.get(f"/{file}").text)
    assert third.names() == ["holiday", "below", "photo.jpg"]
    assert visitor.get(f"/{anna.mkdir('empty', top)}").text.count("This folder is empty") == 1


def test_a_long_directory_comes_in_pages(
    anna: Client, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "PAGE", 2)
    top = anna.mkdir("top")
    names = ["a", "b", "c & d?", "e"]
    for name in (*names, "f"):
        anna.make(name, top)
    visitor = visit(make_link(anna, top))
    found, url = [], visitor.url
    while url:
        seen = Seen(visitor.http.get(url).text)
        found += seen.names()[1:]
        url = next((link for link in seen.links() if "after=" in link), "")
    assert found == [*names, "f"]
    assert visitor.get("?after=nonsense").status_code == 404


def test_too_much_for_one_zip(anna: Client, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    top = anna.mkdir("top")
    below = anna.mkdir("below", top)
    for name in "abc":
        anna.make(name, below)
    visitor = visit(make_link(anna, top, max_downloads=1))
    monkeypatch.setattr("server.api.link_pages.MAX_MEMBERS", 3)
    refused = visitor.get(f"/{top}/zip")
    assert refused.status_code == 409
    assert "at most 3 files" in refused.text
    assert visitor.get(f"/{below}/zip").status_code == 303
    assert zip.MAX_MEMBERS > 3


# --- names that mean harm -----------------------------------------------------------------------


def test_hostile_names_are_only_text(anna: Client, visit: Visit) -> None:
    top = anna.mkdir(HOSTILE[0])
    files = {name: anna.store(name, make_chunk(b"x"), parent=top)[0] for name in HOSTILE}
    visitor = visit(make_link(anna, top))
    listing = visitor.get()
    check_harmless(listing.text, visitor.url)
    names = [shown(name) for name in sorted(HOSTILE)]
    assert Seen(listing.text).names() == [shown(HOSTILE[0]), *names]
    for name, file in files.items():
        page = visitor.get(f"/{file}")
        check_harmless(page.text, visitor.url)
        assert Seen(page.text).names() == [shown(HOSTILE[0]), shown(name)]
        got = visitor.http.get(visitor.content(f"/{file}/download"))
        assert got.content == b"x"
        assert got.headers["content-disposition"].startswith('attachment; filename="')
        assert "set-cookie" not in got.headers


def check_harmless(html: str, base: str) -> None:
    """Whatever names are on it, the page has only our elements, and leads only to itself."""
    seen = Seen(html)
    assert tags(seen).isdisjoint({"script", "img", "b", "iframe", "object"})
    assert all(link.startswith(base) for link in seen.links())
    assert not any(key.startswith("on") for _, attrs in seen.elements for key in attrs)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("plain.txt", 'attachment; filename="plain.txt"'),
        (
            'say "hi".txt',
            "attachment; filename=\"say _hi_.txt\"; filename*=UTF-8''say%20%22hi%22.txt",
        ),
        ("grüße", "attachment; filename=\"gr__e\"; filename*=UTF-8''gr%C3%BC%C3%9Fe"),
        ("a\r\nb", 'attachment; filename="a__b"'),
        ("..\\x", 'attachment; filename=".._x"'),
        ("50%25", "attachment; filename=\"50_25\"; filename*=UTF-8''50%2525"),
        ("exe.\u202egpj", 'attachment; filename="exe._gpj"'),
    ],
)
def test_the_name_in_the_header(name: str, header: str) -> None:
    assert disposition(name) == header


def test_names_in_archives() -> None:
    assert packed("a b.txt", "0" * 32) == "a b.txt"
    assert packed("..\\evil", "f" * 32) == ".._evil (ffffffff)"
    assert packed("C:evil", "f" * 32) == "C_evil (ffffffff)"
    assert packed("a\nb", "1" * 32) != packed("a\nb", "2" * 32)


@pytest.mark.parametrize("at_ns", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_every_time_can_be_told(at_ns: int) -> None:
    assert re.search(
        r'<time datetime="[0-9T:+-]+">\d{4}-\d\d-\d\d \d\d:\d\d UTC<', html.when(at_ns)
    )


# --- headers ------------------------------------------------------------------------------------


def test_every_page_keeps_to_itself(anna: Client, visit: Visit) -> None:
    file, _ = anna.store("a", make_chunk(b"a"))
    open_, locked = visit(make_link(anna, file)), visit(make_link(anna, file, password="four"))
    gone = visit(made := make_link(anna, file))
    revoke(anna, made.link.id)
    answers = [open_.get(), open_.get(f"/{file}/download"), locked.get(), locked.post("y")]
    answers += [locked.post("four"), gone.get(), gone.post("x")]
    assert [item.status_code for item in answers] == [200, 303, 403, 403, 303, 404, 404]
    for item in answers:
        assert item.headers["cache-control"] == "no-store"
        assert item.headers["referrer-policy"] == "no-referrer"
        assert item.headers["x-robots-tag"] == "noindex, nofollow"
        assert item.headers["x-content-type-options"] == "nosniff"
        policy = item.headers["content-security-policy"]
        for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"):
            assert part in policy
        if item.text:
            style = re.search(r"<style>(.*?)</style>", item.text, re.DOTALL)
            assert style is not None
            digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
            assert f"style-src 'sha256-{digest}'" in policy
            assert "http:" not in item.text
            assert "https:" not in item.text


# --- passwords ----------------------------------------------------------------------------------


def test_a_password_opens_the_link_for_a_while(server: Running, anna: Client, visit: Visit) -> None:
    top = anna.mkdir("secret plans")
    file, _ = anna.store("plan", make_chunk(b"plan"), parent=top)
    made = make_link(anna, top, password="correct horse ü&=+")
    visitor, other = visit(made), visit(made)
    asked = [visitor.get(below) for below in ("", f"/{file}", f"/{file}/download", f"/{top}/zip")]
    assert {item.status_code for item in asked} == {403}
    assert len({item.content for item in asked}) == 1
    assert "plan" not in asked[0].text
    field = dict(Seen(asked[0].text).elements)["input"]
    assert (field["type"], field["name"]) == ("password", "password")
    wrong = visitor.post("wrong")
    assert wrong.status_code == 403
    assert 'role="alert"' in wrong.text
    assert "set-cookie" not in wrong.headers
    right = visitor.post("correct horse ü&=+")
    assert (right.status_code, right.headers["location"]) == (303, visitor.url)
    cookie = right.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", f"Path={visitor.url}", "Max-Age=3600"):
        assert part.lower() in cookie.lower()
    assert "secure" not in cookie.lower()
    assert visitor.get().status_code == 200
    assert visitor.http.get(visitor.content(f"/{file}/download")).content == b"plan"
    assert other.get().status_code == 403
    actions = [(action, detail.get("address")) for action, detail in audit_of(server, made.link.id)]
    assert actions[1:3] == [("link_refused", "127.0.0.1"), ("link_open", "127.0.0.1")]


def test_a_cookie_is_for_its_link_and_password_only(
    anna: Client, visit: Visit, server: Running
) -> None:
    file, _ = anna.store("a", make_chunk(b"a"))
    first, second = (visit(make_link(anna, file, password="same")) for _ in range(2))
    assert first.post("same").status_code == 303
    cookie = first.http.cookies["nearline-link"]
    assert first.get().status_code == 200
    expires, _, mac = cookie.partition(".")
    forged = ["", "x", cookie[:-1], f"{int(expires) + 1}.{mac}", f"0{cookie}", cookie.upper()]
    for value in forged:
        answer = second.http.get(first.url, headers={"Cookie": f"nearline-link={value}"})
        assert answer.status_code == 403, value
    for at, status in ((first.url, 200), (second.url, 403)):
        answer = second.http.get(at, headers={"Cookie": f"nearline-link={cookie}"})
        assert answer.status_code == status


def test_what_a_cookie_proves(tmp_path: Path) -> None:
    signer = LinkSigner(load_keys(tmp_path, 0), Settings(tmp_path, "https://h"))
    now = 1_800_000_000 * 10**9
    cookie = signer.cookie("link", "hash", now)
    assert signer.proves(cookie, "link", "hash", now + (COOKIE_SECONDS - 1) * 10**9)
    assert not signer.proves(cookie, "link", "hash", now + COOKIE_SECONDS * 10**9)
    assert not signer.proves(cookie, "link", "another hash", now)
    assert not signer.proves(cookie, "another", "hash", now)
    assert not signer.proves(None, "link", "hash", now)


def test_guessing_a_password_is_slowed_down(start: Start) -> None:
    server = start(login_burst=2, login_seconds_per_try=3600.0)
    anna = server.account("anna")
    file = anna.make("a")
    made, other = (make_link(anna, file, password="right") for _ in range(2))
    visitor, beside = Visitor.at(server.url, made), Visitor.at(server.url, other)
    try:
        assert visitor.post("right").status_code == 303  # a good try does not count
        assert [visitor.post("wrong").status_code for _ in range(2)] == [403, 403]
        refused = visitor.post("right")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 3000
        assert "Too many wrong passwords" in refused.text
        assert "set-cookie" not in refused.headers
        assert beside.post("right").status_code == 303  # another link is another matter
    finally:
        visitor.http.close()
        beside.http.close()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/x-www-form-urlencoded"),
        (b"password=right", "text/plain"),
        (b"password=\xff", "application/x-www-form-urlencoded"),
        (b"&".join([b"a=b"] * 100), "application/x-www-form-urlencoded"),
        (b'{"password":"right"}', "application/json"),
    ],
)
def test_what_is_no_form_is_a_wrong_password(
    anna: Client, visit: Visit, monkeypatch: pytest.MonkeyPatch, body: bytes, kind: str
) -> None:
    asked = []
    monkeypatch.setattr(
        "server.accounts.accounts.password_matches", lambda _, given: bool(asked.append(given))
    )
    visitor = visit(make_link(anna, anna.make("a"), password="right"))
    answer = visitor.http.post(visitor.url, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 403
    assert asked == [""]


def test_a_form_is_small(anna: Client, visit: Visit) -> None:
    visitor = visit(make_link(anna, anna.make("a"), password="right"))
    assert visitor.post("x" * 20_000).status_code == 413


def test_a_link_without_password_asks_for_none(anna: Client, visit: Visit) -> None:
    visitor = visit(make_link(anna, anna.make("a")))
    answer = visitor.post("anything")
    assert (answer.status_code, answer.headers["location"]) == (303, visitor.url)
    assert "set-cookie" not in answer.headers


def test_the_cookie_of_a_public_server_needs_tls(start: Start) -> None:
    server = start()
    anna = server.account("anna")
    made = make_link(anna, anna.make("a"), password="right")
    service = server.app.service
    service.settings = replace(service.settings, public_url="https://files.example.org")
    visitor = Visitor.at(server.url, made)
    try:
        assert "; secure" in visitor.post("right").headers["set-cookie"].lower()
    finally:
        visitor.http.close()
