"""Requests made up from the published schema: none may end in a 5xx."""

from __future__ import annotations

import json
from functools import cache

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from server.api.openapi import ENDPOINTS, Endpoint, document
from tests.server.harness import Running


@cache
def schema() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(json.loads(document()))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.method} {each.path}")
def test_no_request_breaks_the_server(server: Running, endpoint: Endpoint) -> None:
    client = server.account("anna")
    headers = {"Authorization": f"Bearer {client.token}"}
    operation = schema()[endpoint.path][endpoint.method.upper()]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=3 if endpoint.public else 8,  # Argon2 is slow on purpose
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_it(case: schemathesis.Case) -> None:
        if endpoint.path == "/v1/changes/wait":
            case.query = {**(case.query or {}), "timeout": 0}
        answer = case.call(base_url=server.url, headers=headers)
        assert answer.status_code < 500, answer.text

    try_it()
    client.http.close()
