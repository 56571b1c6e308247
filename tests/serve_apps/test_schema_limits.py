"""Schemas from strangers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.errors import HttpError
from serve_apps.schema_limits import MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, check_schema

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "items", "not"]), inner, max_size=3)
    ),
    max_leaves=30,
)


@given(json_values)
def test_small_schemas_pass(schema: object) -> None:
    check_schema(schema, "schema", in_python=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a"},
        {"properties": {"x": {"patternProperties": {}}}},
        {"$ref": "https://example.com"},
        {"$dynamicRef": 3},
        [0] * MAX_SCHEMA_NODES,
    ],
)
def test_what_could_take_long_is_refused(schema: object) -> None:
    with pytest.raises(HttpError, match="schema"):
        check_schema(schema, "schema", in_python=True)
    deep: object = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = [deep]
    with pytest.raises(HttpError, match="deep"):
        check_schema(deep, "schema", in_python=False)


def test_patterns_pass_where_others_read_them() -> None:
    check_schema({"pattern": "a", "patternProperties": {"b": {}}}, "schema", in_python=False)
    check_schema({"properties": {"pattern": {"type": "string"}}}, "schema", in_python=True)
    with pytest.raises(HttpError, match="pattern"):
        check_schema({"properties": {"pattern": {"pattern": "a"}}}, "schema", in_python=True)


def doubling(levels: int) -> dict[str, Any]:
    """A small schema that takes 2^levels checks of a document."""
    parts = {f"a{level}": {"allOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**parts, f"a{levels}": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        doubling(12),
        {"properties": {"next": {"$ref": "#"}}},
        {"$defs": {"a/b~c": {"$ref": "#/%24defs/a~1b~0c"}}},
        {"allOf": [{"not": {"$ref": "#/allOf/0"}}]},
        {"$recursiveRef": "#"},
        {"$dynamicRef": "#a", "$dynamicAnchor": "a"},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a"}}},
        {"$defs": {"a": {"$id": "https://example.com/a", "$ref": "#/$defs/a"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#", "not": {"id": "a"}},
    ],
)
def test_references_that_double_or_lead_back_are_refused_where_python_follows_them(schema: dict[str, Any]) -> None:
    with pytest.raises(HttpError, match="schema: "):
        check_schema(schema, "schema", in_python=True)


def test_references_that_cost_little_pass() -> None:
    check_schema(doubling(4), "schema", in_python=True)
    check_schema(doubling(30), "schema", in_python=False)
    nowhere = {
        "$id": "https://example.com",
        "items": [{"$ref": "#/items/7"}, {"$ref": "#/items/0/$ref/x"}, {"id": "a"}],
    }
    check_schema(nowhere, "schema", in_python=True)
