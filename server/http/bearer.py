"""The bearer token of a request, as RFC 6750 has it. Pure.

Knows: the Authorization header. Must not know: whether a token is good (`accounts.tokens`).
"""

from __future__ import annotations

from remote.protocol.errors import Refused, Unauthorized


def token_of(authorization: str | None) -> str | None:
    """The bearer token of an Authorization header's value."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def check_present(token: str | None) -> None:
    """Cheap refusal before a body is read. Raises `Refused(Unauthorized)`."""
    if not token:
        raise Refused(Unauthorized(message="send an Authorization: Bearer header; log in first"))
