"""Requests made up from the published schema: none may end in a 5xx.

Half of them name things that are there, so that they come further than to `not_found`.
NEARLINE_FUZZ_EXAMPLES says how many are tried for each endpoint.
"""

from __future__ import annotations

import json
import os
from functools import cache

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.api.endpoint import Endpoint
from server.api.openapi import document
from server.app import ENDPOINTS
from tests.server.harness import Client, Running, make_chunk, new_id, noise

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("NEARLINE_FUZZ_EXAMPLES", "8"))


@cache
def schema() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(json.loads(document(ENDPOINTS)))


def things(server: Running, client: Client) -> dict[str, list[str]]:
    """Values of path parameters that lead somewhere."""
    file, _ = client.store("file", make_chunk(noise(100, client.token)))
    version = new_id()
    client.start(version, file)
    return {
        "file_id": [file, client.mkdir("directory"), client.me.root],
        "version": [version],
        "device_id": [server.device(client.me.account).me.device_id],
        "account": [client.me.account],
    }


PUBLISHED = [each for each in ENDPOINTS if each.summary is not None]


@pytest.mark.parametrize("endpoint", PUBLISHED, ids=lambda each: f"{each.method} {each.path}")
def test_no_request_breaks_the_server(server: Running, endpoint: Endpoint) -> None:
    client = server.account("anna")
    there = things(server, client)
    headers = {"Authorization": f"Bearer {client.token}"}
    operation = schema()[endpoint.path][endpoint.method]

    @given(case=operation.as_strategy(), pick=st.integers(0, 5))
    @settings(
        max_examples=min(EXAMPLES, 3) if endpoint.public else EXAMPLES,  # Argon2 is slow on purpose
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_it(case: schemathesis.Case, pick: int) -> None:
        if endpoint.path == "/v1/changes/wait":
            case.query = {**(case.query or {}), "timeout": 0}
        if case.path_parameters and pick < 3:
            known = {key: there[key] for key in case.path_parameters if key in there}
            chosen = {key: values[pick % len(values)] for key, values in known.items()}
            case.path_parameters = {**case.path_parameters, **chosen}
        answer = case.call(base_url=server.url, headers=headers)
        assert answer.status_code < 500, answer.text

    try_it()
    client.http.close()
