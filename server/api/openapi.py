"""The OpenAPI document, made from what the endpoints declare and the wire's own types.

Knows: what of an endpoint is published. Must not know: what the endpoints do.

msgspec describes the types, so the document and the decoder cannot disagree. Bytes are base64 in
JSON, as `contentEncoding` says.
"""

from __future__ import annotations

import functools
import re
from typing import Any, get_args, get_type_hints

import msgspec

from remote.protocol import messages
from remote.protocol.errors import AnyProblem
from server.api.endpoint import Endpoint

_REF = "#/components/schemas/{name}"


@functools.cache
def document(endpoints: tuple[Endpoint, ...]) -> bytes:
    """The document as JSON, of those that have a summary."""
    published = [item for item in endpoints if item.summary is not None]
    used = [kind for item in published for kind in (item.body, item.reply) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [AnyProblem, messages.Hint, *used], ref_template=_REF
    )
    problem, by_type = schemas[0], dict(zip(used, schemas[2:], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for item in published:
        paths.setdefault(item.path, {})[item.method.lower()] = _operation(item, by_type, problem)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Nearline", "version": "1"},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _operation(each: Endpoint, by_type: dict[Any, Any], problem: Any) -> dict[str, Any]:
    done: dict[str, Any] = {"204": {"description": "Done"}}
    if each.reply is not None:
        done = {"200": {"description": "Done", "content": _content(by_type[each.reply])}}
    operation: dict[str, Any] = {
        "operationId": f"{each.method.lower()}{re.sub('[^a-z]+', '_', each.path)}",
        "summary": each.summary,
        "parameters": [*_path_parameters(each), *_query_parameters(each)],
        "responses": done | {"default": {"description": "Refused", "content": _content(problem)}},
        "security": [] if each.public else [{"token": []}],
    }
    if each.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(by_type[each.body])}
    return operation


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}


def _path_parameters(each: Endpoint) -> list[dict[str, Any]]:
    schema = {"type": "string"}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in each.segments
    ]


def _query_parameters(each: Endpoint) -> list[dict[str, Any]]:
    kinds = get_type_hints(each.query, include_extras=True)
    return [
        {"name": name, "in": "query", "schema": msgspec.json.schema(_if_given(kind))}
        for name, kind in kinds.items()
    ]


def _if_given(kind: Any) -> Any:
    """The kind of a parameter that may be left out, when it is not."""
    return get_args(kind)[0] if type(None) in get_args(kind) else kind
