"""Endpoints are declared in one place, above the function that answers each.

    @post("/v1/files/{file_id}/links", "Make a link")
    async def make(request: Request, file_id: Id, wanted: MakeLink) -> LinkMade:

Knows: how a function's signature is read. Must not know: what any endpoint does, HTTP messages.

The first parameter is the request. Those that the path names are its segments, `Id` if it has to
be one; the one that is a message is the body; all others are in the query and have a default. What
is returned is the message of the answer; None is 204, and what is no message is answered as it is.
Decoding and the OpenAPI document (`openapi`) go by the same signature, so they cannot disagree. An
endpoint without a summary is not in the document.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NewType, get_type_hints
from urllib.parse import parse_qsl

import msgspec

from remote.protocol.errors import BadRequest, NotFound, Refused

Handler = Callable[..., Awaitable[Any]]

# In place of a method.
WEBSOCKET = "WS"

Id = NewType("Id", str)
# How many at most. Not more than the endpoint has in a page, and one at least, whatever is asked.
Limit = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1})]

_ID = re.compile(r"[0-9a-f]{32}")


def check_id(id: str) -> str:
    """An id that cannot exist is answered as one that does not. Raises `Refused(NotFound)`."""
    if not _ID.fullmatch(id):
        raise Refused(NotFound(message=f"{id[:64]!r} is no id: 32 hex digits"))
    return id


@dataclass(frozen=True, eq=False)
class Endpoint:
    """`segments` are the kinds of the path's variables, in their order; `query` has a field for
    each parameter. `public`: no token is needed to be told what is wrong with a body."""

    method: str
    path: str
    summary: str | None
    public: bool
    handler: Handler
    segments: Mapping[str, Any]
    query: type[msgspec.Struct]
    body_name: str | None
    body: type[msgspec.Struct] | None
    reply: type[msgspec.Struct] | None

    def arguments(self, values: Sequence[str], query: bytes) -> dict[str, Any]:
        """The handler's, except the body: the path's variables are `values`. Raises
        `Refused`."""
        found = self._queried(query)
        for (name, kind), value in zip(self.segments.items(), values, strict=True):
            found[name] = check_id(value) if kind is Id else value
        return found

    def _queried(self, query: bytes) -> dict[str, Any]:
        if not query or not self.query.__struct_fields__:
            return {}
        given = dict(parse_qsl(query.decode("ascii"), keep_blank_values=True))
        try:
            return msgspec.structs.asdict(msgspec.convert(given, self.query, strict=False))
        except msgspec.ValidationError as error:
            raise Refused(BadRequest(message=f"the query: {error}")) from error


def get(path: str, summary: str | None = None) -> Callable[[Handler], Endpoint]:
    """Declare an endpoint that only tells; HEAD is answered alike (`head`)."""
    return _declared("GET", path, summary)


def post(
    path: str, summary: str | None = None, *, public: bool = False
) -> Callable[[Handler], Endpoint]:
    return _declared("POST", path, summary, public)


def delete(path: str, summary: str | None = None) -> Callable[[Handler], Endpoint]:
    return _declared("DELETE", path, summary)


def websocket(path: str) -> Callable[[Handler], Endpoint]:
    return _declared(WEBSOCKET, path, None)


def _declared(
    method: str, path: str, summary: str | None, public: bool = False
) -> Callable[[Handler], Endpoint]:
    return lambda handler: _read(handler, method, path, summary, public)


def _read(handler: Handler, method: str, path: str, summary: str | None, public: bool) -> Endpoint:
    hints = get_type_hints(handler, include_extras=True)
    named = re.findall(r"{(\w+)}", path)
    _, *parameters = inspect.signature(handler).parameters.values()
    bodies = [item.name for item in parameters if _is_message(hints[item.name])]
    queried = [item for item in parameters if item.name not in (*named, *bodies)]
    assert all(item.default is not item.empty for item in queried), f"{path}: no default"
    fields = [(item.name, hints[item.name], item.default) for item in queried]
    body_name = bodies[0] if bodies else None
    return Endpoint(
        method,
        path,
        summary,
        public,
        handler,
        {name: hints[name] for name in named},
        msgspec.defstruct("Query", fields),
        body_name,
        hints[body_name] if body_name else None,
        hints["return"] if _is_message(hints["return"]) else None,
    )


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
