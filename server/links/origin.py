"""Which of the server's two names answers what, if it has two.

Knows: `content_url`. Must not know: routes beyond their first segment.

With `content_url` set, the bytes that others stored come from an origin of which a browser keeps
nothing: no cookie, no page of ours. It serves /content and nothing else, and the public origin, or
any other name the server is reached by, serves everything but that. Without the setting no request
is refused for its Host.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from remote.protocol.errors import NotFound
from server.http import problems
from server.http.problems import Send

CONTENT = "/content/"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


_NOT_HERE = NotFound(message="this address serves something else; check the URL")


async def refuse(scope: MutableMapping[str, Any], send: Send) -> None:
    """Answer a request that came to the wrong name."""
    await problems.refuse(scope, send, _NOT_HERE)


class Origins:
    def __init__(self, content_url: str | None) -> None:
        self._content: str | None = None
        if content_url is not None:
            parts = urlsplit(content_url)
            self._suffix = _DEFAULT_PORTS[parts.scheme]
            self._content = parts.netloc.lower().removesuffix(self._suffix)

    def refuses(self, scope: MutableMapping[str, Any]) -> bool:
        """True if this request came to the wrong name."""
        if self._content is None:
            return False
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        is_content_host = host.removesuffix(self._suffix) == self._content
        return is_content_host is not scope["path"].startswith(CONTENT)
