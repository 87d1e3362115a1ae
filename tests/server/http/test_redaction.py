"""Secrets do not get into what is written down."""

from __future__ import annotations

import pytest

from server.http.redaction import HIDDEN, cleaned, processor, redact

SECRET = "hQD2XFE0mLJZC8_NytAOngPY-1Gh22LGvB0a1ZjPCcc"  # of the form of a token


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"headers=[(b'authorization', b'Bearer {SECRET}')]",
        "b'authorization', b'Basic aHVudGVyMg=='",
        "{'password': 'hunter2', 'account': 'anna'}",
        '{"password": "hunter2"}',
        '{\\"password\\": \\"hunter2 and more\\"}',
        "LoginRequest(account='anna', password='hunter2', device='x')",
        "POST body password=hunter2&next=1",
        "/v1/me?access_token=hunter2",
        "new_password: hunter2",
        "client-secret=hunter2",
        "https://h/chunks/a/b?Expires=17&Signature=hunter2~_&Key-Pair-Id=k",
        "https://h/blobs/a/b?X-Amz-Date=1&X-Amz-Signature=hunter2",
        "Cookie: session=hunter2; other=hunter2",
        "Set-Cookie: link=hunter2; HttpOnly",
        "(b'cookie', b'a=hunter2; b=hunter2')",
        f"GET /s/{SECRET}/abc",
        "GET /s/hunter2hunter2hunter2 404",
        f"no such token {SECRET}.",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    shown = redact(text)
    assert HIDDEN in shown
    assert SECRET not in shown
    for part in ("hunter2", "aHVudGVyMg"):
        assert part not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "the token is missing or not valid: log in",
        "https://h/chunks/a/b?Expires=1790000000",
        "/v1/files/0123456789abcdef0123456789abcdef/children",
        "path=/v1/me status=200",
        "a" * 64,
        "basic sanity is all one can hope for: it is"[:5],
    ],
)
def test_other_things_stay(text: str) -> None:
    assert redact(text) == text


def test_events_are_cleaned_through_and_through() -> None:
    event = {
        "event": "x",
        "token": SECRET,
        "status": 200,
        "headers": [("authorization", f"Bearer {SECRET}")],
        "nested": {"Cookie": "a=b", "deeper": [{"password": "hunter2"}], "n": 1.5},
        "raw": f"token={SECRET}".encode(),
        "error": ValueError(f"bad Signature={SECRET}"),
        "nothing": None,
    }
    shown = processor(None, "info", event)
    assert SECRET not in repr(shown)
    assert "hunter2" not in repr(shown)
    assert (shown["event"], shown["status"], shown["nothing"]) == ("x", 200, None)
    assert shown["nested"]["n"] == 1.5
    assert cleaned(None, "token") is None
