"""Which endpoint a path leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.routing import Routes

ROWS = [
    ("GET", "/files/{file}", "file"),
    ("POST", "/files", "make"),
    ("GET", "/files/{file}/children", "children"),
    ("GET", "/files/by-print/{print}", "by print"),
    ("DELETE", "/files/{file}", "delete"),
]
ROUTES = Routes(ROWS)


@pytest.mark.parametrize(
    ("path", "targets", "values"),
    [
        ("/files", {"POST": "make"}, []),
        ("/files/", {"POST": "make"}, []),
        ("/files/a", {"GET": "file", "DELETE": "delete"}, ["a"]),
        ("/files/a/children", {"GET": "children"}, ["a"]),
        ("/files/by-print/a", {"GET": "by print"}, ["a"]),
        ("/files/by-print/children", {"GET": "by print"}, ["children"]),
        ("/", {}, []),
        ("/nothing", {}, []),
        ("/files/by-print", {}, []),
        ("/files/a/b", {}, []),
        ("/files/a/children/b", {}, []),
    ],
)
def test_where_a_path_leads(path: str, targets: dict[str, str], values: list[str]) -> None:
    found, segments = ROUTES.find(path)
    assert found == targets
    assert segments == values or not targets


SEGMENTS = st.text(st.characters(exclude_characters="/{}"), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.booleans(), SEGMENTS), min_size=1, max_size=5))
def test_a_path_leads_to_its_own_row_with_what_stands_in_it(path: list[tuple[bool, str]]) -> None:
    declared = "/" + "/".join("{x}" if variable else text for variable, text in path)
    asked = "/" + "/".join(text for _, text in path)
    found, values = Routes([("GET", declared, "it")]).find(asked)
    assert found == {"GET": "it"}
    assert values == [text for variable, text in path if variable]


def test_a_row_is_declared_once() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        Routes([*ROWS, ("GET", "/files/{other}", "again")])
