"""What is refused, and whether the error names the place."""

from __future__ import annotations

from typing import Any

import pytest

from dendrite.errors import GrammarError
from dendrite.grammar import Grammar
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.support import check_grammar

LIMITS = GrammarLimits()


def refused(grammar: Grammar, limits: GrammarLimits = LIMITS) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        check_grammar(grammar, limits)
    return caught.value


@pytest.mark.parametrize(
    ("schema", "path", "reason"),
    [
        ({"not": {"type": "null"}}, "$", "not"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "$.properties.a", "uniqueItems"),
        ({"properties": {"a": {"items": {"if": {}, "then": {}}}}}, "$.properties.a.items", "if"),
        ({"anyOf": [{"type": "null"}, {"contains": {}}]}, "$.anyOf[1]", "contains"),
        ({"prefixItems": [{}, {"type": "strng"}]}, "$.prefixItems[1]", "strng"),
        ({"additionalProperties": {"propertyNames": {}}}, "$.additionalProperties", "propertyNames"),
        ({"$defs": {"t": {"type": "string", "pattern": "(?=a)b"}}, "$ref": "#/$defs/t"}, "$.$defs.t", "look-around"),
        (
            {"type": "array", "items": {"type": "integer", "minimum": 5, "maximum": 3}, "minItems": 1},
            "$",
            "required item",
        ),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "$.properties.a", "/nowhere"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2, "type": "string"}]}, "$", "oneOf"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named_with_its_place(
    schema: dict[str, Any], path: str, reason: str
) -> None:
    error = refused(Grammar(json_schema=schema))
    assert reason in error.reason
    assert error.path == path
    assert error.path in str(error)


def test_a_malformed_regex_or_lark_grammar_is_refused() -> None:
    assert refused(Grammar(regex="a(")).path == "regex"
    error = refused(Grammar(lark="start: foo"))
    assert error.path == "lark"
    assert "foo" in error.reason


def test_the_length_of_the_text_is_limited() -> None:
    grammar = Grammar(regex="ä" * 50)
    check_grammar(grammar, GrammarLimits(source_bytes=100))
    error = refused(grammar, GrammarLimits(source_bytes=99))
    assert "100 bytes" in error.reason
    assert "99" in error.reason


def test_nesting_is_limited() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(4):
        schema = {"items": schema, "type": "array"}
    check_grammar(Grammar(json_schema=schema), GrammarLimits(nesting=5))
    error = refused(Grammar(json_schema=schema), GrammarLimits(nesting=4))
    assert error.path == "$.items.items.items.items"
    assert "limit of 4" in error.reason


def test_a_grammar_that_grows_too_large_while_it_is_compiled_is_refused() -> None:
    grammar = Grammar(regex="([ab]*a[ab]{200})|([ba]{100,400}c?)")
    check_grammar(grammar, LIMITS)
    assert "limit for this grammar: 10" in refused(grammar, GrammarLimits(lexer_fuel=10)).reason
    schema = {"type": "object", "properties": {f"field{at}": {"type": "integer"} for at in range(30)}}
    assert (
        "limit for this grammar: 50" in refused(Grammar(json_schema=schema), GrammarLimits(grammar_symbols=50)).reason
    )


def test_what_is_fine_passes() -> None:
    check_grammar(Grammar(json_schema={"type": "object", "x-note": "unknown keywords say nothing"}), LIMITS)
    check_grammar(Grammar(json_schema=True), LIMITS)
    check_grammar(Grammar(regex="[a-z]+"), LIMITS)
    check_grammar(Grammar(lark='start: "a" | "b"'), LIMITS)
