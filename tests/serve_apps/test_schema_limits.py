"""Schemas from strangers."""

from __future__ import annotations

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
    check_schema(schema, "schema", patterns=False)


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
        check_schema(schema, "schema", patterns=False)
    deep: object = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = [deep]
    with pytest.raises(HttpError, match="deep"):
        check_schema(deep, "schema", patterns=True)


def test_patterns_pass_where_others_read_them() -> None:
    check_schema({"pattern": "a", "patternProperties": {"b": {}}}, "schema", patterns=True)
    check_schema({"properties": {"pattern": {"type": "string"}}}, "schema", patterns=False)
    with pytest.raises(HttpError, match="pattern"):
        check_schema({"properties": {"pattern": {"pattern": "a"}}}, "schema", patterns=False)
