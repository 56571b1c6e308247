from __future__ import annotations

import pickle
from types import MappingProxyType

import pytest
from pydantic import ValidationError

from dendrite.config import SamplingParams, checked
from dendrite.errors import GrammarError, InvalidArgument
from dendrite.grammar import Grammar


def test_a_schema_is_kept_as_its_text_however_it_is_given() -> None:
    schema = {"type": "object", "properties": {"ä": {}}}
    given = (schema, MappingProxyType(schema), '{"type":"object", "properties" : {"\\u00e4": {}}}')
    assert {Grammar(json_schema=each) for each in given} == {Grammar(json_schema=schema)}
    assert Grammar(json_schema=True) == Grammar(json_schema={})
    assert (Grammar(json_schema=schema).kind, Grammar(regex="a").kind, Grammar(lark="start: /a/").kind) == (
        "json_schema",
        "regex",
        "lark",
    )


def test_the_digest_tells_kind_text_and_spacing_apart() -> None:
    first = {"properties": {"a": {}, "b": {}}}
    swapped = {"properties": {"b": {}, "a": {}}}
    digests = {
        Grammar(json_schema=first).digest,
        Grammar(json_schema=swapped).digest,
        Grammar(json_schema=first, white_space=False).digest,
        Grammar(regex="start: /a/").digest,
        Grammar(lark="start: /a/").digest,
    }
    assert len(digests) == 5
    assert Grammar(regex="").source == ""


def test_it_travels() -> None:
    grammar = Grammar(json_schema={"type": "integer"})
    assert grammar.digest
    assert pickle.loads(pickle.dumps(grammar)) == grammar
    params = SamplingParams(grammar=grammar, grammar_tokens=3)
    assert pickle.loads(pickle.dumps(params)) == params
    assert SamplingParams(**params.model_dump()) == params
    error = pickle.loads(pickle.dumps(GrammarError("$.a", "no")))
    assert (error.path, error.reason, str(error)) == ("$.a", "no", "grammar at $.a: no")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regex": "a", "lark": "start: /a/"},
        {"json_schema": [1]},
        {"json_schema": False},
        {"json_schema": "{"},
        {"json_schema": {"const": float("nan")}},
        {"json_schema": {"const": {1, 2}}},
        {"regex": "a", "white_space": False},
        {"gbnf": "root ::= x"},
    ],
)
def test_anything_but_one_grammar_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Grammar(**fields)


def test_the_tokens_of_no_grammar_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="goes with a grammar"):
        checked(SamplingParams, {"grammar_tokens": 3})
    with pytest.raises(InvalidArgument, match="exactly one"):
        checked(SamplingParams, {"grammar": {}})
