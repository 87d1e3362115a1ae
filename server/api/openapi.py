"""The OpenAPI document, made from the wire's own types.

Knows: which message goes in and out of each endpoint (`ENDPOINTS`; a test compares it with the
routes that exist). Must not know: what the endpoints do.

msgspec describes the types, so the document and the decoder cannot disagree. Bytes are base64 in
JSON, as `contentEncoding` says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from remote.protocol import account_messages as account
from remote.protocol import messages
from remote.protocol.errors import AnyProblem

_REF = "#/components/schemas/{name}"


class Endpoint(NamedTuple):
    method: str
    path: str
    summary: str
    request: Any = None
    reply: Any = None
    query: Mapping[str, Any] = MappingProxyType({})
    public: bool = False


_PAGE = {"cursor": {"type": "string"}, "limit": {"type": "integer", "minimum": 1}}
_CURSOR = {"cursor": {"type": "string"}}
_TRASH = _PAGE | {"parent": {"type": "string"}}
_WAIT = _CURSOR | {"timeout": {"type": "number", "minimum": 0, "maximum": 60}}
_VERSION = {"version": {"type": "string"}, "manifest": {"type": "boolean"}}

ENDPOINTS = (
    Endpoint(
        "post", "/v1/login", "Log in", messages.LoginRequest, messages.LoginReply, public=True
    ),
    Endpoint("get", "/v1/me", "Who the token is", None, messages.Me),
    Endpoint(
        "post",
        "/v1/password",
        "Change one's password",
        account.ChangePassword,
        account.PasswordReply,
    ),
    Endpoint("get", "/v1/devices", "One's devices", None, account.DevicesReply),
    Endpoint("post", "/v1/devices", "Make a token", account.MakeToken, account.TokenReply),
    Endpoint("post", "/v1/devices/rotate", "Change one's own token", None, account.TokenReply),
    Endpoint("delete", "/v1/devices/{device_id}", "Revoke a token, or log out"),
    Endpoint(
        "post", "/v1/files", "Start uploads", messages.StartUploads, messages.StartUploadsReply
    ),
    Endpoint("get", "/v1/files/{file_id}", "A file", None, messages.FileReply, _VERSION),
    Endpoint(
        "get", "/v1/files/{file_id}/children", "A directory", None, messages.ChildrenPage, _PAGE
    ),
    Endpoint(
        "post", "/v1/listings", "Several directories", messages.ListRequest, messages.ListReply
    ),
    Endpoint("get", "/v1/files/{file_id}/versions", "History", None, messages.VersionsPage, _PAGE),
    Endpoint(
        "get", "/v1/files/{file_id}/changes", "Its changes", None, messages.ChangesPage, _CURSOR
    ),
    Endpoint(
        "get",
        "/v1/files/by-fingerprint/{fingerprint}",
        "A file of this content in one's own drive",
        None,
        messages.FingerprintReply,
    ),
    Endpoint(
        "post", "/v1/files/{file_id}/share", "Share", account.ShareRequest, account.SharesReply
    ),
    Endpoint("get", "/v1/files/{file_id}/shares", "Who has access", None, account.SharesReply),
    Endpoint("delete", "/v1/files/{file_id}/share/{account}", "Take a grant back, or leave"),
    Endpoint("get", "/v1/trash", "The trash", None, account.TrashPage, _TRASH),
    Endpoint(
        "post", "/v1/trash/empty", "Delete for good", account.EmptyTrash, account.EmptiedReply
    ),
    Endpoint("get", "/v1/shared", "What others share", None, account.SharedReply),
    Endpoint(
        "post", "/v1/files/{file_id}/links", "Make a link", account.MakeLink, account.LinkMade
    ),
    Endpoint("get", "/v1/files/{file_id}/links", "Its links", None, account.LinksReply),
    Endpoint("get", "/v1/links", "All links", None, account.LinksReply),
    Endpoint("delete", "/v1/links/{link_id}", "Revoke a link"),
    Endpoint("get", "/v1/uploads/{version}", "What is there", None, messages.UploadState),
    Endpoint(
        "post",
        "/v1/uploads/{version}/urls",
        "Presigned PUTs",
        messages.UrlsRequest,
        messages.UploadState,
    ),
    Endpoint(
        "post",
        "/v1/uploads/{version}/complete",
        "Commit an upload",
        messages.CompleteUpload,
        messages.Applied,
    ),
    Endpoint("delete", "/v1/uploads/{version}", "Abandon an upload"),
    Endpoint(
        "post",
        "/v1/chunks/locate-several",
        "Signed GETs of whole versions",
        messages.LocateSeveral,
        messages.LocateSeveralReply,
    ),
    Endpoint(
        "post", "/v1/chunks/locate", "Signed GETs", messages.LocateRequest, messages.LocateReply
    ),
    Endpoint(
        "post", "/v1/changes/apply", "Apply changes", messages.ApplyRequest, messages.ApplyReply
    ),
    Endpoint("get", "/v1/changes", "Pull changes", None, messages.ChangesPage, _CURSOR),
    Endpoint("get", "/v1/changes/wait", "Wait for changes", None, messages.ChangesPage, _WAIT),
)


@functools.cache
def document() -> bytes:
    """The document as JSON."""
    used = [kind for each in ENDPOINTS for kind in (each.request, each.reply) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [AnyProblem, messages.Hint, *used], ref_template=_REF
    )
    problem, by_type = schemas[0], dict(zip(used, schemas[2:], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in ENDPOINTS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, by_type, problem)
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
        "operationId": f"{each.method}{re.sub('[^a-z]+', '_', each.path)}",
        "summary": each.summary,
        "parameters": [*_path_parameters(each.path), *_query_parameters(each.query)],
        "responses": done | {"default": {"description": "Refused", "content": _content(problem)}},
        "security": [] if each.public else [{"token": []}],
    }
    if each.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(by_type[each.request])}
    return operation


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(query: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
