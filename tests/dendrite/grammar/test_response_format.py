from __future__ import annotations

from typing import Any

import pytest

from dendrite.errors import InvalidArgument
from dendrite.grammar import Grammar
from dendrite.grammar.response_format import grammar_of


def test_a_format_is_a_grammar_or_none() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert grammar_of(None) is None
    assert grammar_of({"type": "text"}) is None
    assert grammar_of({"type": "json_object"}) == Grammar(json_schema={"type": "object"})
    given = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    assert grammar_of(given) == Grammar(json_schema=schema)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": [1]}}, "json_schema"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        grammar_of(given)
    assert caught.value.field == field
