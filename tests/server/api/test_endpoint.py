"""Declarations of endpoints: what a signature says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from remote.protocol.errors import BadRequest, NotFound, Refused
from remote.protocol.messages import LoginReply, LoginRequest
from server.api.endpoint import Endpoint, Id, Limit, delete, get, post


@post("/v1/a/{file}/b/{name}", "Something", public=True)
async def full(
    request: Any,
    file: Id,
    name: str,
    wanted: LoginRequest,
    cursor: str | None = None,
    limit: Limit = 7,
    whole: bool = False,
    seconds: float = 1.5,
) -> LoginReply:
    raise NotImplementedError


@delete("/v1/a/{file}")
async def bare(request: Any, file: Id) -> None:
    raise NotImplementedError


GOOD = "0" * 32


def test_a_signature_is_a_declaration() -> None:
    assert (full.method, full.path, full.summary, full.public) == (
        "POST",
        "/v1/a/{file}/b/{name}",
        "Something",
        True,
    )
    assert (full.body_name, full.body, full.reply) == ("wanted", LoginRequest, LoginReply)
    assert full.query.__struct_fields__ == ("cursor", "limit", "whole", "seconds")
    assert (bare.summary, bare.body, bare.reply) == (None, None, None)
    assert bare.query.__struct_fields__ == ()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"", {}),
        (b"limit=3", {"cursor": None, "limit": 3, "whole": False, "seconds": 1.5}),
        (
            b"cursor=a%2Bb+c&limit=-1&whole=true&seconds=2&other=x",
            {"cursor": "a+b c", "limit": -1, "whole": True, "seconds": 2.0},
        ),
        (b"cursor=&whole=0", {"cursor": "", "limit": 7, "whole": False, "seconds": 1.5}),
    ],
)
def test_what_is_in_path_and_query(query: bytes, found: dict[str, Any]) -> None:
    assert full.arguments([GOOD, "a name"], query) == {"file": GOOD, "name": "a name"} | found


@pytest.mark.parametrize("query", [b"limit=x", b"limit=", b"whole=yes", b"seconds=1_0", b"whole"])
def test_what_is_of_another_kind_is_refused(query: bytes) -> None:
    with pytest.raises(Refused) as refused:
        full.arguments([GOOD, "a name"], query)
    problem = refused.value.problem
    assert isinstance(problem, BadRequest)
    assert query.partition(b"=")[0].decode() in problem.message


@pytest.mark.parametrize("id", ["", "x", "0" * 31, "0" * 33, "A" * 32])
def test_what_can_be_no_id_is_not_there(id: str) -> None:
    with pytest.raises(Refused) as refused:
        bare.arguments([id], b"")
    assert isinstance(refused.value.problem, NotFound)


def test_a_parameter_of_the_query_has_a_default() -> None:
    async def handler(request: Any, cursor: str) -> None:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="no default"):
        get("/v1/a")(handler)


def test_an_endpoint_is_itself_and_no_other() -> None:
    """Whatever it declares: the document is kept by them."""
    assert isinstance(full, Endpoint)
    assert len({full, bare, full}) == 2
    assert issubclass(full.query, msgspec.Struct)
